"""How tokens, spans and views are written, alike in all stages."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from step_jepa.data.tokens import Span
from step_jepa.inspection.specimen import Specimen
from step_jepa.rows.regions import Region


def visible(text: str) -> str:
    """What cannot be printed as an escape, so that it neither breaks a line nor moves the cursor."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def span(places: Span | range) -> str:
    """4:7 is 4, 5 and 6."""
    start, stop = (places.start, places.stop) if isinstance(places, range) else places
    return f"{start}:{stop}"


def excerpt(specimen: Specimen, places: range) -> Text:
    """The text of these tokens of the row, on one line."""
    joined = visible("".join(specimen.pieces[places.start : places.stop]))
    return Text(joined, no_wrap=True, overflow="ellipsis")


def table(*columns: str) -> Table:
    """An empty table with these heads; a name that ends in # is a column of numbers."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        made.add_column(name.rstrip("#"), justify="right" if name.endswith("#") else "left")
    return made


def region_names(parts: Sequence[Region]) -> list[str]:
    """Of each token of the row that the regions tile."""
    return [part.name for part in parts for _ in part.places]


def weighted(what: str, weight: float) -> str:
    """One state of a view's sum."""
    return what if weight == 1 else f"{weight:+.3g} x {what}"
