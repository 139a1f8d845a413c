"""Stage mask, and `step-jepa inspect mask`: who sees whom, in both implementations and every kind of layer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text
from torch import Tensor

from step_jepa import plots
from step_jepa.inspection.picture import draw
from step_jepa.inspection.preparation import RowArguments, specimen_of
from step_jepa.inspection.sights import Relation, Sights, relation, runs
from step_jepa.inspection.specimen import Specimen
from step_jepa.rows.regions import Region, extent, sight

STYLES: dict[Relation, str] = {"trunk": "black on cyan", "prefix": "black on green", "own": "black on yellow"}
MARKS = {"all": "#", "causal": "\\", "part": "+", "none": "."}
LEGEND = "# all of it   \\ itself up to each token   + part of it   . nothing"


@dataclass
class MaskArguments(RowArguments):
    """Which row's mask, and where its picture goes."""

    output: str | None = field(default=None, metadata={"help": "Draw it token by token, as F.png or F.svg."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the picture that is there."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of words and colours."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            plots.check_output(self.output, overwrite=self.overwrite)


def run(args: MaskArguments) -> None:
    """Print the masks, and draw them; as JSON {"index"} and what `describe` has. Raises UserError."""
    specimen = specimen_of(args)
    if args.output:
        with plots.style():
            plots.save(draw(specimen), args.output)
    if args.json:
        print(json.dumps({"index": args.index, **describe(specimen)}))
        return
    console = Console(highlight=False, markup=False)
    console.rule(f"example {args.index}: a row looks, a column is seen")
    console.print(show(specimen))
    if args.output:
        console.print(f"The picture, token by token, lies in {args.output}")


def describe(specimen: Specimen) -> dict[str, Any]:
    """regions: name, start, stop. layers: by kind of layer, for each token the ranges [start, stop) of tokens that it
    sees. sight: by kind of layer, who sees whom in words. in_place: the same three of the standalone implementation's
    second pass, null where it has no pair."""
    alone = specimen.in_place
    return {**_described(specimen.sights), "in_place": _described(alone) if alone else None}


def _described(sights: Sights) -> dict[str, Any]:
    return {
        "regions": [
            {"name": part.name, "start": part.places.start, "stop": part.places.stop} for part in sights.regions
        ],
        "layers": {kind: [runs(row) for row in seen] for kind, seen in sights.layers.items()},
        "sight": {kind: sight(sights.regions, seen) for kind, seen in sights.layers.items()},
    }


def show(specimen: Specimen) -> RenderableType:
    """Region by region, with the words below."""
    shown: list[RenderableType] = []
    for title, parts, seen in specimen.masks():
        words = Text("\n".join(sight(parts, seen)))
        shown += [Text(f"mask: {title}", "bold"), Matrix(parts, seen), words, ""]
    note = "" if specimen.in_place else "The standalone implementation has no pair here, so no mask in place.\n"
    return Group(*shown, note + LEGEND)


@dataclass(frozen=True)
class Matrix:
    """Region by region: a row looks, a column is seen. As many columns at once as the terminal has room for."""

    regions: list[Region]
    seen: Tensor

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = 5 + max(len(part.name) for part in self.regions)
        at_once = max(1, (options.max_width - margin) // 2)
        for start in range(0, len(self.regions), at_once):
            yield from self._block(self.regions[start : start + at_once], margin)

    def _block(self, columns: list[Region], margin: int) -> Iterator[Text]:
        for letters in zip_longest(*map(_code, columns), fillvalue=" "):
            yield Text(" " * margin + " ".join(letters))
        for part in self.regions:
            line = Text(f"{_code(part):4}{part.name}".ljust(margin), no_wrap=True)
            for column in columns:
                how = extent(part, column, self.seen)
                line.append(f"{MARKS[how]} ", "dim" if how == "none" else STYLES[relation(part, column)])
            yield line


def _code(part: Region) -> str:
    """s3 for step 3, sy for the system's part: the name above a column, from top to bottom."""
    return part.name[:2] if part.number is None else f"{part.kind[0]}{part.number}"
