"""Training curves: what runs logged, aligned by optimisation step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from step_jepa.plots import COLOURS, DASHES, MARKERS, InlineFigures, style
from step_jepa.reporting.runs import Run


@dataclass(frozen=True)
class Quantity:
    """What one chart is of.

    title     of the chart
    metrics   name of each line, and the metric as the trainer logs it
    options   of `train` that have it logged
    """

    title: str
    metrics: dict[str, str]
    options: str


LEGEND_LINE = 0.205  # inches, of the font and the spacing between lines
HELD_OUT = "--eval_file F --diagnostics_steps 10"
QUANTITIES = (
    Quantity(
        "Language-model loss",
        {"training": "lm_loss", "held out": "eval_lm_loss"},
        "--logging_steps 1",
    ),
    Quantity(
        "JEPA loss",
        {"training": "jepa_loss", "held out": "diagnostics_jepa_loss"},
        "--objective step_jepa --logging_steps 1",
    ),
    Quantity(
        "Cosine of held-out views",
        {"paired": "diagnostics_cosine_paired", "unpaired": "diagnostics_cosine_unpaired"},
        HELD_OUT,
    ),
    Quantity(
        "Effective rank of held-out views",
        {"predicted": "diagnostics_rank_predicted", "target": "diagnostics_rank_target"},
        HELD_OUT,
    ),
    Quantity("Tokens per second", {"training": "tokens_per_second"}, "--approach adapted --logging_steps 1"),
)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    points   (optimisation step, value) each
    run      number of the run, which tells its lines from those of others
    metric   number of the metric within the chart
    """

    name: str
    points: list[tuple[int, float]]
    run: int
    metric: int


def curve_section(quantity: Quantity, runs: Sequence[Run], figures: InlineFigures) -> dict[str, Any]:
    """What the page shows of a quantity: a chart, None where it was not logged, and the same figures as a table."""
    shown = lines(quantity, runs)
    description = f"{quantity.title} by optimisation step: {'; '.join(line.name for line in shown)}"
    return {
        "quantity": quantity,
        "lines": shown,
        "svg": figures.svg(line_chart(shown), description) if shown else None,
        "table": points_table(shown),
    }


def lines(quantity: Quantity, runs: Sequence[Run]) -> list[Line]:
    """Those of the runs that logged the quantity."""
    shown = []
    for run_number, run in enumerate(runs):
        for metric_number, (name, metric) in enumerate(quantity.metrics.items()):
            if points := run.points(metric):
                label = name if len(runs) == 1 else f"{run.name}, {name}"
                shown.append(Line(label, points, run_number, metric_number))
    return shown


def line_chart(shown: Sequence[Line]) -> Figure:
    """Runs differ by colour and marker, metrics of a run by dashes and filling."""
    with style():
        several_runs = len({line.run for line in shown}) > 1
        legend_height = LEGEND_LINE * len(shown) if several_runs else 0
        figure = Figure(figsize=(3.4, 2.2 + legend_height), layout="constrained")
        axes = figure.add_subplot(xlabel="optimisation step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line in shown:
            look = line.run if several_runs else line.metric
            axes.plot(
                *zip(*line.points, strict=True),
                label=line.name.replace("$", r"\$"),  # a bare one would begin a formula
                color=COLOURS[look % len(COLOURS)],
                marker=MARKERS[look % len(MARKERS)],
                linestyle=DASHES[line.metric % len(DASHES)],
                fillstyle="none" if line.metric else "full",
                markersize=5,
            )
        if len(shown) > 1:
            figure.legend(loc="outside lower left", ncols=1 if several_runs else 2)
        return figure


def points_table(shown: Sequence[Line]) -> list[list[str]]:
    """A row for each optimisation step at which any line has a point, a column for each line; empty for no point."""
    value_by_step = [dict(line.points) for line in shown]
    steps = sorted(set().union(*value_by_step))
    return [[str(step), *_values_at(step, value_by_step)] for step in steps]


def _values_at(step: int, value_by_step: Sequence[dict[int, float]]) -> list[str]:
    return [f"{values[step]:.4g}" if step in values else "" for values in value_by_step]
