"""Experiments: the verdict, of each measure the differences between arms and the arms' means, and the runs."""

from typing import Any

from step_jepa.experiments.conclusions import conclusions
from step_jepa.experiments.files import NOTES
from step_jepa.experiments.results import ComparisonResult, ExperimentResults
from step_jepa.experiments.tables import comparisons_table, conditions_table, costs_table
from step_jepa.reporting.dots import BASELINE, TRAINED, Dot, DotPlot
from step_jepa.reporting.runs import Experiment


def experiment_section(experiment: Experiment) -> dict[str, Any]:
    """What the page shows of an experiment; the sentence that closes it first, where there is one, as `ab` has."""
    results = ExperimentResults.from_json(experiment.results)
    return {
        "about": results.about,
        "verdict": results.about.closing or conclusions(results),
        "conclusions": conclusions(results) if results.about.closing else [],
        "measures": [_measure_section(measure, results) for measure in results.measures],
        "costs": costs_table(results),
        "runs": [list(map(_shortened, row)) for row in experiment.table],
        "notes": NOTES,
    }


def _measure_section(measure: str, results: ExperimentResults) -> dict[str, Any]:
    """`plot` is None where nothing can be compared yet."""
    primary_first = sorted(results.comparisons, key=lambda comparison: not comparison.primary)
    dots = [_dot(comparison) for comparison in primary_first if comparison.measure == measure]
    title = f"Differences of {measure.replace('_', ' ')}, 95 % for new seeds and problems"
    return {
        "name": measure.replace("_", " "),
        "plot": DotPlot(title, dots, (0, "no difference")) if dots else None,
        "arms": conditions_table(results, measure),
        "differences": comparisons_table(results, measure),
    }


def _dot(comparison: ComparisonResult) -> Dot:
    """The one that was named beforehand stands out."""
    found = comparison.difference
    low, high = found.new_problems or (found.difference, found.difference)
    interval = f" [{low:+.3f}, {high:+.3f}]" if found.new_problems else ""
    label = f"{found.condition} - {found.baseline}{' (primary)' if comparison.primary else ''}"
    kind = TRAINED if comparison.primary else BASELINE
    return Dot(label, found.difference, low, high, f"{found.difference:+.3f}{interval}", kind)


def _shortened(cell: str) -> str:
    """Numbers of results.csv have all their digits."""
    try:
        return f"{float(cell):.4g}" if "." in cell else cell
    except ValueError:
        return cell
