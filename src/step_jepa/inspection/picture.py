"""The picture of an example's masks: every token, with the regions on both axes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from step_jepa.inspection.sights import Relation, runs
from step_jepa.inspection.specimen import Specimen
from step_jepa.rows.regions import Region

MEANING: dict[Relation, str] = {
    "trunk": "the trunk sees the trunk",
    "prefix": "a branch sees the trunk",
    "own": "a branch sees itself",
}
FACES: dict[Relation, str] = {"trunk": "#56B4E9", "prefix": "#009E73", "own": "#E69F00"}
HATCHES: dict[Relation, str] = {"trunk": "", "prefix": "....", "own": "////"}
LEADER = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0}
SIDE, LABEL, GAP, MARGIN = 3.4, 0.16, 0.2, 1.3  # inches: least side of a panel, label to label, to panel, all beside it
Corners = list[tuple[float, float]]


def draw(specimen: Specimen) -> Figure:
    """One panel for each mask: the implementations side by side, below one another the kinds of layer. Call it within
    plots.style()."""
    found = list(specimen.masks())
    width = 2 if specimen.in_place else 1
    height = len(found) // width
    side = max(SIDE, *(LABEL * len(parts) for _, parts, _ in found))
    figure = Figure(figsize=((side + MARGIN) * width, (side + MARGIN) * height + LABEL), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False)
    for axes, (title, parts, seen) in zip(grid.flat, found, strict=True):
        _panel(axes, parts, seen)
        axes.set_xlabel(title)
        _labels(axes, parts, len(seen) / side)
    keys = [Patch(facecolor=FACES[name], hatch=HATCHES[name], edgecolor="white", label=MEANING[name]) for name in FACES]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def _panel(axes: Axes, parts: Sequence[Region], seen: Tensor) -> None:
    length = len(seen)
    for name, cells in _cells(parts, seen).items():
        face, hatch = FACES[name], HATCHES[name]
        # Edges of their own colour keep a branch of one token visible in a long row.
        axes.add_collection(PolyCollection(cells, facecolors=face, edgecolors=face, linewidths=0.6, zorder=2))
        axes.add_collection(
            PolyCollection(cells, facecolors="none", edgecolors="white", hatch=hatch, linewidths=0, zorder=2)
        )
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(True)
    edges = [part.places.start for part in parts[1:]]
    axes.hlines(edges, 0, length, colors="#BBBBBB", linewidths=0.5, zorder=1)
    axes.vlines(edges, 0, length, colors="#BBBBBB", linewidths=0.5, zorder=3)


def _cells(parts: Sequence[Region], seen: Tensor) -> dict[Relation, list[Corners]]:
    """Rectangles of neighbouring tokens that one token sees, by what it means that it sees them."""
    is_branch = torch.tensor([part.is_branch for part in parts for _ in part.places])
    trunk, own = seen & ~is_branch, seen & is_branch
    masks: dict[Relation, Tensor] = {
        "trunk": trunk & ~is_branch[:, None],
        "prefix": trunk & is_branch[:, None],
        "own": own & is_branch[:, None],
    }
    return {
        name: [_corners(q, *run) for q, row in enumerate(mask) for run in runs(row)] for name, mask in masks.items()
    }


def _corners(q: int, start: int, stop: int) -> Corners:
    return [(start, q), (stop, q), (stop, q + 1), (start, q + 1)]


def _labels(axes: Axes, parts: Sequence[Region], inch: float) -> None:
    """Names beside the middles of their regions; where these are close, apart, with a line to each. inch: in tokens."""
    middles = [(part.places.start + part.places.stop) / 2 for part in parts]
    places = spread(middles, LABEL * inch, parts[-1].places.stop)
    for part, middle, place in zip(parts, middles, places, strict=True):
        row: dict[str, Any] = {"ha": "right", "va": "center", "arrowprops": LEADER | {"relpos": (1, 0.5)}}
        column: dict[str, Any] = {"ha": "center", "va": "bottom", "arrowprops": LEADER | {"relpos": (0.5, 0)}}
        axes.annotate(part.name, (0, middle), (-GAP * inch, place), annotation_clip=False, **row)
        axes.annotate(part.name, (middle, 0), (place, -GAP * inch), annotation_clip=False, rotation=90, **column)


def spread(places: Sequence[float], least: float, length: float) -> list[float]:
    """Ascending places within 0 and length, moved to lie `least` apart: those too close come to lie evenly around their
    mean, and within the same bounds if there is room."""
    groups = [[place] for place in places]
    while True:
        spots = [_around(group, least, length) for group in groups]
        close = [number for number, (a, b) in enumerate(pairwise(spots)) if b[0] - a[-1] < least - 1e-9]
        if not close:
            return [place for spot in spots for place in spot]
        first = close[0]
        groups[first : first + 2] = [groups[first] + groups[first + 1]]


def _around(group: Sequence[float], least: float, length: float) -> list[float]:
    half = least * (len(group) - 1) / 2
    middle = max(half, min(sum(group) / len(group), length - half))
    return [middle - half + least * number for number in range(len(group))]
