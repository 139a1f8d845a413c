"""What scores of conditions over seeds and problems say: differences, what is left to chance, and what could have been
seen.

Conditions are paired by seed: same initialisation, same order of data, same problems. Plain numbers; no model is known.
Axes: S seeds, P problems; leading axes are any number of data sets.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from math import sqrt
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import ncf, permutation_test, rankdata, t, ttest_1samp
from statsmodels.stats.multitest import multipletests

from step_jepa.errors import UserError

Array = NDArray[Any]
Interval = tuple[float, float]  # 95 %
ScoresBySeed = Mapping[int, Sequence[float]]  # seed -> a score for each problem, the same problems for every seed
ScoreTable = Mapping[str, ScoresBySeed]  # by condition
Key = TypeVar("Key")

ALPHA, POWER = 0.05, 0.8
RESAMPLES, TWO_WAY_RESAMPLES = 1000, 2000
MOST_SEEDS = 10_000
ROUNDING = 1e-9  # relative, of float64 means


@dataclass(frozen=True)
class Components:
    """Variances of a paired difference d[seed, problem], in squared units of the score.

    seed is shared by all problems of a seed, problem by all seeds of a problem, residual by nothing. Of 0/1 scores they
    sum to the share of problems on which the two conditions disagree, less the squared difference.
    """

    seed: float
    problem: float
    residual: float


class _Test(NamedTuple):
    """The 95 % interval of a mean, and the p-value of its being 0; None where they cannot be had."""

    interval: Interval | None = None
    p: float | None = None


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
        new_problems=_test_for_new_problems(scores).interval,
        same_problems=_test_for_new_seeds(means).interval,
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
    new_problems, same_problems = _test_for_new_problems(values), _test_for_new_seeds(by_seed)
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


# Intervals and tests


def two_way(values: Array) -> tuple[Array, Array]:
    """Standard error and degrees of freedom (...) of the mean of values (..., S, P), for new seeds and new problems.

    Crossed random effects (Owen, Annals of Applied Statistics 1, 2007, p. 386): se^2 = A + B, where A = MS_seed / SP is
    the squared error of a t test over seeds, and B = max(0, MS_problem - MS_residual) / SP is what problems add. With a
    and b, their shares of se^2, 1 / df = a / (S - 1) + b / (P - 1); nan without variance. Satterthwaite (Biometrics
    Bulletin 2, 1946, p. 110) has a^2 and b^2, as if they were known, which rejects up to 7.6 % of nulls at 5 % with 3
    seeds. The shares themselves, which Cochran (Biometrics 20, 1964, p. 191) has too, reject 3.6 to 5.7 %. With 3 seeds
    it can be up to 10 % narrower than the t interval over seeds, as problems lend it degrees of freedom. Of strongly
    skewed effects of seeds (lognormal) it rejects 15 to 17 %, which a t over seeds does too."""
    seeds, problems = values.shape[-2:]
    squares = _mean_squares(values)
    from_seeds = squares.seeds / (seeds * problems)
    from_problems = np.maximum(0, squares.problems - squares.residual) / (seeds * problems)
    with np.errstate(invalid="ignore"):
        df = _degrees_of_freedom(from_seeds, from_problems, seeds, problems)
    return np.sqrt(from_seeds + from_problems), df


def _degrees_of_freedom(from_seeds: Any, from_problems: Any, seeds: int, problems: int) -> Any:
    """Of a variance that is the sum of these two, as in `two_way`."""
    return (from_seeds + from_problems) / (from_seeds / (seeds - 1) + from_problems / (problems - 1))


class _MeanSquares(NamedTuple):
    """Of the two-way analysis of variance, (...) each."""

    seeds: Array
    problems: Array
    residual: Array


def _mean_squares(values: Array) -> _MeanSquares:
    seeds, problems = values.shape[-2:]
    by_seed, by_problem = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    residual = values - by_seed - by_problem + values.mean((-2, -1), keepdims=True)
    return _MeanSquares(
        seeds=problems * by_seed.var((-2, -1), ddof=1),
        problems=seeds * by_problem.var((-2, -1), ddof=1),
        residual=(residual**2).sum((-2, -1)) / ((seeds - 1) * (problems - 1)),
    )


def components(values: Array) -> Components:
    """Of differences (S, P), by analysis of variance; those that come out negative are 0."""
    seeds, problems = values.shape
    squares = _mean_squares(values)
    residual = float(squares.residual)
    return Components(
        seed=max(0.0, float(squares.seeds) - residual) / problems,
        problem=max(0.0, float(squares.problems) - residual) / seeds,
        residual=residual,
    )


def _test_for_new_problems(values: Array) -> _Test:
    """Of the mean of values (S, P), by `two_way`."""
    if min(values.shape) < 2:
        return _Test()
    error, df = two_way(values)
    if error <= ROUNDING * np.abs(values).max():
        return _Test()
    mean, half = values.mean(), t.isf(ALPHA / 2, df) * error
    return _Test((float(mean - half), float(mean + half)), float(2 * t.sf(abs(mean) / error, df)))


def _test_for_new_seeds(means: Array) -> _Test:
    """Student's t over the means of seeds (S,)."""
    if len(means) < 2 or np.ptp(means) <= ROUNDING * np.abs(means).max():
        return _Test()
    test = ttest_1samp(means, 0)
    low, high = test.confidence_interval(1 - ALPHA)
    return _Test((float(low), float(high)), float(test.pvalue))


def sign_flip(by_seed: Array) -> float | None:
    """Two-sided p-value of differences (S,) under random signs; None where even all seeds agreeing, p = 2 / 2^S, could
    not reject at 5 %."""
    if 2 / 2 ** len(by_seed) > ALPHA:
        return None
    return float(permutation_test((by_seed,), np.mean, permutation_type="samples", rng=0).pvalue)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Holm's adjusted p-values of all comparisons that were made (Scandinavian Journal of Statistics 6, 1979, p. 65).

    One that has no p-value keeps None, and counts in the family all the same."""
    if not p_values:
        return {}
    counted = [1.0 if p is None else p for p in p_values.values()]
    adjusted = multipletests(counted, method="holm")[1].tolist()
    return {name: None if p_values[name] is None else p for name, p in zip(p_values, adjusted, strict=True)}


# Bootstrap: percentile intervals of figures of resampled units


def bootstrap(values: Array, cluster: Array, seed: int, *, weight: Array | None = None) -> tuple[float, float, float]:
    """(mean, low, high): the mean of values, and its 95 % interval when clusters are resampled.

    Values of one cluster, such as the steps of a problem, which share its text, are drawn together (cluster bootstrap;
    Davison and Hinkley, Bootstrap Methods and their Application, 3.8): resampled one by one they would promise more
    than they know. What a whole set gives once, means for centring and candidates, is kept.

    Args:
        values: (N,), any order.
        cluster: (N,) int, which cluster each belongs to.
        seed: of the draws.
        weight: (N,); with it the mean is sum(values) / sum(weight).
    """
    place = np.unique(cluster, return_inverse=True)[1]
    sums = np.bincount(place, values)
    weights = np.bincount(place, weight)  # without weights, how many values each cluster has
    counts = _cluster_counts(len(sums), seed)
    low, high = _percentile_interval((counts @ sums) / (counts @ weights))
    return float(sums.sum() / weights.sum()), low, high


def resampled_auc(score: Array, positive: Array, cluster: Array, seed: int) -> Array:
    """(1 + resamples,): the area under the ROC curve, the share of (positive, other) pairs in which the positive scores
    higher, ties counting half; first of all values, then of resampled clusters. nan where one kind is missing.

    Args:
        score: (N,).
        positive: (N,) bool.
        cluster: (N,) int, which values are drawn together.
        seed: of the draws: those of two scores of the same values can be compared one by one.
    """
    place = np.unique(cluster, return_inverse=True)[1]
    order = np.argsort(score, kind="stable")
    drawn = _cluster_counts(int(place.max()) + 1, seed)[:, place[order]]
    weights = np.concatenate([np.ones((1, len(score))), drawn])
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)  # of each run of equal scores
    positives = np.add.reduceat(weights * positive[order], starts, axis=1)
    others = np.add.reduceat(weights * ~positive[order], starts, axis=1)
    below = others.cumsum(1) - others
    with np.errstate(invalid="ignore"):
        areas: Array = (positives * (below + others / 2)).sum(1) / (positives.sum(1) * others.sum(1))
    return areas


def resampled_sums(parts: Array, cluster: Array, seed: int) -> Array:
    """(1 + resamples, K): sums of parts (N, K) over all values, then over resampled clusters (N,)."""
    place = np.unique(cluster, return_inverse=True)[1]
    sums = np.stack([np.bincount(place, part) for part in parts.T], 1)
    drawn: Array = _cluster_counts(len(sums), seed) @ sums
    return np.concatenate([sums.sum(0, keepdims=True), drawn])


def with_interval(resampled: Array) -> tuple[float, float, float]:
    """(value, low, high) of a figure and its resamples, the figure first; resamples without a value are left out."""
    low, high = np.nanquantile(resampled[1:], [ALPHA / 2, 1 - ALPHA / 2])
    return float(resampled[0]), float(low), float(high)


def auc_shares(score: Array, positive: Array) -> Array:
    """(N,) whose mean is the area under the ROC curve and whose spread its variance: each value's placement among those
    of the other kind, by the rarity of its own (DeLong, Biometrics 44, 1988, p. 837). Both kinds must be there."""
    ranks, own = rankdata(score), np.empty(len(score))
    for kind in (positive, ~positive):
        own[kind] = rankdata(score[kind])
    others = np.where(positive, (~positive).sum(), positive.sum())
    below = (ranks - own) / others
    placement = np.where(positive, below, 1 - below)
    area = placement[positive].mean()
    shares: Array = area + (placement - area) / np.where(positive, positive.mean(), (~positive).mean())
    return shares


def two_way_bootstrap(values: Array, seed: int) -> Interval:
    """Interval of the mean of values (S, P), seeds and problems resampled independently (the pigeonhole bootstrap of
    Owen, as in `two_way`).

    It covers 76 to 89 % with 3 to 10 seeds where seeds make the variance, and 99 % and more where neither do.
    """
    draw = np.random.default_rng(seed)
    seed_shares, problem_shares = (_drawn_counts(draw, units, TWO_WAY_RESAMPLES) / units for units in values.shape)
    return _percentile_interval(((seed_shares @ values) * problem_shares).sum(1))


@lru_cache(maxsize=4)  # an audit asks for some hundred intervals over the same problems
def _cluster_counts(clusters: int, seed: int) -> Array:
    return _drawn_counts(np.random.default_rng(seed), clusters, RESAMPLES).astype(float)


def _drawn_counts(draw: np.random.Generator, units: int, resamples: int) -> Array:
    """(resamples, units) int: how often each unit is drawn, when as many are drawn as there are."""
    return draw.multinomial(units, np.full(units, 1 / units), resamples)


def _percentile_interval(figures: Array) -> Interval:
    low, high = np.quantile(figures, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


# How many seeds and problems


def detectable(assumed: Components, seeds: int, problems: int, *, comparisons: int = 1) -> float:
    """The smallest difference that `two_way` finds with 80 % power at 5 %, or at 5 % / comparisons, Holm's first step.

    The square of a noncentral t with shift difference / se.

    Raises:
        UserError: for fewer than two seeds or problems, and for variances that are negative, not finite or all zero.
    """
    if min(seeds, problems) < 2:
        raise UserError(f"{seeds} seeds and {problems} problems can show no difference: take at least two of each")
    variances = astuple(assumed)
    if not np.isfinite(variances).all() or min(variances) < 0 or not sum(variances):
        given = f"variances of seed, problem, residual are {variances}"
        raise UserError(f"{given}: give finite ones, none below 0, and one above")
    from_seeds = (assumed.seed + assumed.residual / problems) / seeds
    from_problems = assumed.problem / problems
    df = _degrees_of_freedom(from_seeds, from_problems, seeds, problems)
    critical = t.isf(ALPHA / comparisons / 2, df)

    def missing_power(shift: float) -> float:
        # As F: scipy's noncentral t is nan in places, and what statsmodels solves with it is wrong with few seeds.
        return float(ncf.sf(critical**2, 1, df, shift**2)) - POWER

    return float(brentq(missing_power, 0, 10 * critical)) * sqrt(from_seeds + from_problems)


def seeds_needed(assumed: Components, problems: int, effect: float, *, comparisons: int = 1) -> int | None:
    """The fewest seeds with which `effect` is `detectable`; None where 10,000 are too few, and problems are missing.

    Of an observed effect and its variances it is as uncertain as they are. Raises UserError as `detectable` does.
    """

    def suffices(seeds: int) -> bool:
        return detectable(assumed, seeds, problems, comparisons=comparisons) <= abs(effect)

    needed = bisect_left(range(MOST_SEEDS + 1), True, lo=2, key=suffices)
    return needed if needed <= MOST_SEEDS else None


# In words


def sentence(difference: Difference, adjusted: float | None = None, comparisons: int = 1) -> str:
    """What one comparison says, `adjusted` being its p-value after `holm` over so many comparisons."""
    figure = f"{difference.condition} minus {difference.baseline}: {difference.difference:+.3g}"
    data = f"{_count(len(difference.seeds), 'seed')}, {_count(difference.problems, 'problem')}"
    if difference.left_out:
        data += f"; {_count(len(difference.left_out), 'seed')} of only one arm left out"
    if difference.new_problems is None or difference.p is None:
        return f"{figure} ({data}); {_why_no_interval(difference)}."
    low, high = difference.new_problems
    interval = f"95 % interval for new seeds and new problems [{low:.3g}, {high:.3g}]"
    p = _p(difference.p)
    if adjusted is not None:
        p += f", {_p(adjusted)} after Holm over {_count(comparisons, 'comparison')}"
    final = difference.p if adjusted is None else adjusted
    verdict = "a difference is shown" if final <= ALPHA else "no difference is shown"
    return f"{figure}, {interval}, {p} ({data}): {verdict}."


def sign_flip_sentence(difference: Difference) -> str:
    """The p-value of sign flips over seeds, or that there can be none at 5 %."""
    flips = f"sign flips over {_count(len(difference.seeds), 'seed')}"
    if difference.sign_flip_p is None:
        return f"{flips} cannot reject at 5 %: p is at least {2 / 2 ** len(difference.seeds):.3g}."
    return f"{flips}, on these problems: {_p(difference.sign_flip_p)}."


def _why_no_interval(difference: Difference) -> str:
    for number, noun in ((len(difference.seeds), "seed"), (difference.problems, "problem")):
        if number == 1:
            return f"one {noun} does not tell what is due to the {noun}, so there is no interval and no test"
    return "nothing varies that an interval or a test could be made of"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
