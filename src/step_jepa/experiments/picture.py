"""The picture of an experiment: each condition's mean of each measure, with its interval."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from step_jepa.experiments.results import ConditionResult, ExperimentResults
from step_jepa.plots import COLOURS, style

ROW, PANEL = 0.24, 2.6  # inches of a condition, of a measure
MOST_PANELS = 4


def conditions_chart(results: ExperimentResults) -> Figure:
    """A panel for each of the first measures, a line for each condition: 95 % for new seeds and new problems."""
    measures, names = results.measures[:MOST_PANELS], list(results.conditions)
    with style():
        size = (2 + PANEL * len(measures), 0.8 + ROW * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            _draw(axes, measure, list(results.conditions.values()))
        panels[0].set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
        panels[0].invert_yaxis()
        figure.supxlabel("mean, 95 % interval for new seeds and new problems", fontsize="medium")
        return figure


def _draw(axes: Axes, measure: str, conditions: Sequence[ConditionResult]) -> None:
    axes.set_title(measure)
    for place, condition in enumerate(conditions):
        summary = condition.measures[measure]
        low, high = summary.new_problems or (summary.mean, summary.mean)
        axes.plot([low, high], [place, place], color=COLOURS[0])
        axes.plot(summary.mean, place, color=COLOURS[0], marker="o", markersize=5)
