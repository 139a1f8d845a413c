"""The picture of an example's masks: every token, with the regions on both axes."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from step_jepa.inspection.example import InspectedExample
from step_jepa.inspection.mask import (
    BRANCH_TO_ITSELF,
    BRANCH_TO_TRUNK,
    RELATIONS,
    TRUNK_TO_TRUNK,
    Relation,
    seen_ranges,
)
from step_jepa.rows.regions import Region

# Inches
LEAST_SIDE = 3.4  # of a panel
LABEL_DISTANCE = 0.16  # from one label to the next
LABEL_GAP = 0.2  # between labels and panel
MARGIN = 1.3  # all that stands beside a panel
GREY = "#BBBBBB"
LEADER = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0}
Corners = list[tuple[float, float]]


def draw(inspected: InspectedExample) -> Figure:
    """One panel for each mask: the implementations side by side, below one another the kinds of layer. Call it within
    plots.style()."""
    masks = list(inspected.masks())
    columns = 2 if inspected.in_place else 1
    rows = len(masks) // columns
    side = max(LEAST_SIDE, *(LABEL_DISTANCE * len(mask.regions) for mask in masks))
    width, height = (side + MARGIN) * columns, (side + MARGIN) * rows + LABEL_DISTANCE
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, mask in zip(panels, masks, strict=True):
        _draw_panel(axes, mask.regions, mask.seen)
        axes.set_xlabel(mask.title)
        _draw_labels(axes, mask.regions, tokens_per_inch=len(mask.seen) / side)
    keys = [_legend_key(relation) for relation in RELATIONS]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def _legend_key(relation: Relation) -> Patch:
    return Patch(facecolor=relation.face, hatch=relation.hatch, edgecolor="white", label=relation.meaning)


def _draw_panel(axes: Axes, regions: Sequence[Region], seen: Tensor) -> None:
    length = len(seen)
    for relation, cells in _cells(regions, seen).items():
        face, hatch = relation.face, relation.hatch
        # Edges of their own colour keep a branch of one token visible in a long row.
        axes.add_collection(PolyCollection(cells, facecolors=face, edgecolors=face, linewidths=0.6, zorder=2))
        axes.add_collection(
            PolyCollection(cells, facecolors="none", edgecolors="white", hatch=hatch, linewidths=0, zorder=2)
        )
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(True)
    borders = [region.indices.start for region in regions[1:]]
    axes.hlines(borders, 0, length, colors=GREY, linewidths=0.5, zorder=1)
    axes.vlines(borders, 0, length, colors=GREY, linewidths=0.5, zorder=3)


def _cells(regions: Sequence[Region], seen: Tensor) -> dict[Relation, list[Corners]]:
    """Rectangles of neighbouring tokens that one token sees, by what it means that it sees them."""
    is_branch = torch.zeros(len(seen), dtype=torch.bool)
    for region in regions:
        is_branch[region.indices.start : region.indices.stop] = region.is_branch
    cells: dict[Relation, list[Corners]] = {relation: [] for relation in RELATIONS}
    # Row by row: a mask of a long row is large, and each of its parts as a whole would be as large again.
    for token, row in enumerate(seen):
        if is_branch[token]:
            cells[BRANCH_TO_TRUNK] += _rectangles(token, row & ~is_branch)
            cells[BRANCH_TO_ITSELF] += _rectangles(token, row & is_branch)
        else:
            cells[TRUNK_TO_TRUNK] += _rectangles(token, row)
    return cells


def _rectangles(token: int, row: Tensor) -> Iterator[Corners]:
    """Those of the tokens that one token sees, bool (L,), in its line of the picture."""
    top, bottom = token, token + 1
    for left, right in seen_ranges(row):
        yield [(left, top), (right, top), (right, bottom), (left, bottom)]


def _draw_labels(axes: Axes, regions: Sequence[Region], tokens_per_inch: float) -> None:
    """Names beside the middles of their regions; where these are close, apart, with a line to each."""
    middles = [(region.indices.start + region.indices.stop) / 2 for region in regions]
    places = spread(middles, LABEL_DISTANCE * tokens_per_inch, regions[-1].indices.stop)
    outside = -LABEL_GAP * tokens_per_inch
    beside: dict[str, Any] = {"ha": "right", "va": "center", "arrowprops": LEADER | {"relpos": (1, 0.5)}}
    above: dict[str, Any] = {"ha": "center", "va": "bottom", "arrowprops": LEADER | {"relpos": (0.5, 0)}}
    for region, middle, place in zip(regions, middles, places, strict=True):
        axes.annotate(region.name, (0, middle), (outside, place), annotation_clip=False, **beside)
        axes.annotate(region.name, (middle, 0), (place, outside), annotation_clip=False, rotation=90, **above)


def spread(places: Sequence[float], least: float, length: float) -> list[float]:
    """Places that lie at least so far apart.

    Args:
        places: ascending, within 0 and length.
        least: the distance wanted.
        length: the upper bound of all places.

    Returns:
        The places; those too close lie evenly around their mean, and within the same bounds if there is room.
    """
    groups = [[place] for place in places]
    while True:
        spots = [_evenly(group, least, length) for group in groups]
        first = _first_too_close(spots, least)
        if first is None:
            return list(chain.from_iterable(spots))
        groups[first : first + 2] = [groups[first] + groups[first + 1]]


def _first_too_close(spots: Sequence[Sequence[float]], least: float) -> int | None:
    """The number of the first group that ends too close to the next one."""
    for number, (group, following) in enumerate(pairwise(spots)):
        if following[0] - group[-1] < least - 1e-9:  # rounding
            return number
    return None


def _evenly(group: Sequence[float], least: float, length: float) -> list[float]:
    """As many places as the group has, `least` apart, around its mean as far as the bounds allow."""
    half = least * (len(group) - 1) / 2
    middle = max(half, min(sum(group) / len(group), length - half))
    return [middle - half + least * number for number in range(len(group))]
