"""Whether scores tell right answers from wrong ones, and whether a latent score does so beyond what is free.

Axes: A answers, F features.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from step_jepa.statistics.bootstrap import resampled_auc, with_interval
from step_jepa.surprise.regression import can_be_fitted, likelihood_ratio, out_of_fold
from step_jepa.surprise.scores import Array, free_of, latent_of

Figure = dict[str, Any]


class Judged(NamedTuple):
    """Answers that are known to be right or wrong.

    scores   (A,) float64 by name
    wrong    (A,) bool
    problem  (A,) int; answers to one problem are drawn together, and fitted together or not at all
    """

    scores: Mapping[str, Array]
    wrong: Array
    problem: Array

    def complete(self, names: Sequence[str]) -> "Judged":
        """Those that have all of these scores."""
        kept = np.all([np.isfinite(self.scores[name]) for name in names], axis=0)
        scores = {name: self.scores[name][kept] for name in names}
        return Judged(scores, self.wrong[kept], self.problem[kept])


def right_against_wrong(judged: Judged, seed: int) -> dict[str, Figure]:
    """By score {value, low, high, n}: the area under the ROC curve, the share of pairs in which the wrong answer scores
    higher. Below .5 the right ones do. Empty where all answers are right, or all wrong."""
    figures = {}
    for name in judged.scores:
        answers = judged.complete([name])
        if _both_kinds(answers):
            areas = resampled_auc(answers.scores[name], answers.wrong, answers.problem, seed)
            figures[name] = _figure(areas, answers)
    return figures


def beyond_free(judged: Judged, seed: int) -> dict[str, Figure]:
    """By latent score, what it adds to all free ones in a logistic regression that was fitted without the problem.

    value, low, high   area under the ROC curve with it less that without it, and its interval over problems
    n, free, with      answers; the area without and with it
    likelihood_ratio, p
                       see `likelihood_ratio`
    Empty where there are fewer than 10 right or wrong answers, or fewer than 5 problems."""
    names = list(judged.scores)
    figures = {}
    for name in latent_of(names):
        free = [each for each in free_of(names) if np.isfinite(judged.scores[each]).any()]
        answers = judged.complete([*free, name])
        if can_be_fitted(answers.wrong, answers.problem):
            figures[name] = _gain(answers, free, name, seed)
    return figures


def _gain(answers: Judged, free: list[str], name: str, seed: int) -> Figure:
    features, wrong, problem = _features(answers, [*free, name]), answers.wrong, answers.problem
    both = [
        resampled_auc(out_of_fold(each, wrong, problem), wrong, problem, seed) for each in (features[:, :-1], features)
    ]
    return {
        **_figure(both[1] - both[0], answers),
        "free": float(both[0][0]),
        "with": float(both[1][0]),
        **likelihood_ratio(features, wrong),
    }


def _features(answers: Judged, names: Sequence[str]) -> Array:
    """(A, F)."""
    return np.stack([answers.scores[name] for name in names], 1)


def _both_kinds(answers: Judged) -> bool:
    return bool(answers.wrong.any() and not answers.wrong.all())


def _figure(resampled: Array, answers: Judged) -> Figure:
    value, low, high = with_interval(resampled)
    return {"value": value, "low": low, "high": high, "n": len(answers.wrong)}
