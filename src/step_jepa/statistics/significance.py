"""Intervals and p-values.

Axes: S seeds, P problems.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.stats import permutation_test, t, ttest_1samp
from statsmodels.stats.multitest import multipletests

from step_jepa.statistics.variance import ROUNDING, Array, two_way

Interval = tuple[float, float]  # 95 %
ALPHA = 0.05
Key = TypeVar("Key")


class _Test(NamedTuple):
    """The 95 % interval of a mean, and the p-value of its being 0; None where they cannot be had."""

    interval: Interval | None = None
    p: float | None = None


def tested_for_new_problems(values: Array) -> _Test:
    """Of the mean of values (S, P), by `two_way`."""
    if min(values.shape) < 2:
        return _Test()
    error, df = two_way(values)
    if error <= ROUNDING * np.abs(values).max():
        return _Test()
    mean, half = values.mean(), t.isf(ALPHA / 2, df) * error
    return _Test((float(mean - half), float(mean + half)), float(2 * t.sf(abs(mean) / error, df)))


def tested_for_new_seeds(means: Array) -> _Test:
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
