"""Held-out pairs, and the scores that they get. Arrays and texts; no model is known.

Axes: P pairs (a prefix, and the step that follows it), H hidden size, E embedding size.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Scorers: what a figure is of
VIEWS, VIEWS_TO_BASE = "views", "views_to_base"
TFIDF, EMBEDDING, NUMBERS, POSITION, MAJORITY = "tfidf", "embedding", "numbers", "position", "majority"
FREE = (TFIDF, EMBEDDING, NUMBERS, POSITION, MAJORITY)  # need no view


@dataclass
class HeldOutPairs:
    """Views of held-out pairs by one model, and the texts that they are views of. All pairs of a problem are present.

    predicted, target      (P, H) float: predicted view; view of the step in isolation
    base_target            (P, H) float: the view of the step by the frozen base model; None leaves its measures out
    problem, step          (P,) int: the pair predicts steps[problem][step] from the question and steps[problem][:step]
    questions, steps       texts by problem
    embedded_prefix, embedded_step
                           (P, E) float: mean input embedding of the tokens of prefix and step
    length                 (P,) int: tokens of the step
    template               (P,) int: problems written from one template, which is all that a probe would have to
                           recognise, are kept in one fold; None where each problem was written by itself
    """

    predicted: Array
    target: Array
    base_target: Array | None
    problem: Array
    step: Array
    questions: list[str]
    steps: list[list[str]]
    embedded_prefix: Array
    embedded_step: Array
    length: Array
    template: Array | None = None

    def __post_init__(self) -> None:
        pairs = len(self)
        per_pair = (self.target, self.problem, self.step, self.embedded_prefix, self.embedded_step, self.length)
        assert all(len(array) == pairs for array in per_pair)
        assert all(array is None or len(array) == pairs for array in (self.base_target, self.template))
        assert len(set(self.places())) == pairs
        assert pairs == 0 or self.step.min() >= 1

    def __len__(self) -> int:
        return len(self.predicted)

    def places(self) -> list[tuple[int, int]]:
        """(problem, step) of each pair."""
        return list(zip(self.problem.tolist(), self.step.tolist(), strict=True))

    def step_texts(self) -> list[str]:
        """The step of each pair."""
        return [self.steps[problem][step] for problem, step in self.places()]

    def prefix_texts(self) -> list[str]:
        """What precedes the step of each pair: the question and the steps so far."""
        return [" ".join([self.questions[problem], *self.steps[problem][:step]]) for problem, step in self.places()]


class PairScores(NamedTuple):
    """A figure as sum(value) / sum(weight), both (P,) float64, zero for pairs that are left out."""

    value: Array
    weight: Array


Scores = dict[str, dict[str, PairScores]]  # by measure and scorer


def score_all(value: Array) -> PairScores:
    """The mean of value (P,): no pair is left out."""
    return PairScores(value, np.ones(len(value)))
