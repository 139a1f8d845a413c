"""Stage branches: what is_branch on the trunk."""

from typing import Any

from rich.console import RenderableType

from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import excerpt, span, table


def describe(specimen: Specimen) -> list[dict[str, Any]]:
    """name, start, stop of each branch, the position of its first token, and prefix, the trunk tokens that it sees."""
    row = specimen.row
    return [
        {
            "name": part.name,
            "start": part.places.start,
            "stop": part.places.stop,
            "position": row.position_ids[part.places.start],
            "prefix": row.visible_length[part.places.start],
        }
        for part in specimen.sights.regions
        if part.is_branch
    ]


def show(specimen: Specimen) -> RenderableType:
    """The same as a table, with their text."""
    found = describe(specimen)
    if not found:
        return "No branch is_branch on the trunk: the row is as long as in plain fine-tuning."
    shown = table("branch", "tokens", "positions", "trunk seen", "text")
    for part in found:
        places, position = range(part["start"], part["stop"]), part["position"]
        positions, seen = span((position, position + len(places))), span((0, part["prefix"]))
        shown.add_row(
            part["name"], span(places), positions, seen if part["prefix"] else "nothing", excerpt(specimen, places)
        )
    return shown
