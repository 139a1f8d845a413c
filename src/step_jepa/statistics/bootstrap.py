"""Percentile intervals of figures of resampled units.

Axes: S seeds, P problems.
"""

from functools import lru_cache

import numpy as np
from scipy.stats import rankdata

from step_jepa.statistics.significance import ALPHA, Interval
from step_jepa.statistics.variance import Array

RESAMPLES, TWO_WAY_RESAMPLES = 1000, 2000


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
