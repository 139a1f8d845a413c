"""Spans -> one row: the trunk and the branches that an objective hangs on it. Integers only.

One rule says who sees whom (see masks.py): a token sees the earlier tokens of its own branch, and the trunk's first
`prefix` tokens. An objective is a function (example, rng) -> Row, with its options bound beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Literal

from step_jepa.tokens import IGNORED, Example, Span

TRUNK = 0
Pairs = Literal["first", "all", "random"]


@dataclass
class Row:
    """One training row. Every list but `pairs` has one entry per token.

    branch    0 on the trunk, 1, 2, ... on the branches
    prefix    how many trunk tokens a branch token may see before its own branch; 0 on the trunk
    pairs     (row index where the predicted view is read, row index where its target is read)
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int] = field(init=False)
    branch: list[int] = field(init=False)
    prefix: list[int] = field(init=False)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = len(self.input_ids)
        self.position_ids = list(range(length))
        self.branch = [TRUNK] * length
        self.prefix = [0] * length

    def hang(self, input_ids: Sequence[int], *, position: int, prefix: int) -> int:
        """Append a branch that starts at `position` and sees `prefix` trunk tokens; returns its last row index."""
        length = len(input_ids)
        branch = self.branch[-1] + 1
        self.input_ids += input_ids
        self.labels += [IGNORED] * length
        self.position_ids += range(position, position + length)
        self.branch += [branch] * length
        self.prefix += [prefix] * length
        return len(self.input_ids) - 1


def trunk(example: Example, rng: Random | None = None) -> Row:
    """Ordinary fine-tuning: no branch."""
    return Row(list(example.input_ids), list(example.labels))


def step_jepa(
    example: Example,
    rng: Random,
    predictors: Sequence[int] = (),
    pairs: Pairs = "first",
    pairs_per_example: int = 4,
) -> Row:
    """Predict step i+1, read alone, from everything up to step i.

    predictors         ids of the K predictor tokens; with none, the trunk's own state at the end of step i predicts
    pairs              the first pair of steps, all consecutive pairs, or `pairs_per_example` of them drawn by `rng`
    """
    row = trunk(example)
    for (_, before), (start, stop) in _step_pairs(example, rng, pairs, pairs_per_example):
        predicted = row.hang(predictors, position=before, prefix=before) if predictors else before - 1
        target = row.hang(example.input_ids[start:stop], position=start, prefix=0)
        row.pairs.append((predicted, target))
    return row


def _step_pairs(example: Example, rng: Random, pairs: Pairs, count: int) -> list[tuple[Span, Span]]:
    spans = [span for span in example.steps if span[0] < span[1]]  # a step may share its only token with its neighbour
    consecutive = list(pairwise(spans))
    if pairs == "first":
        return consecutive[:1]
    if pairs == "random" and len(consecutive) > count:
        return [consecutive[place] for place in sorted(rng.sample(range(len(consecutive)), count))]
    return consecutive


def llm_jepa(example: Example, rng: Random, predictors: Sequence[int] = ()) -> Row:
    """LLM-JEPA (arXiv 2509.14252): predict the answer from the user's text, each read alone."""
    row = trunk(example)
    if example.user is None:
        return row
    start, stop = example.user
    text = [*example.input_ids[start:stop], *predictors]
    predicted = row.hang(text, position=start, prefix=0)
    begin, end = example.steps[0][0], example.steps[-1][1]
    target = row.hang(example.input_ids[begin:end], position=begin, prefix=0)
    row.pairs.append((predicted, target))
    return row
