"""Experiments: of each measure its tables, and a picture of the differences between arms with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from step_jepa.experiments.results import (
    NOTES,
    ExperimentResults,
    comparisons_table,
    conclusions,
    conditions_table,
    costs_table,
)
from step_jepa.plots import COLOURS, InlineFigures, style

ROW = 0.24  # inches of a line of the chart


def experiment_section(folder: str, results: Mapping[str, Any], figures: InlineFigures) -> dict[str, Any]:
    """What the page shows of a results.json: for each measure the two tables of results.md, and a picture."""
    typed = ExperimentResults.from_json(results)
    return {
        "folder": folder,
        "results": results,
        "measures": [_measure_section(measure, results, typed, figures) for measure in results["measures"]],
        "costs": costs_table(typed),
        "words": [*conclusions(typed), *typed.about.closing],
        "notes": NOTES,
    }


def _measure_section(
    measure: str, results: Mapping[str, Any], typed: ExperimentResults, figures: InlineFigures
) -> dict[str, Any]:
    comparisons = [each for each in results["comparisons"] if each["measure"] == measure]
    description = f"differences of {measure} between arms, with their intervals"
    return {
        "name": measure,
        "arms": conditions_table(typed, measure),
        "differences": comparisons_table(typed, measure),
        "svg": figures.svg(forest_chart(comparisons), description) if comparisons else None,
    }


def forest_chart(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """Of one measure, from results.json: 95 % for new seeds and new problems; the primary one is a filled square."""
    with style():
        figure = Figure(figsize=(6.4, 0.9 + ROW * len(comparisons)), layout="constrained")
        axes = figure.add_subplot(xlabel="arm minus the other, 95 % interval for new seeds and new problems")
        axes.axvline(0, color=COLOURS[-1], linewidth=1)
        for place, comparison in enumerate(comparisons):
            difference = comparison["found"]["difference"]
            low, high = comparison["found"]["new_problems"] or (difference, difference)
            axes.plot([low, high], [place, place], color=COLOURS[0])
            marker, fill = ("s", "full") if comparison["primary"] else ("o", "none")
            axes.plot(difference, place, color=COLOURS[0], marker=marker, fillstyle=fill, markersize=5)
        axes.set_yticks(range(len(comparisons)), [_name(comparison["found"]) for comparison in comparisons])
        axes.invert_yaxis()
        return figure


def _name(difference: Mapping[str, Any]) -> str:
    # A bare dollar sign would begin a formula.
    return f"{difference['arm']} - {difference['baseline']}".replace("$", r"\$")
