"""What an experiment on generated chains compares: scores for each problem, whose mean is the figure.

own       the model's own answers, whose steps are judged by `chains.first_error`
foreign   right answers with a step of another problem
value     right answers with one wrong value, with which the later steps go on

located          of answers with an error: the share whose first wrong step has the greatest score
located_beyond   what the latent score adds to that of a regression on all free scores
answers          area under the ROC curve of wrong answers against right ones, by the mean over steps
answers_beyond   what the latent score adds to that of a regression on all free scores
steps            the same of planted steps against all steps of the answers without them
steps_beyond     likewise
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from step_jepa.data.chains import first_error
from step_jepa.data.first_errors import NO_ERROR
from step_jepa.data.records import with_answer
from step_jepa.data.steps import split
from step_jepa.statistics.bootstrap import auc_shares
from step_jepa.surprise.answers import Judged
from step_jepa.surprise.localisation import Labelled, cases_of, highest, labelled, located_by_regression
from step_jepa.surprise.measure import measure
from step_jepa.surprise.planted import foreign_step, wrong_value
from step_jepa.surprise.regression import can_be_fitted, out_of_fold
from step_jepa.surprise.scores import FREE, SHUFFLED, SURPRISE, Array, of_answers
from step_jepa.training.representation import Representation

OWN, PLANTED = "own", {"foreign": foreign_step, "value": wrong_value}
LOCATED, ANSWERS, STEPS, BEYOND = "_located", "_answers", "_steps", "_beyond"
FIGURES = {OWN: (LOCATED, ANSWERS), **dict.fromkeys(PLANTED, (LOCATED, STEPS))}
MEASURES = [
    kind + figure + beyond for kind, figures in FIGURES.items() for figure in figures for beyond in ("", BEYOND)
]
SCORES = (*FREE, SHUFFLED + SURPRISE, SURPRISE)  # the latent one, and what stands beside it

Scores = dict[str, list[float]]  # one for each problem


class Measures:
    """By name the scores (P,) of each problem, and those of what is free. A measure of wrong answers is missing where
    there are too few, or too few right ones."""

    def __init__(self, problems: int) -> None:
        self.problems = problems
        self.scores: Scores = {}
        self.free: dict[str, Scores] = {}

    def put(self, name: str, latent: Array, free: Mapping[str, Array], problem: Array) -> None:
        """A measure from a value for each case (N,), which is of a problem (N,)."""
        self.scores[name] = self._by_problem(latent, problem)
        self.free[name] = {baseline: self._by_problem(values, problem) for baseline, values in free.items()}

    def _by_problem(self, values: Array, problem: Array) -> list[float]:
        """Their mean is that of the values, and their spread its variance: problems differ in how many cases they have,
        perhaps none."""
        mean = values.mean()
        shares: Array = mean + np.bincount(problem, values - mean, self.problems) * self.problems / len(values)
        return shares.tolist()


def measures(
    representation: Representation,
    records: Sequence[Mapping[str, Any]],
    predictions: Sequence[str],
    correct: Sequence[bool],
    *,
    batch_size: int = 64,
    seed: int = 42,
) -> Measures:
    """All in MEASURES.

    Args:
        representation: of `measure.load`.
        records: P generated chains.
        predictions: what the model answered to each.
        correct: whether that is right.
        batch_size: answers that are read at once.
        seed: of what is planted.
    """
    results = Measures(len(records))
    _of_own_answers(results, representation, records, predictions, np.array(correct, dtype=bool), batch_size)
    for kind in PLANTED:
        _of_planted(results, kind, representation, records, batch_size, seed)
    return results


def _of_own_answers(
    results: Measures,
    representation: Representation,
    records: Sequence[Mapping[str, Any]],
    predictions: Sequence[str],
    correct: Array,
    batch_size: int,
) -> None:
    answered, errors = [], []
    for record, prediction in zip(records, predictions, strict=True):
        steps = split(prediction) if prediction.strip() else []
        answered.append({**with_answer(record, prediction), "steps": steps})
        errors.append(first_error(record["question"], steps))
    scores, problem = measure(representation, answered, batch_size=batch_size), np.arange(len(records))
    _put_located(results, OWN, labelled(scores, SCORES, np.array(errors, dtype=float), problem))
    answers = Judged(of_answers(scores), ~correct, problem).complete(SCORES)
    cases = _Cases(answers.scores, answers.wrong, answers.problem, np.ones(len(answers.wrong), dtype=bool))
    _put_told_apart(results, OWN + ANSWERS, cases, asked=cases.known)


def _of_planted(
    results: Measures,
    kind: str,
    representation: Representation,
    records: Sequence[Mapping[str, Any]],
    batch_size: int,
    seed: int,
) -> None:
    """Both versions of every problem are read; what is planted is compared with all steps of the versions without."""
    planted = {place: found for place in range(len(records)) if (found := PLANTED[kind](records, place, seed))}
    versions = [*records, *(each.record for each in planted.values())]
    errors = [NO_ERROR] * len(records) + [each.error for each in planted.values()]
    scores = measure(representation, versions, batch_size=batch_size)
    problem = np.array([*range(len(records)), *planted])
    answers = labelled(scores, SCORES, np.array(errors, dtype=float), problem)
    _put_located(results, kind, answers)
    steps = cases_of(answers, SCORES)
    columns = dict(zip(SCORES, steps.features.T, strict=True))
    cases = _Cases(columns, steps.first, answers.problem[steps.answer], steps.known)
    _put_told_apart(results, kind + STEPS, cases, asked=steps.first | ~answers.erroneous[steps.answer])


def _put_located(results: Measures, kind: str, answers: Labelled) -> None:
    """Both measures of the answers with an error."""
    wrong, cases = answers.erroneous, cases_of(answers, [*FREE, SURPRISE])
    if not can_be_fitted(cases.first, answers.problem[cases.answer]):
        return
    hits = {name: (highest(scores) == answers.first_error)[wrong] for name, scores in answers.scores.items()}
    shares = {name: hit.astype(float) for name, hit in hits.items()}
    shares["chance"] = 1 / np.isfinite(answers.scores[SURPRISE])[wrong].sum(1)
    results.put(kind + LOCATED, shares.pop(SURPRISE), shares, answers.problem[wrong])
    without, with_it = located_by_regression(answers, cases)
    gain = (with_it - without)[wrong]
    results.put(kind + LOCATED + BEYOND, gain, {"free": without[wrong]}, answers.problem[wrong])


class _Cases(NamedTuple):
    """Answers or steps: scores (N,) by name, whether they are wrong, which problem's, and what may be fitted to."""

    scores: Mapping[str, Array]
    wrong: Array
    problem: Array
    known: Array


def _put_told_apart(results: Measures, name: str, cases: _Cases, asked: Array) -> None:
    """Both measures of wrong ones against right ones, among those that are asked about (N,)."""
    wrong, problem = cases.wrong[asked], cases.problem[asked]
    if not can_be_fitted(cases.wrong, cases.problem):
        return
    shares = {score: auc_shares(values[asked], wrong) for score, values in cases.scores.items()}
    results.put(name, shares.pop(SURPRISE), shares, problem)
    features = np.stack([cases.scores[score] for score in (*FREE, SURPRISE)], 1)
    without, with_it = (
        auc_shares(out_of_fold(some, cases.wrong, cases.problem, cases.known)[asked], wrong)
        for some in (features[:, :-1], features)
    )
    results.put(name + BEYOND, with_it - without, {"free": without}, problem)
