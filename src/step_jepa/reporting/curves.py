"""Training curves: what runs logged, aligned by optimisation step."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from step_jepa.plots import COLOURS, DASHES, MARKERS, style
from step_jepa.reporting.findings import Run


@dataclass(frozen=True)
class Quantity:
    """title    of the chart
    logged   name of each line, and under which name the trainer logs it
    options  of `train` that have it logged
    """

    title: str
    logged: dict[str, str]
    options: str


LEGEND = 0.17  # inches of a line of it
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
    """One line of a chart: (optimisation step, value) of each point; `run` and `series` number what it tells apart."""

    name: str
    points: list[tuple[int, float]]
    run: int
    series: int


def lines(quantity: Quantity, runs: Sequence[Run]) -> list[Line]:
    """Those of the runs that logged it."""
    found = []
    for place, run in enumerate(runs):
        for series, (name, logged) in enumerate(quantity.logged.items()):
            if points := run.points(logged):
                label = name if len(runs) == 1 else f"{run.name}, {name}"
                found.append(Line(label, points, place, series))
    return found


def chart(shown: Sequence[Line]) -> Figure:
    """Runs differ by colour and marker, what is measured of a run by dashes and filling."""
    with style():
        several = len({line.run for line in shown}) > 1
        figure = Figure(figsize=(3.4, 2.2 + LEGEND * len(shown) * several), layout="constrained")
        axes = figure.add_subplot(xlabel="optimisation step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line in shown:
            look = line.run if several else line.series
            axes.plot(
                *zip(*line.points, strict=True),
                label=line.name.replace("$", r"\$"),
                color=COLOURS[look % len(COLOURS)],
                marker=MARKERS[look % len(MARKERS)],
                linestyle=DASHES[line.series % len(DASHES)],
                fillstyle="none" if line.series else "full",
                markersize=5,
            )
        if len(shown) > 1:
            figure.legend(loc="outside lower left", ncols=2 if not several else 1)
        return figure


def table(shown: Sequence[Line]) -> list[list[str]]:
    """The same figures: a row for each step at which any line has a point, a column for each line."""
    values = [dict(line.points) for line in shown]
    steps = sorted({step for own in values for step in own})
    return [[str(step), *(f"{own[step]:.4g}" if step in own else "" for own in values)] for step in steps]
