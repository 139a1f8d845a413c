"""SSP (arXiv 2604.18464): from step to step the state should go on as it went. The trunk alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from step_jepa.data.tokens import Example
from step_jepa.losses.distances import Loss
from step_jepa.objectives.base import Objective
from step_jepa.objectives.step_jepa import Read
from step_jepa.rows.branches import Pair, Row, difference
from step_jepa.rows.controls import Control, SamplingContext


@dataclass(frozen=True)
class SSP(Objective):
    """1 - cos(z_k - z_{k-1}, z_{k+1} - z_k), z_k the trunk's state at the end of step k."""

    read: Read = "separator"

    loss: ClassVar[Loss | None] = "cosine"
    controls: ClassVar[frozenset[Control]] = frozenset({"random_boundaries", "frozen_target", "random_target"})
    options: ClassVar[frozenset[str]] = frozenset({"read"})

    @classmethod
    def from_config(cls, config: Any, predictors: Sequence[int]) -> "SSP":
        return cls(config.read)

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        stops = example.contents if self.read == "content" else [stop for _, stop in example.steps]
        ends = [(step, stops[step] - 1) for step, (start, stop) in enumerate(example.steps) if start < stop]
        for (before, now), (_, after) in pairwise(pairwise(ends)):
            yield Pair(difference(now[1], before[1]), difference(after[1], now[1]), step=after[0])
