"""Statistics of arms over seeds and problems: known answers, other libraries, and the rates that they promise."""

import json
import re
from dataclasses import asdict, astuple, replace
from itertools import product
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import norm, t, ttest_1samp, ttest_rel
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestPower

from step_jepa.errors import UserError
from step_jepa.statistics.bootstrap import two_way_bootstrap
from step_jepa.statistics.differences import difference, interaction, summary
from step_jepa.statistics.power import detectable, seeds_needed
from step_jepa.statistics.sentences import sentence, sign_flip_sentence
from step_jepa.statistics.significance import holm, sign_flip
from step_jepa.statistics.variance import Components, components, two_way

SQUARE = np.array([[0.0, 2.0], [2.0, 6.0]])  # mean squares 9, 9 and 1


def table(**arms) -> dict:
    """Arms given as arrays (S, P), as a table with seeds counted from 0."""
    return {arm: dict(enumerate(np.asarray(scores).tolist())) for arm, scores in arms.items()}


def against_zero(values) -> dict:
    """The arms "new" and "old", whose differences are the values (S, P)."""
    return table(new=values, old=np.zeros_like(values))


@pytest.fixture
def scores():
    """Two arms, 4 seeds, 30 problems; one of them is better, on some problems more than on others."""
    draw = np.random.default_rng(5)
    hard, better = draw.normal(size=30), 0.5 + draw.normal(size=30)
    old = hard + draw.normal(0, 0.3, (4, 1)) + draw.normal(size=(4, 30))
    return old + better + draw.normal(0, 0.2, (4, 1)) + draw.normal(size=(4, 30)), old


# Known answers.


def test_two_way_by_hand():
    error, df = two_way(SQUARE)
    assert error**2 == pytest.approx(9 / 4 + 8 / 4)
    assert df == pytest.approx(1)
    assert components(SQUARE) == Components(seed=4, problem=4, residual=1)
    found = difference(against_zero(SQUARE), "new", "old")
    half = 12.7062047 * sqrt(4.25)
    assert found.new_problems == pytest.approx((2.5 - half, 2.5 + half))
    assert found.p == pytest.approx(1 - 2 / np.pi * np.arctan(2.5 / sqrt(4.25)))  # Student's t with 1 df is Cauchy's
    assert found.by_seed == (1, 4)


def test_components_are_those_of_the_analysis_of_variance(scores):
    values = scores[0] - scores[1]
    rows = [{"d": d, "seed": seed, "problem": problem} for (seed, problem), d in np.ndenumerate(values)]
    squares = anova_lm(ols("d ~ C(seed) + C(problem)", pd.DataFrame(rows)).fit())["mean_sq"]
    of_seeds, of_problems, residual = squares["C(seed)"], squares["C(problem)"], squares["Residual"]
    assert min(of_seeds, of_problems) > residual
    found = components(values)
    assert found.seed == pytest.approx((of_seeds - residual) / 30)
    assert found.problem == pytest.approx((of_problems - residual) / 4)
    assert found.residual == pytest.approx(residual)
    error, _ = two_way(values)
    assert error**2 == pytest.approx((of_seeds + of_problems - residual) / 120)


def test_same_problems_is_the_paired_t_of_scipy(scores):
    new, old = scores
    found = difference(table(new=new, old=old), "new", "old")
    paired = ttest_rel(new.mean(1), old.mean(1))
    assert found.same_problems_p == pytest.approx(paired.pvalue)
    assert found.same_problems == pytest.approx(tuple(paired.confidence_interval(0.95)))
    assert found.difference == pytest.approx(new.mean() - old.mean())
    assert found.new_problems[1] - found.new_problems[0] > found.same_problems[1] - found.same_problems[0]


def test_without_a_share_of_problems_it_is_the_t_over_seeds():
    values = np.array([[1.0, 2, 3], [3, 1, 5], [6, 7, 2]])  # the means of problems are equal: 10 / 3
    found = difference(against_zero(values), "new", "old")
    assert found.p == pytest.approx(ttest_1samp([2, 3, 5], 0).pvalue)
    assert found.new_problems == pytest.approx(found.same_problems)


def test_with_equal_seeds_it_is_the_t_over_problems():
    problems = [1.0, 0, 2, 4, 1]
    found = difference(against_zero(np.array([problems] * 3)), "new", "old")
    assert found.p == pytest.approx(ttest_1samp(problems, 0).pvalue)
    assert (found.same_problems, found.same_problems_p) == (None, None)


def test_interaction_by_hand():
    """(1 - 0) - (0 - 1) = 2 and so on: what `difference` makes of these numbers."""
    scores = {"a": [[1, 0], [1, 1], [0, 1]], "b": [[0, 0], [1, 0], [1, 0]], "c": [[0, 1], [0, 0], [1, 1]]}
    scores["d"] = [[1, 0], [0, 1], [0, 1]]
    combined = [[2.0, -1.0], [0.0, 2.0], [-2.0, 1.0]]
    found, plain = (
        interaction(table(**scores), ("a", "b"), ("c", "d")),
        difference(against_zero(combined), "new", "old"),
    )
    assert (found.condition, found.baseline) == ("(a - b)", "(c - d)")
    assert replace(found, condition="new", baseline="old") == plain
    assert found.difference == pytest.approx(1 / 3)


def test_an_interaction_takes_the_seeds_that_all_four_have():
    seeds = {"a": (0, 1, 2), "b": (1, 2, 3), "c": (1, 2), "d": (2, 1, 9)}
    scores = {arm: {seed: [seed, 0.0] for seed in of_arm} for arm, of_arm in seeds.items()}
    found = interaction(scores, ("a", "b"), ("c", "d"))
    assert (found.seeds, found.left_out, found.difference) == ((1, 2), (0, 3, 9), 0)
    with pytest.raises(UserError, match=re.escape("(a - b) and (c - e) have no seed in common")):
        interaction({**scores, "e": {0: [1.0, 0]}}, ("a", "b"), ("c", "e"))


def test_with_a_shared_baseline_an_interaction_is_the_difference(scores):
    new, old = scores
    arms = table(new=new, old=old, shared=old[::-1])
    found = interaction(arms, ("new", "shared"), ("old", "shared"))
    assert found.p == pytest.approx(difference(arms, "new", "old").p)


def test_summary_by_hand():
    found = summary(table(sft=[[1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0]]), "sft")
    assert (found.seeds, found.problems, found.mean) == (3, 4, 0.5)
    assert found.sd == pytest.approx(0.25)
    half = 4.30265273 * 0.25 / sqrt(3)
    assert found.same_problems == pytest.approx((0.5 - half, 0.5 + half))


def test_sign_flips_by_hand():
    assert sign_flip(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 64)
    assert sign_flip(np.array([0.1, 0.2, 0.3, 0.4, 0.5, -0.05])) == pytest.approx(4 / 64)
    assert sign_flip(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) is None  # 2 / 32 at best


def test_the_bootstrap_resamples_both_sides():
    """A corner is drawn with probability 1/16, so it is in the interval; of seeds alone it would be (0.5, 1.5)."""
    assert two_way_bootstrap(np.array([[0.0, 1.0], [1.0, 2.0]]), seed=0) == (0, 2)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert found == {"a": pytest.approx(0.04), "b": pytest.approx(0.09), "c": pytest.approx(0.09), "d": None}
    assert holm({}) == {}


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.5, 34)])  # of the standard deviation: textbook numbers
def test_seeds_needed_by_a_paired_t(effect, seeds):
    assert seeds_needed(Components(1, 0, 0), 100, effect) == seeds
    assert seeds_needed(Components(0.5, 0, 50), 100, -effect) == seeds


def test_an_interval_takes_two_seeds():
    assert seeds_needed(Components(1e-6, 0, 0), 100, 1.0) == 2


def test_problems_can_be_what_is_missing():
    assert seeds_needed(Components(0.01, 1, 0), 100, 0.2) is None  # 2.8 standard errors of 0.1 cannot be seen
    assert seeds_needed(Components(0.01, 1, 0), 1000, 0.2) is not None
    assert seeds_needed(Components(0.01, 1, 0), 100, 0.0) is None


def test_detectable_against_statsmodels():
    effect = detectable(Components(4, 0, 0), 10, 50)
    assert TTestPower().power(effect / 2, 10, 0.05) == pytest.approx(0.8, abs=1e-6)
    effect = detectable(Components(0, 4, 0), 10, 50, comparisons=3)
    assert TTestPower().power(effect / 2, 50, 0.05 / 3) == pytest.approx(0.8, abs=1e-6)


def test_detectable_with_few_seeds_against_an_integral():
    """Here statsmodels says 12.43 / sqrt(3)."""
    effect, critical = detectable(Components(1, 0, 0), 3, 50, comparisons=5), t.isf(0.005, 2)
    scale = np.sqrt(-np.log1p(-(np.arange(100_000) + 0.5) / 100_000))  # of a chi-square with 2 df, over 2
    shift = effect * sqrt(3)
    assert shift == pytest.approx(12.678, abs=1e-3)
    power = norm.sf(critical * scale - shift) + norm.cdf(-critical * scale - shift)
    assert power.mean() == pytest.approx(0.8, abs=1e-5)


# What is missing, and what is refused.


def test_pairs_the_seeds_that_both_have():
    both = {"new": {0: [1, 0], 1: [1, 1], 2: [0, 1]}, "old": {2: [0, 0], 1: [0, 1], 7: [1, 1]}}
    found = difference(both, "new", "old")
    assert (found.seeds, found.by_seed, found.left_out) == ((1, 2), (0.5, 0.5), (0, 7))
    assert "2 seeds, 2 problems; 2 seeds of only one arm left out" in sentence(found)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([[1, 0, 1]], "one seed does not tell what is due to the seed"),
        ([[1], [0], [1]], "one problem does not tell what is due to the problem"),
        ([[0, 0], [0, 0]], "nothing varies"),
        ([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]], "nothing varies"),
    ],
)
def test_no_interval_where_there_can_be_none(values, why):
    found = difference(against_zero(values), "new", "old")
    assert (found.new_problems, found.p, found.bootstrap, found.components) == (None,) * 4
    assert why in sentence(found)
    assert "cannot reject at 5 %" in sign_flip_sentence(found)
    assert "NaN" not in json.dumps([asdict(found), asdict(summary(against_zero(values), "new"))])


def test_one_seed_has_no_spread():
    found = summary(table(sft=[[1, 0, 1, 0]]), "sft")
    assert (found.mean, found.sd, found.same_problems, found.new_problems) == (0.5, None, None, None)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"new": {3: [1, None]}, "old": {3: [1, 0]}}, "new, seed 3, problem 1: the score is nan"),
        ({"new": {3: [1, 0]}, "old": {3: [float("inf"), 0]}}, "old, seed 3, problem 0: the score is inf"),
        ({"new": {3: [1, 0]}, "old": {3: [1, 0], 4: [1]}}, "scores for [1, 2] problems"),
        ({"new": {3: [1, 0]}, "old": {4: [1, 0]}}, "new and old have no seed in common"),
        ({"new": {}, "old": {4: [1, 0]}}, "new: there are no scores"),
        ({"new": {4: []}, "old": {4: []}}, "new: there are no scores"),
    ],
)
def test_refused_in_one_line(arms, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        difference(arms, "new", "old")
    assert "\n" not in str(refused.value)


def test_no_power_without_units_or_variance():
    for seeds, problems in ((1, 50), (5, 1)):
        with pytest.raises(UserError, match="at least two of each"):
            detectable(Components(1, 1, 1), seeds, problems)
    nan, infinite = float("nan"), float("inf")
    for wrong in (Components(0, 0, 0), Components(-1, 1, 1), Components(nan, 1, 1), Components(1, 1, infinite)):
        with pytest.raises(UserError, match="variances"):
            detectable(wrong, 5, 50)


# In words.


def test_sentence_says_what_was_found():
    values = np.array([[1.0, 2, 3], [3, 1, 5], [4, 5, 0]])  # a t of 8 over seeds; the means of problems are equal
    found = difference(against_zero(values), "new", "old")
    figures = "new minus old: +2.67, 95 % interval for new seeds and new problems [1.23, 4.1], p = 0.015"
    assert sentence(found) == f"{figures} (3 seeds, 3 problems): a difference is shown."
    after = ", p = 0.061 after Holm over 4 comparisons (3 seeds, 3 problems): no difference is shown."
    assert sentence(found, 4 * found.p, 4) == figures + after


def test_sign_flips_that_cannot_reject_say_so():
    five, six = (
        difference(against_zero(np.arange(1.0, seeds + 1)[:, None] + SQUARE[0]), "new", "old") for seeds in (5, 6)
    )
    assert sign_flip_sentence(five) == "sign flips over 5 seeds cannot reject at 5 %: p is at least 0.0625."
    assert sign_flip_sentence(six) == "sign flips over 6 seeds, on these problems: p = 0.031."


# Properties.

small = some.floats(-10, 10).map(lambda x: round(x, 3))


@settings(deadline=None, max_examples=50)
@given(
    some.integers(2, 6).flatmap(lambda P: some.lists(some.lists(small, min_size=P, max_size=P), min_size=2, max_size=6))
)
def test_a_shifted_and_scaled_difference(values):
    values = np.array(values)
    plain = difference(against_zero(values), "new", "old")
    moved = difference(against_zero(3 - 2 * values), "new", "old")
    assert (plain.new_problems is None) == (moved.new_problems is None)
    if plain.new_problems is not None:
        low, high = plain.new_problems
        assert moved.new_problems == pytest.approx((3 - 2 * high, 3 - 2 * low), rel=1e-6, abs=1e-6)
        assert (plain.p <= 0.05) == (not low <= 0 <= high)
        assert min(values.shape) - 1 <= two_way(values)[1] + 1e-9 <= max(values.shape) - 1 + 2e-9


# The rates that are promised.

SPREADS = {  # standard deviations of seeds, of problems, and of both together
    "seeds": lambda S, P: (0.5, 0.1, 0.3),
    "mostly seeds": lambda S, P: (2 * sqrt(S / P), 1, 0.3),  # four times the variance of the mean
    "both": lambda S, P: (sqrt(S / P), 1, 0.3),
    "problems": lambda S, P: (0.05, 1, 0.3),
    "neither": lambda S, P: (0, 0, 1),
}


def real(draw, sets: int, S: int, P: int, spread: tuple[float, float, float]) -> np.ndarray:
    """(sets, S, P) of mean 0: effects of seeds, of problems, and of both together."""
    seeds, problems, together = spread
    effects = draw.normal(0, seeds, (sets, S, 1)) + draw.normal(0, problems, (sets, 1, P))
    return effects + draw.normal(0, together, (sets, S, P))


def binary(draw, sets: int, S: int, P: int, spread: tuple[float, float, float], shift: float) -> tuple:
    """(sets, S, P), differences of the 0/1 scores of two arms, one of them abler by `shift`; and their true mean."""
    easy = draw.normal(size=(sets, 1, P))
    new, old = (easy + real(draw, sets, S, P, spread) for _ in range(2))
    return (new + shift > 0).astype(float) - (old > 0), norm.cdf(shift / sqrt(1 + sum(np.square(spread)))) - 0.5


def p_values(values: np.ndarray, truth: float = 0) -> np.ndarray:
    """(sets,): of values (sets, S, P) having this mean."""
    error, df = two_way(values)
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance at all, in a few binary ones with 3 seeds
        return 2 * t.sf(abs(values.mean((1, 2)) - truth) / error, df)


def rejected(sets: int, shapes) -> tuple[dict[tuple, float], dict[tuple, float]]:
    """The share of data sets whose true mean is rejected at 5 %, without and with a difference, by cell."""
    nulls, others = {}, {}
    for cell in product(shapes, enumerate(SPREADS)):
        (S, P), (place, name) = cell
        draw, spread = np.random.default_rng([S, P, place]), SPREADS[name](S, P)
        nulls["real", *cell] = np.mean(p_values(real(draw, sets, S, P, spread)) <= 0.05)
        nulls["binary", *cell] = np.mean(p_values(*binary(draw, sets, S, P, spread, 0)) <= 0.05)
        others["binary", *cell] = np.mean(p_values(*binary(draw, sets, S, P, spread, 0.3)) <= 0.05)
    return nulls, others


def test_nulls_are_rejected_at_most_as_often_as_promised():
    nulls, others = rejected(5000, [(3, 50), (5, 50), (10, 50), (3, 300)])
    assert len(nulls) == 2 * len(others) == 40
    assert {cell: rate for cell, rate in nulls.items() if rate > 0.065} == {}
    assert {cell: rate for cell, rate in (nulls | others).items() if not 0.03 <= rate <= 0.07} == {}


@pytest.mark.slow
def test_nulls_are_rejected_as_often_as_promised_closely():
    nulls, others = rejected(10_000, product((3, 5, 10), (50, 300)))
    assert {cell: rate for cell, rate in (nulls | others).items() if not 0.032 <= rate <= 0.062} == {}


def interactions(draw, sets: int, S: int, P: int, spread: tuple[float, float, float], shift: float) -> np.ndarray:
    """(sets, S, P), of 0/1 scores of four arms on the same problems, one of them abler by `shift`."""
    easy = draw.normal(size=(sets, 1, P))
    new, old, other_new, other_old = (easy + real(draw, sets, S, P, spread) for _ in range(4))
    gain, other_gain = (new + shift > 0).astype(float) - (old > 0), (other_new > 0).astype(float) - (other_old > 0)
    return gain - other_gain


@pytest.mark.parametrize("spread", [(0, 0, 1), (0.3, 0, 1), (0, 0.7, 1), (0.2, 0.5, 1)])
def test_an_interaction_of_nulls_is_rejected_as_often_as_promised(spread):
    """Variance of neither, of seeds, of problems, of both."""
    sets, S, P = 1000, 8, 100
    nulls = p_values(interactions(np.random.default_rng(11), sets, S, P, spread, 0))
    assert np.mean(nulls <= 0.05) <= 0.065


def test_an_interaction_has_the_power_that_is_stated():
    """80 % at an effect of 0.1 or more, of what seeds, problems and both add to 0/1 scores here."""
    draw, (sets, S, P) = np.random.default_rng(12), (1000, 8, 440)
    found = interactions(draw, sets, S, P, (0.1, 0.1, 1), 0.36)
    variances = np.mean([astuple(components(values)) for values in found[:50]], 0)
    assert detectable(Components(*variances), S, P) <= found.mean() == pytest.approx(0.1, abs=0.003)
    assert np.mean(p_values(found) <= 0.05) >= 0.8


def test_holm_keeps_the_rate_of_the_family(monkeypatch):
    """Four arms against one baseline, none of them different."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it every time, a tenth of a second each
    draw, (sets, S, P) = np.random.default_rng(3), (1000, 5, 50)
    baseline, *arms = (real(draw, sets, S, P, SPREADS["both"](S, P)) for _ in range(5))
    families = np.transpose([p_values(arm - baseline) for arm in arms])
    adjusted = [min(holm(dict(enumerate(family.tolist()))).values()) for family in families]
    assert 0.02 <= np.mean(np.array(adjusted) <= 0.05) <= 0.065
    assert np.mean(families.min(1) <= 0.05) > 0.1


@pytest.mark.parametrize(("S", "name"), list(product((3, 10), SPREADS)))
def test_what_is_detectable_is_found_four_times_in_five(S, name):
    spread = SPREADS[name](S, 100)
    effect = detectable(Components(*np.square(spread)), S, 100)
    found = p_values(effect + real(np.random.default_rng(S), 2000, S, 100, spread)) <= 0.05
    assert 0.77 <= np.mean(found) <= 0.83


@pytest.mark.slow
@pytest.mark.parametrize(("S", "name", "low", "high"), [(3, "seeds", 0.7, 0.82), (3, "neither", 0.98, 1)])
def test_the_bootstrap_covers_what_its_docstring_says(S, name, low, high):
    values = real(np.random.default_rng(4), 500, S, 50, SPREADS[name](S, 50))
    intervals = np.array([two_way_bootstrap(each, seed) for seed, each in enumerate(values)])
    assert low <= np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)) <= high
