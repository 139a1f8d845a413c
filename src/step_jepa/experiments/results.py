"""What the finished runs of an experiment say: results.json, results.csv and results.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from step_jepa import markdown, statistics
from step_jepa.errors import UserError
from step_jepa.evaluation.texts import ERRORS
from step_jepa.experiments.design import ACCURACY, RESULTS_CSV, RESULTS_TEXT, Contrast
from step_jepa.experiments.run import RunResult, Seconds
from step_jepa.run_files import RESULTS_FILE, read_json, write_json, write_whole
from step_jepa.statistics import ALPHA, Components, ConditionSummary, Difference, Interval

MANY = 0.5  # of an arm's answers, cut off
EXTREME = 0.02  # accuracies that are so near to 0 or to 1 can show no difference
BOOTSTRAP_SEED = 42
NOTES = {
    "new seeds and problems": "by variance components; p and Holm's p belong to it; decide by it",
    "new seeds": "on these very problems: a paired t over seeds, which says nothing of other problems",
    "bootstrap": "percentiles over seeds and problems, drawn independently; too narrow with few seeds",
    "sign flips": "p of the exact test over seeds, on these very problems; none where so few cannot reject at 5 %",
    "free": "what needs no view, by bootstrap over problems; `embedding` is of the baseline arm's models",
    "p, Holm": "over all comparisons here but the primary one, which was named beforehand and stands alone",
    "could be seen": "the difference that they show with 80 % power, given their variances, as the first by Holm; the "
    "primary one alone",
    "seeds needed": "for a difference as large as the observed one, which is itself uncertain",
}

FreeFigures = dict[str, dict[str, "FreeFigure"]]  # by measure and free baseline


@dataclass(frozen=True)
class About:
    """What was run, when and where; `power` is what could be shown, stated before, `missing` are unfinished runs,
    `closing` is said last."""

    name: str
    date: str
    command: str
    machine: str
    seeds: list[int]
    power: str
    missing: list[str]
    closing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConditionResult:
    """Of one condition: a summary of each measure, and means over runs; a figure that a run lacks is None."""

    measures: dict[str, ConditionSummary]
    figures: dict[str, float | None]
    steps: float
    tokens: float
    flops: float
    seconds: Seconds


@dataclass(frozen=True)
class FreeFigure:
    """The mean of a free baseline over problems, and its 95 % interval for new problems."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison on a measure; holm is its p-value after Holm over all comparisons of the experiment but the primary
    one, which has none, detectable and seeds_needed follow from its own variances. None where they cannot be had."""

    measure: str
    primary: bool
    difference: Difference
    holm: float | None
    detectable: float | None
    seeds_needed: int | None
    sentence: str
    sign_flips: str

    @property
    def shows_difference(self) -> bool:
        """Whether it rejects, after Holm unless it is the primary one."""
        decisive = self.difference.p if self.primary else self.holm
        return decisive is not None and decisive <= ALPHA


@dataclass(frozen=True)
class ExperimentResults:
    """All that results.json holds, where `conditions` are called arms; `free` is of the primary baseline's runs."""

    about: About
    measures: list[str]
    conditions: dict[str, ConditionResult]
    free: FreeFigures
    comparisons: list[ComparisonResult]

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return {
            **content["about"],
            "measures": self.measures,
            "arms": content["conditions"],
            "free": content["free"],
            "comparisons": [_comparison_to_json(comparison) for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ExperimentResults":
        free: FreeFigures = {}
        for measure, scorers in content["free"].items():
            free[measure] = {scorer: FreeFigure(**figure) for scorer, figure in scorers.items()}
        return cls(
            about=About(**{each.name: content[each.name] for each in fields(About) if each.name in content}),
            measures=content["measures"],
            conditions={name: _condition_from_json(condition) for name, condition in content["arms"].items()},
            free=free,
            comparisons=[_comparison_from_json(comparison) for comparison in content["comparisons"]],
        )


def _condition_from_json(content: Mapping[str, Any]) -> ConditionResult:
    measures = {name: ConditionSummary(**_tuples(summary)) for name, summary in content["measures"].items()}
    return ConditionResult(**{**content, "measures": measures, "seconds": Seconds(**content["seconds"])})


def _comparison_to_json(comparison: ComparisonResult) -> dict[str, Any]:
    """The difference is called found, and its condition arm."""
    renamed = {"difference": "found"}
    content = {renamed.get(name, name): value for name, value in asdict(comparison).items()}
    condition = content["found"].pop("condition")
    content["found"] = {"arm": condition, **content["found"]}
    return content


def _comparison_from_json(content: Mapping[str, Any]) -> ComparisonResult:
    others = {name: value for name, value in content.items() if name != "found"}
    figures = _tuples(content["found"])
    figures["condition"] = figures.pop("arm")
    if figures["components"] is not None:
        figures["components"] = Components(**figures["components"])
    return ComparisonResult(difference=Difference(**figures), **others)


def _tuples(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals and seeds are tuples, which JSON does not know."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in figures.items()}


def read_results(folder: Path) -> ExperimentResults:
    """Of the experiment in this folder. Raises UserError for a file that is not JSON."""
    return ExperimentResults.from_json(read_json(folder / RESULTS_FILE))


# From runs to results


def score_tables(runs: Sequence[RunResult], measures: Sequence[str]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """measure -> condition -> seed -> a score for each problem. Raises UserError where a run lacks a measure."""
    tables: dict[str, dict[str, dict[int, list[float]]]] = {measure: {} for measure in measures}
    for run in runs:
        for measure in measures:
            if measure not in run.measures:
                reason = "its answers are nearly all right, or nearly all wrong: leave that out of measures"
                raise UserError(f"{run.condition}, seed {run.seed}, has no {measure}: {reason}")
            tables[measure].setdefault(run.condition, {})[run.seed] = run.measures[measure]
    return tables


def summarise(
    runs: Sequence[RunResult],
    measures: Sequence[str],
    comparisons: Sequence[Contrast],
    primary: Contrast,
    about: About,
) -> ExperimentResults:
    """The results of finished runs.

    Args:
        runs: at least one.
        measures: what is compared; `primary` decides by the first.
        comparisons: of conditions that have a seed in common.
        primary: one of them, or one that cannot be made yet.
        about: goes into the results as it is.
    """
    tables = score_tables(runs, measures)
    by_condition: dict[str, list[RunResult]] = {}
    for run in runs:
        by_condition.setdefault(run.condition, []).append(run)
    return ExperimentResults(
        about=about,
        measures=list(measures),
        conditions={name: _condition_result(name, of_condition, tables) for name, of_condition in by_condition.items()},
        free=_free_figures(by_condition.get(primary.conditions[-1], []), measures),
        comparisons=_compared(tables, comparisons, (measures[0], primary)),
    )


def _condition_result(name: str, runs: Sequence[RunResult], tables: Mapping[str, Any]) -> ConditionResult:
    return ConditionResult(
        measures={measure: statistics.summary(table, name) for measure, table in tables.items()},
        figures={figure: _mean_figure(runs, figure) for figure in runs[0].figures},
        steps=mean(run.steps for run in runs),
        tokens=mean(run.tokens for run in runs),
        flops=mean(run.flops for run in runs),
        seconds=Seconds(
            train=mean(run.seconds.train for run in runs),
            answer=mean(run.seconds.answer for run in runs),
            all=mean(run.seconds.all for run in runs),
        ),
    )


def _mean_figure(runs: Sequence[RunResult], name: str) -> float | None:
    values = [value for run in runs if (value := run.figures.get(name)) is not None]
    return mean(values) if len(values) == len(runs) else None


def _free_figures(runs: Sequence[RunResult], measures: Sequence[str]) -> FreeFigures:
    """Most know no model, so that seeds are no source of chance: the interval resamples problems."""
    figures: FreeFigures = {}
    for measure in measures:
        by_seed = [run.free.get(measure.removesuffix("_to_base"), {}) for run in runs]
        for scorer in by_seed[0] if by_seed else {}:
            scores = np.mean([scorers[scorer] for scorers in by_seed], 0)
            figure = FreeFigure(*statistics.bootstrap(scores, np.arange(len(scores)), BOOTSTRAP_SEED))
            figures.setdefault(measure, {})[scorer] = figure
    return figures


def _compared(
    tables: Mapping[str, Any], comparisons: Sequence[Contrast], primary: tuple[str, Contrast]
) -> list[ComparisonResult]:
    """Every comparison on every measure; `primary` is one of these pairs. It was named beforehand and decides alone;
    Holm's family are the others."""
    differences: dict[tuple[str, Contrast], Difference] = {}
    for measure, table in tables.items():
        for comparison in comparisons:
            differences[measure, comparison] = comparison.difference(table)
    others = {key: difference.p for key, difference in differences.items() if key != primary}
    adjusted = statistics.holm(others)
    results = []
    for key, difference in differences.items():
        if key == primary:
            results.append(_comparison_result(key[0], True, difference, None, 1))
        else:
            results.append(_comparison_result(key[0], False, difference, adjusted[key], len(others)))
    return results


def _comparison_result(
    measure: str, primary: bool, difference: Difference, holm: float | None, comparisons: int
) -> ComparisonResult:
    variances, problems = difference.components, difference.problems
    detectable = seeds_needed = None
    if variances is not None and sum(asdict(variances).values()) > 0:
        detectable = statistics.detectable(variances, len(difference.seeds), problems, comparisons=comparisons)
        if difference.difference:
            effect = difference.difference
            seeds_needed = statistics.seeds_needed(variances, problems, effect, comparisons=comparisons)
    return ComparisonResult(
        measure=measure,
        primary=primary,
        difference=difference,
        holm=holm,
        detectable=detectable,
        seeds_needed=seeds_needed,
        sentence=statistics.sentence(difference, holm, comparisons),
        sign_flips=statistics.sign_flip_sentence(difference),
    )


# Tables


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
        rows[name] = f"{measure} {summary.mean:.4f} {_interval(summary.new_problems)}, {summary.seeds} seeds"
    return rows


# In words


def primary_sentence(results: ExperimentResults) -> str:
    """What came of the comparison that was named beforehand."""
    found = [comparison for comparison in results.comparisons if comparison.primary]
    return (
        " ".join(f"{each.measure}, {each.sentence}" for each in found) or "The primary comparison cannot be made yet."
    )


def conclusions(results: ExperimentResults) -> list[str]:
    """A sentence for the primary comparison and for every one that shows a difference; how many do not; and one where
    accuracy is at its floor or ceiling."""
    sentences = extremes(results.conditions)
    others = [comparison for comparison in results.comparisons if not comparison.primary]
    shown = [comparison for comparison in others if comparison.shows_difference]
    for comparison in results.comparisons:
        if comparison.primary:
            sign_flips = comparison.sign_flips.capitalize()
            sentences.append(f"Primary. {comparison.measure}, {comparison.sentence} {sign_flips}")
    sentences += [f"{comparison.measure}, {comparison.sentence}" for comparison in shown]
    if count := len(others) - len(shown):
        of = f"{count} of the other {len(others)} comparisons"
        sentences.append(f"No difference is shown by {of}; see their intervals.")
    return sentences


def extremes(conditions: Mapping[str, ConditionResult]) -> list[str]:
    """A sentence where all conditions solve next to nothing, or next to everything."""
    scores = []
    for condition in conditions.values():
        if ACCURACY in condition.measures:
            scores.append(condition.measures[ACCURACY].mean)
    unseen = "where no difference can be seen"
    if scores and max(scores) < EXTREME:
        return [f"Every arm solves next to nothing, {unseen}: {_remedy(conditions)}."]
    if scores and min(scores) > 1 - EXTREME:
        return [f"Every arm solves next to everything, {unseen}: take harder problems."]
    return []


def _remedy(conditions: Mapping[str, ConditionResult]) -> str:
    """Where next to nothing is solved."""
    shares = [_share_cut_off(condition) for condition in conditions.values()]
    if max(shares) < MANY:
        return "take easier problems, or train longer"
    longest = max(condition.figures.get("longest_solution") or 0 for condition in conditions.values())
    enough = f" (the longest solution of the test file has {longest:.0f} tokens)" if longest else ""
    return f"up to {max(shares):.0%} of an arm's answers are cut off: raise max_new_tokens{enough}"


def _share_cut_off(condition: ConditionResult) -> float:
    return (condition.figures.get("truncated") or 0) / condition.measures[ACCURACY].problems


# Files


def write_results(results: ExperimentResults, runs: Sequence[RunResult], folder: Path) -> None:
    """results.json, results.csv (a row for each run) and results.md."""
    write_json(folder / RESULTS_FILE, results.to_json())
    write_whole(folder / RESULTS_CSV, _csv(runs, results.measures))
    write_whole(folder / RESULTS_TEXT, _markdown(results))


def _csv(runs: Sequence[RunResult], measures: Sequence[str]) -> str:
    text = io.StringIO()
    figures = list(runs[0].figures)
    seconds = [each.name for each in fields(Seconds)]
    heads = ["arm", "seed", *measures, *figures, "steps", "tokens", "flops", *(f"seconds_{name}" for name in seconds)]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(heads)
    for run in runs:
        scores = [mean(run.measures[measure]) for measure in measures]
        costs = [run.steps, run.tokens, run.flops, run.seconds.train, run.seconds.answer, run.seconds.all]
        rows.writerow([run.condition, run.seed, *scores, *(run.figures[name] for name in figures), *costs])
    return text.getvalue()


def _markdown(results: ExperimentResults) -> str:
    about = results.about
    parts = [f"# {about.name}", f"{about.date}. `{about.command}`. {about.machine}.", about.power]
    if about.missing:
        parts.append(f"Not finished, and left out: {', '.join(about.missing)}.")
    for measure in results.measures:
        parts += [f"## {measure}", markdown.table(conditions_table(results, measure))]
        parts += [markdown.table(comparisons_table(results, measure))]
    parts += ["## Losses and costs", markdown.table(costs_table(results))]
    parts += ["## In words", markdown.bullets([*conclusions(results), *about.closing])]
    notes = [f"**{name}**: {meaning}" for name, meaning in NOTES.items()]
    parts += ["## How to read it", markdown.bullets(notes)]
    return "\n\n".join(parts) + "\n"
