"""The results of an experiment as tables."""

from math import isfinite

from step_jepa import markdown
from step_jepa.evaluation.texts import ERRORS
from step_jepa.experiments.results import ComparisonResult, ExperimentResults
from step_jepa.plurals import counted
from step_jepa.statistics.significance import Interval


def conditions_table(results: ExperimentResults, measure: str) -> markdown.Rows:
    """Means over seeds and problems with their intervals, and what is free beside them."""
    rows = [["arm", "seeds", "mean", "sd over seeds", "95 %, new seeds", "95 %, new seeds and problems"]]
    for name, condition in results.conditions.items():
        summary = condition.measures[measure]
        intervals = [_interval(summary.same_problems), _interval(summary.new_problems)]
        rows.append([name, str(summary.seeds), f"{summary.mean:.4f}", _number(summary.sd), *intervals])
    for scorer, figure in results.free.get(measure, {}).items():
        interval = f"{_interval((figure.low, figure.high))} (new problems)"
        rows.append([f"free: {scorer}", "", f"{figure.value:.4f}", "", "", interval])
    return rows


def costs_table(results: ExperimentResults) -> markdown.Rows:
    """Of every condition the means over seeds of losses, answers, of whole texts also by kind of error, and costs."""
    kinds = [kind for kind in ERRORS if all(kind in each.figures for each in results.conditions.values())]
    errors = [f"wrong: {kind.replace('_', ' ')}" for kind in kinds]
    rows = [["arm", "LM loss", "answers cut off", *errors, "steps", "tokens", "FLOPs", "s of training"]]
    for name, condition in results.conditions.items():
        row = [
            name,
            _number(condition.figures["lm_loss"]),
            *(f"{condition.figures[figure]:.1f}" for figure in ("truncated", *kinds)),
            f"{condition.steps:.0f}",
            f"{condition.tokens:.3g}",
            f"{condition.flops:.3g}",
            f"{condition.seconds.train:.0f}",
        ]
        rows.append(row)
    return rows


def comparisons_table(results: ExperimentResults, measure: str) -> markdown.Rows:
    """Paired differences; the first interval, p and Holm's p are for new seeds and new problems."""
    decisive = ["value", "95 %, new seeds and problems", "p", "p, Holm"]
    others = ["95 %, new seeds", "bootstrap", "sign flips", "could be seen", "seeds needed"]
    rows = [["difference", *decisive, *others]]
    for comparison in results.comparisons:
        if comparison.measure == measure:
            rows.append(_comparison_row(comparison))
    return rows


def _comparison_row(comparison: ComparisonResult) -> list[str]:
    difference = comparison.difference
    mark = " (primary)" if comparison.primary else ""
    return [
        f"{difference.condition} - {difference.baseline}{mark}",
        f"{difference.difference:+.4f}",
        _interval(difference.new_problems),
        _p(difference.p),
        _p(comparison.holm),
        _interval(difference.same_problems),
        _interval(difference.bootstrap),
        _p(difference.sign_flip_p),
        _number(comparison.detectable),
        "-" if comparison.seeds_needed is None else str(comparison.seeds_needed),
    ]


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _number(value: float | None) -> str:
    return "-" if value is None or not isfinite(value) else f"{value:.4f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# On the terminal


def arms_rows(results: ExperimentResults) -> dict[str, str]:
    """The arms by the first measure."""
    measure, rows = results.measures[0], {}
    for name, condition in results.conditions.items():
        summary = condition.measures[measure]
        rows[name] = f"{measure} {summary.mean:.4f} {_interval(summary.new_problems)}, {counted(summary.seeds, 'seed')}"
    return rows
