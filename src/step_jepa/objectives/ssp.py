"""SSP (arXiv 2604.18464): from step to step the state should go on as it went. The trunk alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from step_jepa.data.example import Example
from step_jepa.objectives.base import Objective
from step_jepa.objectives.step_jepa import ReadOptions
from step_jepa.rows.branches import Pair, Row, difference
from step_jepa.rows.controls import Control, SamplingContext


@dataclass
class SSP(ReadOptions, Objective):
    """1 - cos(z_k - z_{k-1}, z_{k+1} - z_k), z_k the trunk's state at the end of step k."""

    loss: ClassVar[str | None] = "cosine"
    controls: ClassVar[frozenset[Control]] = frozenset({"random_boundaries", "frozen_target", "random_target"})

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        filled = example.filled_steps
        ends = [self._end(example, step) for step in filled]
        for place in range(1, len(filled) - 1):
            before, now, after = ends[place - 1 : place + 2]
            yield Pair(difference(now, before), difference(after, now), step=filled[place + 1])

    def _end(self, example: Example, step: int) -> int:
        """Index of the token at which the step is read."""
        stop = example.contents[step] if self.read == "content" else example.steps[step][1]
        return stop - 1
