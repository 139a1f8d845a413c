"""What each step of an answer is scored by, and what becomes of an answer. Arrays; no model is known.

Axes: S steps of all answers, A answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SURPRISE, CENTRED = "surprise", "centred_surprise"
LATENT = (SURPRISE, CENTRED)
NLL, NLL_MAX, ENTROPY = "nll", "nll_max", "entropy"
LENGTH, INDEX, PERSISTENCE = "length", "index", "persistence"
FREE = (NLL, NLL_MAX, ENTROPY, LENGTH, INDEX, PERSISTENCE)
SHUFFLED, BASE = "shuffled_", "base_"  # before the name of a score


@dataclass
class StepScores:
    """The scores of all steps of some answers, in order.

    answer, step   (S,) int: which step of which answer
    scores         (S,) float64 by name; nan where a step has none, as nothing predicts the first one
    answers        A; one that cannot be read has no steps

    surprise            1 - cosine of the predicted view and the step's own, as the model's run reads them
    centred_surprise    the same after the mean of either view is subtracted
    shuffled_...        the null of another order: the same prediction held against the answer's other steps, the mean
    nll, nll_max        negative log-likelihood of the step's tokens, mean and greatest, in nats
    entropy             of the next token's distribution, mean over the step's tokens, in nats
    length, index       tokens; place among the steps, from 0
    persistence         1 - cosine of the trunk's states at the end of this step and of the one before
    base_...            the same by the base model
    """

    answer: Array
    step: Array
    scores: dict[str, Array]
    answers: int


def of_answers(steps: StepScores) -> dict[str, Array]:
    """(A,) by name, nan for an answer without any such score: means over steps (of nll and entropy: over tokens), for
    both latent scores also ..._max; nll_max is the greatest, length all tokens, index how many steps follow the
    first."""
    length = steps.scores[LENGTH]
    results: dict[str, Array] = {}
    for name, values in steps.scores.items():
        kind = name.removeprefix(BASE)
        if kind in (NLL, ENTROPY):
            results[name] = _mean(steps, values, length)
        elif kind in (NLL_MAX, INDEX):
            results[name] = _greatest(steps, values)
        elif kind == LENGTH:
            results[name] = _mean(steps, values, np.ones(len(values))) * np.bincount(
                steps.answer, minlength=steps.answers
            )
        else:
            results[name] = _mean(steps, values, np.ones(len(values)))
        if kind in LATENT:
            results[f"{name}_max"] = _greatest(steps, values)
    return results


def _mean(steps: StepScores, values: Array, weight: Array) -> Array:
    known = np.isfinite(values)
    answer = steps.answer[known]
    sums = np.bincount(answer, (values * weight)[known], steps.answers)
    weights = np.bincount(answer, weight[known], steps.answers)
    return np.divide(sums, weights, out=np.full(steps.answers, np.nan), where=weights > 0)


def _greatest(steps: StepScores, values: Array) -> Array:
    greatest = np.full(steps.answers, np.nan)
    np.fmax.at(greatest, steps.answer, values)
    return greatest


def latent_of(names: Sequence[str]) -> list[str]:
    """The latent scores among the names, the base model's not."""
    return [name for name in names if name.removesuffix("_max") in LATENT]


def free_of(names: Sequence[str]) -> list[str]:
    """Those that need no trained predictor: of single tokens, of the text, and all of the base model's."""
    return [name for name in names if name in FREE or name.startswith(BASE)]
