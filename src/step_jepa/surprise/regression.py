"""Logistic regressions that are never asked about what they were fitted to.

Axes: N cases, F features.
"""

import numpy as np
from scipy.stats import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from step_jepa.surprise.scores import Array

FOLDS = 5
LEAST = 10  # cases of either kind


def can_be_fitted(positive: Array, group: Array) -> bool:
    """Whether there are enough cases (N,) bool of either kind, and groups (N,) for all folds."""
    count = int(positive.sum())
    return min(count, len(positive) - count) >= LEAST and len(np.unique(group[positive])) >= FOLDS


def out_of_fold(features: Array, positive: Array, group: Array, fitted_on: Array | None = None) -> Array:
    """(N,): log odds of being positive, by a regression that was fitted to cases of other groups.

    Args:
        features: (N, F), finite.
        positive: (N,) bool.
        group: (N,) int.
        fitted_on: (N,) bool, the cases whose kind is known; all by default.
    """
    fitted_on = np.ones(len(positive), dtype=bool) if fitted_on is None else fitted_on
    odds = np.empty(len(positive))
    for train, held_out in GroupKFold(FOLDS).split(features, groups=group):
        known = train[fitted_on[train]]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        odds[held_out] = model.fit(features[known], positive[known]).decision_function(features[held_out])
    return odds


def likelihood_ratio(features: Array, positive: Array) -> dict[str, float]:
    """What the last of the features (N, F) adds to the fit to all cases: likelihood_ratio, and p with one degree of
    freedom, which is too small where cases of one problem are alike."""
    without, with_it = (
        _greatest_log_likelihood(features[:, :-1], positive),
        _greatest_log_likelihood(features, positive),
    )
    ratio = 2 * max(0.0, with_it - without)
    return {"likelihood_ratio": ratio, "p": float(chi2.sf(ratio, 1))}


def _greatest_log_likelihood(features: Array, positive: Array) -> float:
    """In nats, over all cases."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf, max_iter=5000)).fit(features, positive)
    return -float(log_loss(positive, model.predict_proba(features), normalize=False))
