"""Semantic tube prediction (STP, arXiv 2602.22617): hidden states should move in straight lines. The trunk alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from step_jepa.data.tokens import Example
from step_jepa.losses.distances import Loss
from step_jepa.objectives.base import Objective
from step_jepa.rows.branches import Pair, Row, View, difference
from step_jepa.rows.controls import Control, SamplingContext


@dataclass(frozen=True)
class STP(Objective):
    """1 - cos(h_t - h_r, h_r - h_s), for random s < r < t in the answer; `spans` draws an example."""

    spans: int = 1

    loss: ClassVar[Loss | None] = "cosine"

    @classmethod
    def from_config(cls, config: Any, predictors: Sequence[int]) -> "STP":
        return cls(1 if config.pairs == "first" else config.pairs_per_example)

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        answer = range(example.steps[0][0], example.steps[-1][1])
        if len(answer) < 3:
            return
        for number in range(self.spans):
            s, r, t = sorted(sampling.rng.sample(answer, 3))
            yield Pair(difference(t, r), difference(r, s), step=number)


@dataclass(frozen=True)
class STPReleased(STP):
    """What the released code optimises instead (`--linear random_span`): 1 - cos(way of the rest, way of the patch).

    The question and the answer are taken as one text, the chat's tokens between them left out. A random patch of it is
    carved out; the patch's way is what the state moves from just before the patch to its end, the rest's way is what
    it moves over all other tokens of that text. The two are no neighbours: the rest lies on both sides of the patch."""

    controls: ClassVar[frozenset[Control]] = STP.controls

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        if example.user is None:
            return
        text = [*range(*example.user), *range(example.steps[0][0], example.steps[-1][1])]
        if len(text) < 2:
            return
        for number in range(self.spans):
            start = sampling.rng.randrange(len(text))
            stop = sampling.rng.randrange(start + 1, len(text) + 1)
            while (start, stop) == (0, len(text)):
                stop = sampling.rng.randrange(start + 1, len(text) + 1)
            patch = _way(text[start:stop])
            rest = Counter(_way(text))
            rest.subtract(patch)
            yield Pair(_view(rest), _view(patch), step=number)


def _way(tokens: Sequence[int]) -> Counter[int]:
    """Row index -> weight: what the state moves over these tokens, from just before each run of them to its end."""
    way: Counter[int] = Counter()
    for token in tokens:
        way[token] += 1
        way[token - 1] -= 1
    return way


def _view(way: Counter[int]) -> View:
    """Before the row's first token the state is taken as zero."""
    return [(index, float(weight)) for index, weight in sorted(way.items()) if weight and index >= 0]
