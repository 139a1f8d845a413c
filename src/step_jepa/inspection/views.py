"""Stage views: the pairs that are to come together, and the states that they are read from."""

from typing import Any

from rich.console import RenderableType

from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import region_names, table, visible, weighted
from step_jepa.rows.branches import View


def describe(specimen: Specimen) -> list[dict[str, Any]]:
    """Of each pair: objective, step (the target's), and predicted and target, each a list of the states in its sum:
    index in the row, and weight."""
    return [
        {
            "objective": specimen.objective,
            "step": pair.step,
            "predicted": _states(pair.predicted),
            "target": _states(pair.target),
        }
        for pair in specimen.row.pairs
    ]


def _states(view: View) -> list[dict[str, Any]]:
    return [{"index": index, "weight": weight} for index, weight in view]


def show(specimen: Specimen) -> RenderableType:
    """The same as a table, with the tokens at which they are read."""
    if not specimen.row.pairs:
        return f"Objective {specimen.objective} has no pair of views here: the row trains the language model alone."
    shown = table("pair#", "predicted: read at", "target: read at")
    for number, pair in enumerate(specimen.row.pairs):
        shown.add_row(str(number), _read(specimen, pair.predicted), _read(specimen, pair.target))
    return shown


def _read(specimen: Specimen, view: View) -> str:
    names = region_names(specimen.sights.regions)
    return "\n".join(
        weighted(f'{index} "{visible(specimen.pieces[index])}" of {names[index]}', weight) for index, weight in view
    )
