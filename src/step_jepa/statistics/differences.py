"""Scores of conditions over seeds and problems -> a summary of each, and paired differences.

Conditions are paired by seed: same initialisation, same order of data, same problems. Plain numbers; no model is known.
Axes: S seeds, P problems.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from step_jepa.errors import UserError
from step_jepa.statistics.bootstrap import two_way_bootstrap
from step_jepa.statistics.significance import Interval, sign_flip, tested_for_new_problems, tested_for_new_seeds
from step_jepa.statistics.variance import Array, Components, components

ScoresBySeed = Mapping[int, Sequence[float]]  # seed -> a score for each problem, the same problems for every seed
ScoreTable = Mapping[str, ScoresBySeed]  # by condition


@dataclass(frozen=True)
class ConditionSummary:
    """The mean score of a condition, and sd, the standard deviation of its means over seeds (None with one seed).

    Its intervals are as in `Difference`; for 0/1 scores they can reach beyond 0 and 1.
    """

    seeds: int
    problems: int
    mean: float
    sd: float | None
    new_problems: Interval | None
    same_problems: Interval | None


@dataclass(frozen=True)
class Difference:
    """Condition minus baseline, over the seeds that both have. What cannot be had is None: see `difference`.

    seeds, left_out        seeds that both have; seeds that only one has
    problems               how many
    difference, by_seed    over all, and for each of `seeds`
    new_problems, p        interval and p-value for new seeds and new problems (`two_way`): the ones to decide by
    same_problems, same_problems_p
                           paired t over seeds: for new seeds on these very problems, whatever is true of others
    sign_flip_p            the exact test of the same, by flipping signs of by_seed
    bootstrap              `two_way_bootstrap` over seeds and problems; too narrow with few seeds
    components             variances, for `detectable` and `seeds_needed`
    """

    condition: str
    baseline: str
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    problems: int
    difference: float
    by_seed: tuple[float, ...]
    new_problems: Interval | None
    p: float | None
    same_problems: Interval | None
    same_problems_p: float | None
    sign_flip_p: float | None
    bootstrap: Interval | None
    components: Components | None


def summary(table: ScoreTable, condition: str) -> ConditionSummary:
    """The figures of one condition. Raises UserError for scores that are missing or not finite."""
    scores = np.stack(list(_checked_scores(table, condition).values()))
    seeds, problems = scores.shape
    means = scores.mean(1)
    return ConditionSummary(
        seeds=seeds,
        problems=problems,
        mean=float(scores.mean()),
        sd=float(means.std(ddof=1)) if seeds > 1 else None,
        new_problems=tested_for_new_problems(scores).interval,
        same_problems=tested_for_new_seeds(means).interval,
    )


def difference(table: ScoreTable, condition: str, baseline: str, *, seed: int = 42) -> Difference:
    """Condition minus baseline, paired by seed and problem.

    With one seed nothing is known of seeds, with one problem nothing of problems, and without any variance no interval
    can be made: such fields are None.

    Args:
        table: scores of the two, and of any others.
        condition: its name in the table.
        baseline: the name of what is taken from it.
        seed: of the bootstrap's draws.

    Raises:
        UserError: for scores that are missing or not finite, and where the two have no seed in common.
    """
    return _contrast(table, (condition, baseline), {condition: 1, baseline: -1}, seed)


def interaction(table: ScoreTable, first: tuple[str, str], second: tuple[str, str], *, seed: int = 42) -> Difference:
    """What another factor changes in a difference: (condition minus baseline) of `first`, less that of `second`.

    The four scores of a seed and problem make one number, and these are tested as those of `difference` are: nothing is
    taken for equal in the four.

    Args:
        table: scores of the four, and of any others.
        first: condition and baseline at one level of the other factor.
        second: the same at its other level.
        seed: of the bootstrap's draws.

    Raises:
        UserError: for scores that are missing or not finite, and where the four have no seed in common.
    """
    names = (_in_brackets(*first), _in_brackets(*second))
    weights: Counter[str] = Counter()
    for (condition, baseline), sign in ((first, 1), (second, -1)):
        weights[condition] += sign
        weights[baseline] -= sign
    return _contrast(table, names, weights, seed)


def _in_brackets(condition: str, baseline: str) -> str:
    return f"({condition} - {baseline})"


def _contrast(table: ScoreTable, names: tuple[str, str], weights: Mapping[str, int], seed: int) -> Difference:
    """Of the weighted sum of scores, the two names being what `weights` makes a difference of."""
    scores = {condition: _checked_scores(table, condition) for condition in weights}
    seeds_of = [by_seed.keys() for by_seed in scores.values()]
    seeds = sorted(set.intersection(*map(set, seeds_of)))
    if not seeds:
        raise UserError(f"{names[0]} and {names[1]} have no seed in common: run all of them with the same seeds")
    values = np.stack([sum(weight * scores[name][each] for name, weight in weights.items()) for each in seeds])
    by_seed = values.mean(1)
    new_problems, same_problems = tested_for_new_problems(values), tested_for_new_seeds(by_seed)
    varies = new_problems.interval is not None
    return Difference(
        condition=names[0],
        baseline=names[1],
        seeds=tuple(seeds),
        left_out=tuple(sorted(set.union(*map(set, seeds_of)) - set(seeds))),
        problems=values.shape[1],
        difference=float(values.mean()),
        by_seed=tuple(by_seed.tolist()),
        new_problems=new_problems.interval,
        p=new_problems.p,
        same_problems=same_problems.interval,
        same_problems_p=same_problems.p,
        sign_flip_p=sign_flip(by_seed),
        bootstrap=two_way_bootstrap(values, seed) if varies else None,
        components=components(values) if varies else None,
    )


def _checked_scores(table: ScoreTable, condition: str) -> dict[int, Array]:
    """(P,) float64 by seed, in the order of seeds."""
    scores = {seed: np.asarray(table[condition][seed], dtype=float) for seed in sorted(table[condition])}
    problems = set()
    for scores_by_seed in table.values():
        problems |= {len(values) for values in scores_by_seed.values()}
    if not scores or problems == {0}:
        raise UserError(f"{condition}: there are no scores: run it on at least one seed and one problem")
    if len(problems) > 1:
        raise UserError(f"runs have scores for {sorted(problems)} problems: evaluate all of them on the same problems")
    for seed, values in scores.items():
        if (wrong := np.flatnonzero(~np.isfinite(values))).size:
            where = f"{condition}, seed {seed}, problem {wrong[0]}"
            raise UserError(f"{where}: the score is {values[wrong[0]]}: evaluate this run again, or leave it out")
    return scores
