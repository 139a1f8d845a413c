"""Stage tokens, and `step-jepa inspect tokens`: the row of an example, token by token."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from step_jepa.data.tokens import IGNORED
from step_jepa.inspection.preparation import RowArguments, specimen_of
from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import region_names, table, visible, weighted


@dataclass
class TokensArguments(RowArguments):
    """Which row."""

    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of a table."})


def run(args: TokensArguments) -> None:
    """Print the tokens; as JSON {"index", "tokens"}, as `describe` has them. Raises UserError."""
    specimen = specimen_of(args)
    if args.json:
        print(json.dumps({"index": args.index, "tokens": describe(specimen)}))
    else:
        console = Console(highlight=False, markup=False)
        console.rule(f"example {args.index}: the row's tokens, and where views are read")
        console.print(show(specimen))


def describe(specimen: Specimen) -> list[dict[str, Any]]:
    """Of each token of the row: index in the row, text, id, position, labelled, region, and views, the states that are
    read there ("target 2", or "-1 x target 2" with its weight in the view's sum)."""
    row, read = specimen.row, _read(specimen)
    return [
        {
            "index": index,
            "text": specimen.pieces[index],
            "id": row.input_ids[index],
            "position": row.position_ids[index],
            "labelled": row.labels[index] != IGNORED,
            "region": region,
            "views": read[index],
        }
        for index, region in enumerate(region_names(specimen.sights.regions))
    ]


def _read(specimen: Specimen) -> dict[int, list[str]]:
    """The views that are read at each token."""
    found = defaultdict(list)
    for pair in specimen.row.pairs:
        for side, view in ("predicted", pair.predicted), ("target", pair.target):
            for index, weight in view:
                found[index].append(weighted(f"{side} {pair.step}", weight))
    return found


def show(specimen: Specimen) -> Table:
    """The same as a table."""
    shown = table("index#", "text", "id#", "position#", "labelled", "region", "view")
    region = None
    for token in describe(specimen):
        if token["region"] != region:
            shown.add_section()
        region = token["region"]
        text, labelled = f'"{visible(token["text"])}"', "yes" if token["labelled"] else ""
        numbers = str(token["index"]), text, str(token["id"]), str(token["position"])
        shown.add_row(*numbers, labelled, region, ", ".join(token["views"]))
    return shown
