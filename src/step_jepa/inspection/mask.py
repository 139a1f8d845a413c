"""Stage mask: who sees whom, in words, as JSON, and region by region in a terminal.

The masks of both implementations, one for each kind of layer: bool (L, L), [q, k]: whether token q sees token k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text
from torch import Tensor

from step_jepa.data.offsets import Span
from step_jepa.inspection.example import InspectedExample, Visibility
from step_jepa.rows.regions import Region

# How much of a region another one sees. causal: of itself, each token what stands up to it.
Extent = Literal["all", "causal", "part", "none"]
PHRASES: dict[Extent, str] = {"all": "{}", "causal": "{} up to each token", "part": "part of {}"}
MARKS: dict[Extent, str] = {"all": "#", "causal": "\\", "part": "+", "none": "."}
MARKS_LEGEND = "# all of it   \\ itself up to each token   + part of it   . nothing"


@dataclass(frozen=True)
class Relation:
    """What it means that one token sees another.

    Attributes:
        meaning: in the legend of the picture.
        style: of a mark in a terminal.
        face: colour in the picture.
        hatch: over that colour, for people who see few colours.
    """

    meaning: str
    style: str
    face: str
    hatch: str


TRUNK_TO_TRUNK = Relation("the trunk sees the trunk", style="black on cyan", face="#56B4E9", hatch="")
BRANCH_TO_TRUNK = Relation("a branch sees the trunk", style="black on green", face="#009E73", hatch="....")
BRANCH_TO_ITSELF = Relation("a branch sees itself", style="black on yellow", face="#E69F00", hatch="////")
RELATIONS = (TRUNK_TO_TRUNK, BRANCH_TO_TRUNK, BRANCH_TO_ITSELF)

# In words, and as JSON


def describe_mask(inspected: InspectedExample) -> dict[str, Any]:
    """As JSON.

    Returns:
        regions: name, start, stop. layers: by kind of layer, for each token the ranges [start, stop) of tokens that it
        sees. sight: by kind of layer, who sees whom in words. sample: null; of a long row, the indices of the tokens
        that all of this is about, which are then counted among themselves. in_place: the same of the standalone
        implementation's second pass, null where it has no pair, or a long row.
    """
    in_place = _describe_visibility(inspected.in_place) if inspected.in_place else None
    return {**_describe_visibility(inspected.visibility), "in_place": in_place}


def _describe_visibility(visibility: Visibility) -> dict[str, Any]:
    regions, layers = visibility.regions, visibility.layers
    return {
        "regions": [describe_region(region) for region in regions],
        "layers": {kind: list(map(seen_ranges, seen)) for kind, seen in layers.items()},
        "sight": {kind: sentences(regions, seen) for kind, seen in layers.items()},
        "sample": visibility.tokens if visibility.note else None,
    }


def describe_region(region: Region) -> dict[str, Any]:
    """Its name, and where in the row it starts and stops."""
    return {"name": region.name, "start": region.indices.start, "stop": region.indices.stop}


def seen_ranges(seen: Tensor) -> list[Span]:
    """The half-open ranges where a row of a mask, bool (L,), is True."""
    outside = torch.zeros(1, dtype=torch.int8)
    changes = seen.to(torch.int8).diff(prepend=outside, append=outside)
    borders = changes.nonzero().flatten().tolist()
    return list(zip(borders[::2], borders[1::2], strict=True))


def sentences(regions: Sequence[Region], seen: Tensor) -> list[str]:
    """Who sees whom in words.

    Args:
        regions: what tiles the row.
        seen: bool (L, L), the mask.

    Returns:
        One sentence for each region, such as "step 1 sees question, step 0 and itself up to each token."
    """
    return [_sentence(region, regions, seen) for region in regions]


def _sentence(query: Region, regions: Sequence[Region], seen: Tensor) -> str:
    phrases = []
    for key, extent in zip(regions, extents(query, regions, seen), strict=True):
        if extent != "none":
            phrases.append(PHRASES[extent].format("itself" if key is query else key.name))
    *head, last = phrases  # a token sees at least itself
    listed = f"{', '.join(head)} and {last}" if head else f"nothing but {last}"
    return f"{query.name} sees {listed}."


def extents(query: Region, regions: Sequence[Region], seen: Tensor) -> list[Extent]:
    """How much the region `query` sees of each region, by the mask (as in `sentences`)."""
    lengths = torch.tensor([len(key.indices) for key in regions])
    region_of_token = torch.arange(len(regions)).repeat_interleave(lengths)
    looks = seen[query.indices.start : query.indices.stop]
    # Pairs of tokens, counted for all regions at once: a tensor for each pair of regions takes minutes at 1,000 steps.
    pairs_seen = torch.zeros_like(lengths).index_add_(0, region_of_token, looks.sum(0))
    sees_all = (pairs_seen == lengths * len(query.indices)).tolist()
    per_region: list[Extent] = ["none"] * len(regions)
    for number in pairs_seen.nonzero().flatten().tolist():
        per_region[number] = "all" if sees_all[number] else "part"
    within = looks[:, query.indices.start : query.indices.stop]
    if within.equal(torch.ones_like(within).tril()):
        per_region[int(region_of_token[query.indices.start])] = "causal"
    return per_region


# In a terminal


def show_mask(inspected: InspectedExample) -> RenderableType:
    """Region by region, with the words below."""
    shown: list[RenderableType] = []
    for title, regions, seen in inspected.masks():
        words = Text("\n".join(sentences(regions, seen)))
        shown += [Text(f"mask: {title}", "bold"), RegionMatrix(regions, seen), words, ""]
    note = (
        ""
        if inspected.in_place
        else "The standalone implementation has no pair here, or a long row: no mask in place.\n"
    )
    return Group(*shown, note + MARKS_LEGEND)


@dataclass(frozen=True)
class RegionMatrix:
    """Region by region: a row looks, a column is seen. As many columns at once as the terminal has room for.

    Attributes:
        regions: what tiles the row.
        seen: bool (L, L), the mask.
    """

    regions: list[Region]
    seen: Tensor

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = 5 + max(len(region.name) for region in self.regions)
        at_once = max(1, (options.max_width - margin) // 2)
        rows = [extents(query, self.regions, self.seen) for query in self.regions]
        for start in range(0, len(self.regions), at_once):
            columns = slice(start, start + at_once)
            yield from _heads(self.regions[columns], margin)
            for query, row in zip(self.regions, rows, strict=True):
                yield _line(query, self.regions[columns], row[columns], margin)


def _heads(keys: Sequence[Region], margin: int) -> Iterator[Text]:
    """The codes of the columns, each from top to bottom."""
    for letters in zip_longest(*map(_code, keys), fillvalue=" "):
        yield Text(" " * margin + " ".join(letters))


def _line(query: Region, keys: Sequence[Region], row: Sequence[Extent], margin: int) -> Text:
    line = Text(f"{_code(query):4}{query.name}".ljust(margin), no_wrap=True)
    for key, extent in zip(keys, row, strict=True):
        line.append(f"{MARKS[extent]} ", "dim" if extent == "none" else _relation(query, key).style)
    return line


def _relation(query: Region, key: Region) -> Relation:
    if not query.is_branch:
        return TRUNK_TO_TRUNK
    return BRANCH_TO_ITSELF if key.is_branch else BRANCH_TO_TRUNK


def _code(region: Region) -> str:
    """s3 for step 3, sy for the system's part."""
    return region.name[:2] if region.number is None else f"{region.kind[0]}{region.number}"
