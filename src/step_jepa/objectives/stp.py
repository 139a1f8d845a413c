"""Semantic tube prediction (STP, arXiv 2602.22617): hidden states should move in straight lines. The trunk alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from step_jepa.data.example import Example
from step_jepa.objectives.base import Objective
from step_jepa.objectives.step_jepa import PairOptions
from step_jepa.rows.branches import Pair, Row, View, difference
from step_jepa.rows.controls import SamplingContext


@dataclass
class STP(PairOptions, Objective):
    """1 - cos(h_t - h_r, h_r - h_s), for random s < r < t in the answer."""

    loss: ClassVar[str | None] = "cosine"

    @property
    def spans(self) -> int:
        """How many are drawn of an example."""
        return 1 if self.pairs == "first" else self.pairs_per_example

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        answer = range(example.steps[0][0], example.steps[-1][1])
        if len(answer) < 3:
            return
        for number in range(self.spans):
            s, r, t = sorted(sampling.rng.sample(answer, 3))
            yield Pair(difference(t, r), difference(r, s), step=number)


@dataclass
class STPReleased(STP):
    """What the released code optimises instead (`--linear random_span`): 1 - cos(displacement of the rest, of a span).

    The question and the answer are taken as one text, the chat's tokens between them left out. A random span of it is
    carved out; its displacement is what the state moves from just before the span to its end, the rest's is what it
    moves over all other tokens of that text. The two are no neighbours: the rest lies on both sides of the span."""

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        if example.user is None:
            return
        text = [*range(*example.user), *range(example.steps[0][0], example.steps[-1][1])]
        if len(text) < 2:
            return
        for number in range(self.spans):
            start, stop = _random_span(len(text), sampling.rng)
            span = _displacement(text[start:stop])
            rest = _displacement(text)
            rest.subtract(span)
            yield Pair(_view(rest), _view(span), step=number)


def _random_span(length: int, rng: Random) -> tuple[int, int]:
    """Half-open; not the whole text."""
    start = rng.randrange(length)
    stop = rng.randrange(start + 1, length + 1)
    while (start, stop) == (0, length):
        stop = rng.randrange(start + 1, length + 1)
    return start, stop


def _displacement(tokens: Sequence[int]) -> Counter[int]:
    """Row index -> weight: what the state moves over these tokens, from just before each run of them to its end."""
    weights: Counter[int] = Counter()
    for token in tokens:
        weights[token] += 1
        weights[token - 1] -= 1
    return weights


def _view(displacement: Counter[int]) -> View:
    """Before the row's first token the state is taken as zero."""
    return [(index, float(weight)) for index, weight in sorted(displacement.items()) if weight and index >= 0]
