"""Whether scores find the first wrong step of an answer. Nothing is fitted to labels, but for `beyond_free`.

The rule: the step with the greatest score is the first wrong one, if that score is in the upper half of all answers'
greatest; otherwise the answer is right. One half, as nothing is known of how many answers are wrong: another quantile
would have to be chosen by labels.

Axes: A answers, K most steps of an answer.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from step_jepa.data.first_errors import NO_ERROR
from step_jepa.statistics.bootstrap import resampled_sums, with_interval
from step_jepa.surprise.regression import can_be_fitted, likelihood_ratio, out_of_fold
from step_jepa.surprise.scores import SURPRISE, Array, StepScores, free_of, latent_of

MINUS = "-"  # before a score that is taken with the other sign

Figure = dict[str, Any]


class Labelled(NamedTuple):
    """Answers whose first wrong step is known.

    scores       (A, K) by name; nan beyond an answer's steps, and for steps that no prediction is of, which no score is
                 asked about
    first_error  (A,) int; NO_ERROR for none
    problem      (A,) int
    left_out     how many answers have their first error at a step that no prediction is of, or no predicted step
    """

    scores: dict[str, Array]
    first_error: Array
    problem: Array
    left_out: int

    @property
    def erroneous(self) -> Array:
        """(A,) bool."""
        return self.first_error != NO_ERROR


def labelled(steps: StepScores, names: Iterable[str], first_error: Array, problem: Array) -> Labelled:
    """Those whose first error, (A,) float with nan where it is not known, can be found."""
    known = np.isfinite(first_error)
    error = np.where(known, first_error, NO_ERROR).astype(int)
    predicted = matrix(steps, SURPRISE)
    asked = np.isfinite(predicted)
    at_error = np.take_along_axis(asked, np.maximum(error, 0)[:, None], 1)[:, 0] if asked.shape[1] else known & False
    kept = known & asked.any(1) & ((error == NO_ERROR) | at_error)
    scores = {name: np.where(asked, matrix(steps, name), np.nan)[kept] for name in names}
    return Labelled(scores, error[kept], problem[kept], int((known & ~kept).sum()))


def matrix(steps: StepScores, name: str) -> Array:
    """(A, K) float64 of the steps' scores; nan elsewhere."""
    most = int(steps.step.max()) + 1 if len(steps.step) else 0
    values = np.full((steps.answers, most), np.nan)
    values[steps.answer, steps.step] = steps.scores[name]
    return values


def highest(scores: Array) -> Array:
    """(A,) int of scores (A, K): the step with the greatest score, the first of equal ones."""
    return np.where(np.isfinite(scores), scores, -np.inf).argmax(1)


def localisation(answers: Labelled, seed: int) -> dict[str, Figure]:
    """By score, and by each with the other sign, figures {value, low, high, n} with intervals over problems.

    located    of wrong answers: the share whose first wrong step has the greatest score
    wrong      the share of wrong answers whose first wrong step the rule names
    right      the share of right answers of which the rule says so
    f1         the harmonic mean of these two (ProcessBench, arXiv 2412.06559)
    """
    figures = {}
    for name, scores in answers.scores.items():
        for sign, signed in (("", scores), (MINUS, -scores)):
            figures[sign + name] = _figures(signed, answers, seed)
    return figures


def beyond_free(answers: Labelled, seed: int) -> dict[str, Figure]:
    """By latent score, what it adds to all free ones: {value, low, high, n} of `located` with it less that without it,
    free, with (the two), likelihood_ratio and p.

    Steps are scored by logistic regressions for being the first wrong one, fitted to other problems' steps up to their
    first error, as what follows an error is neither right nor wrong. Empty where too few answers are wrong."""
    figures = {}
    for name in latent_of(list(answers.scores)):
        cases = cases_of(answers, [*free_of(list(answers.scores)), name])
        if can_be_fitted(cases.first, answers.problem[cases.answer]):
            without, with_it = located_by_regression(answers, cases)
            parts = np.stack([with_it - without, without, with_it, answers.erroneous], 1).astype(float)
            sums = resampled_sums(parts, answers.problem, seed)
            gain, free, both = (sums[:, :3] / sums[:, 3:]).T
            figures[name] = {
                **_figure(gain, int(answers.erroneous.sum())),
                "free": float(free[0]),
                "with": float(both[0]),
                **likelihood_ratio(cases.features[cases.known], cases.first[cases.known]),
            }
    return figures


class Cases(NamedTuple):
    """Steps: which of which answer (N,), features (N, F), whether it is the first wrong one, and whether that is known
    by what precedes it."""

    answer: Array
    step: Array
    features: Array
    first: Array
    known: Array


def cases_of(answers: Labelled, names: Sequence[str]) -> Cases:
    """Those that have all of these scores."""
    columns = np.stack([answers.scores[name] for name in names], -1)
    answer, step = np.nonzero(np.isfinite(columns).all(-1))
    error = answers.first_error[answer]
    return Cases(answer, step, columns[answer, step], step == error, (error == NO_ERROR) | (step <= error))


def located_by_regression(answers: Labelled, cases: Cases) -> tuple[Array, Array]:
    """(A,) twice, 1 where the first wrong step has the greatest log odds: without the last feature, and with it."""
    found = []
    for features in (cases.features[:, :-1], cases.features):
        odds = out_of_fold(features, cases.first, answers.problem[cases.answer], cases.known)
        table = np.full(answers.scores[SURPRISE].shape, np.nan)
        table[cases.answer, cases.step] = odds
        found.append((answers.erroneous & (highest(table) == answers.first_error)).astype(float))
    return found[0], found[1]


def chance(answers: Labelled) -> float | None:
    """What `located` is on average if the scores of each answer are shuffled among its steps."""
    steps = np.isfinite(answers.scores[SURPRISE])[answers.erroneous].sum(1)
    return float((1 / steps).mean()) if len(steps) else None


def _figures(scores: Array, answers: Labelled, seed: int) -> Figure:
    erroneous, greatest = answers.erroneous, np.nanmax(scores, 1)
    named = np.where(greatest >= np.median(greatest), highest(scores), NO_ERROR)
    located = erroneous & (highest(scores) == answers.first_error)
    right_step, right_answer = erroneous & (named == answers.first_error), ~erroneous & (named == NO_ERROR)
    parts = np.stack([located, right_step, right_answer, erroneous, ~erroneous], 1).astype(float)
    sums = resampled_sums(parts, answers.problem, seed)
    counts = {"located": int(erroneous.sum()), "wrong": int(erroneous.sum()), "right": int((~erroneous).sum())}
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = dict(zip(counts, (sums[:, :3] / sums[:, [3, 3, 4]]).T, strict=True))
        both = shares["wrong"] + shares["right"]
        shares["f1"] = np.where(both > 0, 2 * shares["wrong"] * shares["right"] / both, 0.0)
    return {name: _figure(share, counts.get(name, len(scores))) for name, share in shares.items()}


def _figure(resampled: Array, count: int) -> Figure:
    if not np.isfinite(resampled[0]):
        return {"value": None, "low": None, "high": None, "n": count}
    value, low, high = with_interval(resampled)
    return {"value": value, "low": low, "high": high, "n": count}
