"""What a summary says, as tables on the terminal and as a picture."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from step_jepa.plots import COLOURS, style
from step_jepa.plurals import counted
from step_jepa.surprise.localisation import MINUS
from step_jepa.surprise.scores import LATENT

ROW, WIDTH = 0.24, 4.2  # inches


def summary_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The means; and what tells wrong answers and first wrong steps, where these are known."""
    tables = [_means(summary)]
    if summary["right_against_wrong"]:
        tables.append(
            _table(
                "wrong answers against right ones: area under the ROC curve (.5: told by chance)",
                summary["right_against_wrong"],
                summary["beyond_free"],
            )
        )
    if summary["located"]:
        located = {name: figures["located"] for name, figures in _either_sign(summary["located"]).items()}
        table = _table("first wrong step: has it the greatest score", located, summary["located_beyond_free"])
        table.caption = (
            f"{counted(summary['errors'], 'answer')} with an error; "
            f"shuffled among an answer's steps: {summary['chance']:.3f}; "
            f"left out: {summary['left_out']}; F1 and both signs: summary.json"
        )
        tables.append(table)
    return tables


def _means(summary: Mapping[str, Any]) -> Table:
    counts = f"{counted(summary['answers'], 'answer')}, {counted(summary['steps'], 'step')}"
    title = f"{counts} ({summary['predicted']} predicted)"
    table = Table("score", "mean over steps", title=title)
    for name, value in summary["means"].items():
        table.add_row(name, "-" if value is None else f"{value:.3f}")
    return table


def _either_sign(located: Mapping[str, Any]) -> dict[str, Any]:
    """Without the scores that are taken with the other sign."""
    return {name: figures for name, figures in located.items() if not name.startswith(MINUS)}


def _table(title: str, figures: Mapping[str, Any], beyond: Mapping[str, Any]) -> Table:
    table = Table("score", "value", "95 % interval", "gain over likelihood and all else that is free", title=title)
    for name, figure in figures.items():
        gain = beyond.get(name)
        gained = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else ""
        table.add_row(name, f"{figure['value']:.3f}", f"[{figure['low']:.3f}, {figure['high']:.3f}]", gained)
    return table


def picture(summary: Mapping[str, Any]) -> Figure:
    """A panel for what there is: wrong answers against right ones, first wrong steps; or the means of the scores."""
    panels = {}
    if summary["right_against_wrong"]:
        panels["wrong answers against right ones (area; .5: nothing)"] = (summary["right_against_wrong"], 0.5)
    if summary["located"]:
        located = {name: figures["located"] for name, figures in _either_sign(summary["located"]).items()}
        panels["first wrong step has the greatest score (line: shuffled)"] = (located, summary["chance"])
    if not panels:
        means = {name: {"value": value, "low": value, "high": value} for name, value in summary["means"].items()}
        panels["mean over steps"] = (means, 0.0)
    with style():
        most = max(len(figures) for figures, _ in panels.values())
        figure = Figure(figsize=(WIDTH * len(panels) + 1, 0.8 + ROW * most), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for each, (title, (figures, nothing)) in zip(axes, panels.items(), strict=True):
            _draw(each, title, figures, nothing)
        return figure


def _draw(axes: Axes, title: str, figures: Mapping[str, Any], nothing: float) -> None:
    known = {name: figure for name, figure in figures.items() if figure["value"] is not None}
    axes.set_title(title)
    axes.axvline(nothing, color=COLOURS[-1], linestyle="--")
    for place, (name, figure) in enumerate(known.items()):
        colour = COLOURS[1] if name.removesuffix("_max") in LATENT else COLOURS[0]
        axes.plot([figure["low"], figure["high"]], [place, place], color=colour)
        axes.plot(figure["value"], place, color=colour, marker="o", markersize=5)
    axes.set_yticks(range(len(known)), list(known))
    axes.invert_yaxis()
