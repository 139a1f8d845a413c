"""Stage spans: the regions of the trunk."""

from typing import Any

from rich.table import Table

from step_jepa.data.tokens import IGNORED
from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import excerpt, span, table


def describe(specimen: Specimen) -> list[dict[str, Any]]:
    """name, start, stop of each region of the trunk, and how many of its tokens are labelled."""
    return [
        {
            "name": part.name,
            "start": part.places.start,
            "stop": part.places.stop,
            "labelled": sum(specimen.row.labels[place] != IGNORED for place in part.places),
        }
        for part in specimen.sights.regions
        if not part.is_branch
    ]


def show(specimen: Specimen) -> Table:
    """The same as a table, with their text."""
    shown = table("region", "tokens", "labelled", "text")
    for part in describe(specimen):
        places = range(part["start"], part["stop"])
        labelled = f"{part['labelled']} of {len(places)}"
        shown.add_row(part["name"], span(places), labelled, excerpt(specimen, places))
    return shown
