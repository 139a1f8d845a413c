"""What scores of arms over seeds and problems say: differences, what is left to chance, and what could have been seen.

Arms of one seed are paired: same initialisation, same order of data, same problems. Plain numbers; no model is known.
Axes: S seeds, P problems; leading axes are any number of data sets.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import ncf, permutation_test, t, ttest_1samp
from statsmodels.stats.multitest import multipletests

from step_jepa.errors import UserError

Array = NDArray[Any]
Interval = tuple[float, float]  # 95 %
Table = Mapping[str, Mapping[int, Sequence[float]]]  # arm -> seed -> a score for each problem, the same ones everywhere

ALPHA, POWER = 0.05, 0.8
RESAMPLES = 2000
MOST_SEEDS = 10_000
ROUNDING = 1e-9  # relative, of float64 means


@dataclass(frozen=True)
class Components:
    """Variances of a paired difference d[seed, problem], in squared units of the score.

    seed is shared by all problems of a seed, problem by all seeds of a problem, residual by nothing. Of 0/1 scores they
    sum to the share of problems on which the two arms disagree, less the squared difference."""

    seed: float
    problem: float
    residual: float


@dataclass(frozen=True)
class ArmSummary:
    """The mean score of an arm, and sd, the standard deviation of its means over seeds (None with one seed).

    Its intervals are as in `Difference`; for 0/1 scores they can reach beyond 0 and 1."""

    seeds: int
    problems: int
    mean: float
    sd: float | None
    new_problems: Interval | None
    same_problems: Interval | None


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline, over the seeds that both have. What cannot be had is None: see `difference`.

    seeds, left_out        seeds that both have; seeds that only one has
    problems               how many
    difference, by_seed    over all, and for each of `seeds`
    new_problems, p        interval and p-value for new seeds and new problems (`two_way`): the ones to decide by
    same_problems, same_problems_p
                           paired t over seeds: for new seeds on these very problems, whatever is true of others
    sign_flip_p            the exact test of the same, by flipping signs of by_seed
    bootstrap              `bootstrap` over seeds and problems; too narrow with few seeds
    components             variances, for `detectable` and `seeds_needed`
    """

    arm: str
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


def summary(table: Table, arm: str) -> ArmSummary:
    """The figures of one arm. Raises UserError for scores that are missing or not finite."""
    scores = np.stack(list(_scores(table, arm).values()))
    (seeds, problems), means = scores.shape, scores.mean(1)
    sd = float(means.std(ddof=1)) if seeds > 1 else None
    new_problems, same_problems = _for_new_problems(scores)[0], _for_new_seeds(means)[0]
    return ArmSummary(seeds, problems, float(scores.mean()), sd, new_problems, same_problems)


def difference(table: Table, arm: str, baseline: str, *, seed: int = 42) -> Difference:
    """Arm minus baseline, paired by seed and problem; `seed` is the bootstrap's.

    With one seed nothing is known of seeds, with one problem nothing of problems, and without any variance no interval
    can be made: such fields are None. Raises UserError for scores that are missing or not finite, and where the two
    have no seed in common."""
    own, other = _scores(table, arm), _scores(table, baseline)
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        raise UserError(f"{arm} and {baseline} have no seed in common: run both with the same seeds")
    values = np.stack([own[each] - other[each] for each in seeds])
    by_seed = values.mean(1)
    new_problems, p = _for_new_problems(values)
    same_problems, same_problems_p = _for_new_seeds(by_seed)
    return Difference(
        arm=arm,
        baseline=baseline,
        seeds=tuple(seeds),
        left_out=tuple(sorted(own.keys() ^ other.keys())),
        problems=values.shape[1],
        difference=float(values.mean()),
        by_seed=tuple(by_seed.tolist()),
        new_problems=new_problems,
        p=p,
        same_problems=same_problems,
        same_problems_p=same_problems_p,
        sign_flip_p=sign_flip(by_seed),
        bootstrap=bootstrap(values, seed) if new_problems else None,
        components=components(values) if new_problems else None,
    )


def _scores(table: Table, arm: str) -> dict[int, Array]:
    """(P,) float64 by seed, in the order of seeds."""
    scores = {seed: np.asarray(table[arm][seed], dtype=float) for seed in sorted(table[arm])}
    problems = {len(scores) for runs in table.values() for scores in runs.values()}
    if not scores or problems == {0}:
        raise UserError(f"{arm}: there are no scores: run it on at least one seed and one problem")
    if len(problems) > 1:
        raise UserError(f"runs have scores for {sorted(problems)} problems: evaluate all of them on the same problems")
    for seed, values in scores.items():
        if (wrong := np.flatnonzero(~np.isfinite(values))).size:
            where = f"{arm}, seed {seed}, problem {wrong[0]}"
            raise UserError(f"{where}: the score is {values[wrong[0]]}: evaluate this run again, or leave it out")
    return scores


# Intervals and tests.


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
    of_seeds, of_problems, residual = _mean_squares(values)
    from_seeds = of_seeds / (seeds * problems)
    from_problems = np.maximum(0, of_problems - residual) / (seeds * problems)
    with np.errstate(invalid="ignore"):
        df = _freedom(from_seeds, from_problems, seeds, problems)
    return np.sqrt(from_seeds + from_problems), df


def _freedom(from_seeds: Any, from_problems: Any, seeds: int, problems: int) -> Any:
    return (from_seeds + from_problems) / (from_seeds / (seeds - 1) + from_problems / (problems - 1))


def _mean_squares(values: Array) -> tuple[Array, Array, Array]:
    """Of seeds, problems and residual, (...) each."""
    seeds, problems = values.shape[-2:]
    by_seed, by_problem = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    residual = values - by_seed - by_problem + values.mean((-2, -1), keepdims=True)
    return (
        problems * by_seed.var((-2, -1), ddof=1),
        seeds * by_problem.var((-2, -1), ddof=1),
        (residual**2).sum((-2, -1)) / ((seeds - 1) * (problems - 1)),
    )


def components(values: Array) -> Components:
    """Of differences (S, P), by analysis of variance; those that come out negative are 0."""
    seeds, problems = values.shape
    of_seeds, of_problems, residual = (float(each) for each in _mean_squares(values))
    return Components(max(0.0, of_seeds - residual) / problems, max(0.0, of_problems - residual) / seeds, residual)


def _for_new_problems(values: Array) -> tuple[Interval | None, float | None]:
    """Interval of the mean of values (S, P), and p-value of its being 0, by `two_way`."""
    if min(values.shape) < 2:
        return None, None
    error, df = two_way(values)
    if error <= ROUNDING * np.abs(values).max():
        return None, None
    mean, half = values.mean(), t.isf(ALPHA / 2, df) * error
    return (float(mean - half), float(mean + half)), float(2 * t.sf(abs(mean) / error, df))


def _for_new_seeds(means: Array) -> tuple[Interval | None, float | None]:
    """Student's t over the means of seeds (S,)."""
    if len(means) < 2 or np.ptp(means) <= ROUNDING * np.abs(means).max():
        return None, None
    test = ttest_1samp(means, 0)
    low, high = test.confidence_interval(1 - ALPHA)
    return (float(low), float(high)), float(test.pvalue)


def sign_flip(by_seed: Array) -> float | None:
    """Two-sided p-value of differences (S,) under random signs; None where even all seeds agreeing, p = 2 / 2^S, could
    not reject at 5 %."""
    if 2 / 2 ** len(by_seed) > ALPHA:
        return None
    return float(permutation_test((by_seed,), np.mean, permutation_type="samples", rng=0).pvalue)


def bootstrap(values: Array, seed: int) -> Interval:
    """Percentile interval of the mean of values (S, P), seeds and problems resampled independently (the pigeonhole
    bootstrap of Owen, as in `two_way`).

    It covers 76 to 89 % with 3 to 10 seeds where seeds make the variance, and 99 % and more where neither do."""
    draw = np.random.default_rng(seed)
    seeds, problems = (draw.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in values.shape)
    low, high = np.quantile(((seeds @ values) * problems).sum(1), [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's adjusted p-values of all comparisons that were made (Scandinavian Journal of Statistics 6, 1979, p. 65).

    One that has no p-value keeps None, and counts in the family all the same."""
    if not p_values:
        return {}
    adjusted = multipletests([1.0 if p is None else p for p in p_values.values()], method="holm")[1].tolist()
    return {name: None if p_values[name] is None else p for name, p in zip(p_values, adjusted, strict=True)}


# How many seeds and problems.


def detectable(assumed: Components, seeds: int, problems: int, *, comparisons: int = 1) -> float:
    """The smallest difference that `two_way` finds with 80 % power at 5 %, or at 5 % / comparisons, Holm's first step.

    The square of a noncentral t with shift difference / se. Raises UserError for fewer than two seeds or problems, and
    for variances that are negative or all zero."""
    if min(seeds, problems) < 2:
        raise UserError(f"{seeds} seeds and {problems} problems can show no difference: take at least two of each")
    variances = (assumed.seed, assumed.problem, assumed.residual)
    if min(variances) < 0 or not sum(variances):
        raise UserError(f"variances of seed, problem, residual are {variances}: give none below 0, and one above")
    from_seeds, from_problems = (assumed.seed + assumed.residual / problems) / seeds, assumed.problem / problems
    df = _freedom(from_seeds, from_problems, seeds, problems)
    critical = t.isf(ALPHA / comparisons / 2, df)
    # As F: scipy's noncentral t is nan in places, and what statsmodels solves with it is wrong with few seeds.
    shift = brentq(lambda shift: ncf.sf(critical**2, 1, df, shift**2) - POWER, 0, 10 * critical)
    return shift * sqrt(from_seeds + from_problems)


def seeds_needed(assumed: Components, problems: int, effect: float, *, comparisons: int = 1) -> int | None:
    """The fewest seeds with which `effect` is `detectable`; None where 10,000 are too few, and problems are missing.

    Of an observed effect and its variances it is as uncertain as they are. Raises UserError as `detectable` does."""

    def enough(seeds: int) -> bool:
        return detectable(assumed, seeds, problems, comparisons=comparisons) <= abs(effect)

    needed = bisect_left(range(MOST_SEEDS + 1), True, lo=2, key=enough)
    return needed if needed <= MOST_SEEDS else None


# In words.


def sentence(found: Difference, adjusted: float | None = None, comparisons: int = 1) -> str:
    """What one comparison says, `adjusted` being its p-value after `holm` over so many comparisons."""
    said = f"{found.arm} minus {found.baseline}: {found.difference:+.3g}"
    data = f"{_count(len(found.seeds), 'seed')}, {_count(found.problems, 'problem')}"
    if found.left_out:
        data += f"; {_count(len(found.left_out), 'seed')} of only one arm left out"
    if found.new_problems is None or found.p is None:
        return f"{said} ({data}); {_why_no_interval(found)}."
    low, high = found.new_problems
    final = found.p if adjusted is None else adjusted
    after = "" if adjusted is None else f", {_p(adjusted)} after Holm over {_count(comparisons, 'comparison')}"
    verdict = "a difference is shown" if final <= ALPHA else "no difference is shown"
    interval = f"95 % interval for new seeds and new problems [{low:.3g}, {high:.3g}]"
    return f"{said}, {interval}, {_p(found.p)}{after} ({data}): {verdict}."


def sign_flip_sentence(found: Difference) -> str:
    """The p-value of sign flips over seeds, or that there can be none at 5 %."""
    flips = f"sign flips over {_count(len(found.seeds), 'seed')}"
    if found.sign_flip_p is None:
        return f"{flips} cannot reject at 5 %: p is at least {2 / 2 ** len(found.seeds):.3g}."
    return f"{flips}, on these problems: {_p(found.sign_flip_p)}."


def _why_no_interval(found: Difference) -> str:
    for number, noun in ((len(found.seeds), "seed"), (found.problems, "problem")):
        if number == 1:
            return f"one {noun} does not tell what is due to the {noun}, so there is no interval and no test"
    return "nothing varies that an interval or a test could be made of"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
