"""Training curves: what runs logged, by optimisation step; thin as it was logged, thick its mean over neighbours."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from step_jepa.plots import COLOURS, InlineFigures, style
from step_jepa.reporting.runs import Run


@dataclass(frozen=True)
class Quantity:
    """What one chart is of: name of each line, and the metric as the trainer logs it."""

    title: str
    metrics: dict[str, str]


QUANTITIES = (
    Quantity("Language-model loss", {"training": "lm_loss", "held out": "eval_lm_loss"}),
    Quantity("JEPA loss", {"training": "jepa_loss", "held out": "diagnostics_jepa_loss"}),
    Quantity(
        "Cosine of held-out embeddings",
        {"paired": "diagnostics_cosine_paired", "unpaired": "diagnostics_cosine_unpaired"},
    ),
    Quantity(
        "Effective rank of held-out embeddings",
        {"predicted": "diagnostics_rank_predicted", "target": "diagnostics_rank_target"},
    ),
)
LOOKS: tuple[dict[str, Any], ...] = (  # of metrics
    {"linestyle": "-", "marker": "o"},
    {"linestyle": "--", "marker": "s", "fillstyle": "none"},
)
SMOOTHED_FROM = 20  # points; fewer are shown as they are
NEIGHBOURS = 10  # a smoothed point is the mean of a tenth of the line
MOST_MARKED = 12  # points with a marker each
MOST_POINTS = 4000  # of a chart
FEWEST_POINTS = 20  # of a line
MOST_IN_TABLE = 4  # runs
MOST_ROWS = 200  # of a table


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    steps, values   float64 (N,): optimisation steps, in order, and what was logged at them
    group, metric   numbers of the group of runs and of the metric within the chart
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    group: int
    metric: int

    @property
    def is_smoothed(self) -> bool:
        return len(self.steps) >= SMOOTHED_FROM


def curve_sections(runs: Sequence[Run], groups: Sequence[str], figures: InlineFigures) -> list[dict[str, Any]]:
    """What the page shows of each quantity that was logged: a chart, and of few runs the same figures as a table."""
    return [
        _section(quantity, shown, len(groups), figures)
        for quantity in QUANTITIES
        if (shown := list(lines(quantity, runs, groups)))
    ]


def _section(quantity: Quantity, shown: Sequence[Line], groups: int, figures: InlineFigures) -> dict[str, Any]:
    description = f"{quantity.title} by optimisation step"
    names = [line.name for line in shown]
    few = len(shown) <= MOST_IN_TABLE * len(quantity.metrics)
    return {
        "title": quantity.title,
        "svg": toggled(figures.svg(line_chart(quantity, shown, groups), description)),
        "table": [["step", *names], *points_table(shown)] if few else [],
        "is_smoothed": any(line.is_smoothed for line in shown),
    }


def lines(quantity: Quantity, runs: Sequence[Run], groups: Sequence[str]) -> Iterator[Line]:
    """Those of the runs that logged the quantity; what is not finite is left out."""
    for run in runs:
        for number, (name, metric) in enumerate(quantity.metrics.items()):
            points = np.array(run.points(metric), dtype=float).reshape(-1, 2)
            points = points[np.isfinite(points).all(1)]
            if len(points):
                label = name if len(runs) == 1 else f"{run.name}, {name}"
                yield Line(label, points[:, 0], points[:, 1], groups.index(run.group), number)


def smoothed(values: np.ndarray) -> np.ndarray:
    """(N,): the mean of each value and its neighbours, fewer at the ends."""
    places, reach = np.arange(len(values)), len(values) // (2 * NEIGHBOURS)
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    sums = np.concatenate([[0], values.cumsum()])
    return (sums[last] - sums[first]) / (last - first)


# Charts


def line_chart(quantity: Quantity, shown: Sequence[Line], groups: int) -> Figure:
    """Groups of runs differ by colour, which the check boxes of the page explain; metrics by dashes, or, of a single
    run, by colour too."""
    with style():
        figure = Figure(figsize=(3.6, 2.5), layout="constrained")
        axes = figure.add_subplot(xlabel="optimisation step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        most = max(FEWEST_POINTS, MOST_POINTS // len(shown))
        for number, line in enumerate(shown):
            colour = COLOURS[(line.group if groups > 1 else line.metric) % len(COLOURS)]
            _draw(axes, line, colour, gid=f"group-{line.group}-{number}" if groups > 1 else None, most=most)
        if handles := list(_metric_handles(quantity, {line.metric for line in shown}, groups)):
            figure.legend(handles=handles, loc="outside lower left", ncols=2)
        return figure


def _metric_handles(quantity: Quantity, present: set[int], groups: int) -> Iterator[Line2D]:
    """Of the legend, in which several runs have no colour; none for a single metric."""
    for number, name in enumerate(quantity.metrics):
        if number in present and len(present) > 1:
            colour = COLOURS[number] if groups == 1 else COLOURS[-1]
            yield Line2D([], [], color=colour, label=name, markersize=4, **LOOKS[number])


def _draw(axes: Any, line: Line, colour: str, *, gid: str | None, most: int) -> None:
    """With what was logged, where no other runs are drawn over it."""
    values = smoothed(line.values) if line.is_smoothed else line.values
    thinned = slice(None, None, -(-len(values) // most))
    if gid is None and line.is_smoothed:
        axes.plot(line.steps[thinned], line.values[thinned], color=colour, alpha=0.35, linewidth=0.6)
    look = dict(LOOKS[line.metric])
    if len(values) > MOST_MARKED:
        look["marker"] = ""
    axes.plot(line.steps[thinned], values[thinned], color=colour, linewidth=1.6, markersize=4, gid=gid, **look)


def toggled(svg: str) -> str:
    """Lines as elements that the check boxes of their group of runs show and hide."""
    return re.sub(r'id="f\d+-group-(\d+)-\d+"', r'data-group="\1"', svg)


def points_table(shown: Sequence[Line]) -> list[list[str]]:
    """A row for each optimisation step at which any line has a point, a column for each line; empty for no point."""
    value_by_step = [dict(zip(line.steps.tolist(), line.values.tolist(), strict=True)) for line in shown]
    steps = sorted(set().union(*value_by_step))
    thinned = steps[:: -(-len(steps) // MOST_ROWS) or 1]
    return [[f"{step:.0f}", *_values_at(step, value_by_step)] for step in thinned]


def _values_at(step: float, value_by_step: Sequence[dict[float, float]]) -> list[str]:
    return [f"{values[step]:.4g}" if step in values else "" for values in value_by_step]
