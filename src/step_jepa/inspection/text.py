"""Stage text: the conversation as the chat template writes it."""

from rich.text import Text

from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import visible


def describe(specimen: Specimen) -> str:
    """The rendered conversation."""
    return specimen.example.text


def show(specimen: Specimen) -> Text:
    """The same, the steps in bold."""
    example, shown = specimen.example, Text()
    first, last = example.chars[0][0], example.chars[-1][1]
    for piece, style in (example.text[:first], "dim"), (example.text[first:last], "bold"), (example.text[last:], "dim"):
        shown.append("\n".join(map(visible, piece.split("\n"))), style)
    return shown
