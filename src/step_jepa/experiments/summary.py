"""Finished runs -> results: conditions, free baselines, and comparisons with Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import numpy as np

from step_jepa.errors import UserError
from step_jepa.experiments.contrasts import Contrast
from step_jepa.experiments.results import (
    About,
    ComparisonResult,
    ConditionResult,
    ExperimentResults,
    FreeFigure,
    FreeFigures,
)
from step_jepa.experiments.run import RunResult, Seconds
from step_jepa.statistics import power, sentences, significance
from step_jepa.statistics.bootstrap import bootstrap
from step_jepa.statistics.differences import Difference, summary

BOOTSTRAP_SEED = 42


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
        measures={measure: summary(table, name) for measure, table in tables.items()},
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
            figure = FreeFigure(*bootstrap(scores, np.arange(len(scores)), BOOTSTRAP_SEED))
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
    adjusted = significance.holm(others)
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
        detectable = power.detectable(variances, len(difference.seeds), problems, comparisons=comparisons)
        if difference.difference:
            effect = difference.difference
            seeds_needed = power.seeds_needed(variances, problems, effect, comparisons=comparisons)
    return ComparisonResult(
        measure=measure,
        primary=primary,
        difference=difference,
        holm=holm,
        detectable=detectable,
        seeds_needed=seeds_needed,
        sentence=sentences.sentence(difference, holm, comparisons),
        sign_flips=sentences.sign_flip_sentence(difference),
    )
