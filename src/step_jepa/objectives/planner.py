"""Planner: example -> row, for several objectives at once; and how much of it a control changes."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from step_jepa.data.example import Example
from step_jepa.data.examples import Examples
from step_jepa.objectives.base import Objective
from step_jepa.rows.branches import TRUNK, Row, View, trunk
from step_jepa.rows.controls import ROW_CONTROLS, Control, NegativeSampler, SamplingContext, with_random_boundaries
from step_jepa.rows.least_certain import StepEntropies


@dataclass(frozen=True)
class Planner:
    """Random choices follow from (seed, epoch, example, objective) alone, so they are the same for any batching, any
    number of workers, and after a resume.

    entropies    of the base model where steps end, where they decide which pairs are planned
    trajectory   whether the trunk's states at the ends of steps are looked at too, which costs nothing
    """

    objectives: Sequence[Objective] = ()
    seed: int = 0
    control: Control = "none"
    redraw: bool = False
    negative_sampler: NegativeSampler | None = None
    entropies: StepEntropies | None = None
    trajectory: bool = False

    def __call__(self, example: Example, epoch: int = 0) -> Row:
        row = trunk(example)
        if self.trajectory:
            row.trajectory = [example.steps[step][1] - 1 for step in example.filled_steps]
        control_epoch = epoch if self.redraw else 0
        if self.control == "random_boundaries":
            example = with_random_boundaries(example, Random(f"{self.seed} {control_epoch} {example.index} boundaries"))
        for number, objective in enumerate(self.objectives):
            place = f"{example.index} {type(objective).__name__}"
            rng = Random(f"{self.seed} {epoch} {place}")
            control_seed = f"{self.seed} {control_epoch} {place}"
            sampling = SamplingContext(rng, self.control, control_seed, self.negative_sampler, self.entropies)
            for pair in objective.pairs_of(row, example, sampling):
                row.pairs.append(replace(pair, objective=number))
        return row

    def lengths(self, examples: Examples) -> NDArray[np.int64] | None:
        """int64 (N,), tokens of the row of each example of a whole table, where that follows from the spans of steps
        alone; None where rows have to be planned."""
        if self.control in ROW_CONTROLS or self.entropies is not None:
            return None
        lengths = examples.token_counts()
        for objective in self.objectives:
            added = objective.branch_tokens(examples.filled_steps(), len(examples))
            if added is None:
                return None
            lengths = lengths + added
        return lengths


def unchanged_pairs(plan: Planner, examples: Sequence[Example]) -> int:
    """How many pairs of the first epoch the control leaves as they are: both views read the same tokens, and see as
    much of the trunk. 0 for controls that act elsewhere, and for none."""
    if plan.control not in ROW_CONTROLS:
        return 0
    uncontrolled = replace(plan, control="none")
    count = 0
    for example in examples:
        count += len(_contents(plan(example)) & _contents(uncontrolled(example)))
    return count


def _contents(row: Row) -> set[tuple[Any, ...]]:
    """What tells each pair of a row from other pairs."""
    return {
        (pair.objective, pair.step, _content(row, pair.predicted), _content(row, pair.target)) for pair in row.pairs
    }


def _content(row: Row, view: View) -> tuple[Any, ...]:
    return tuple((weight, *_state(row, index)) for index, weight in view)


def _state(row: Row, index: int) -> tuple[Any, ...]:
    """What tells a state from others: its place on the trunk; or its branch's tokens up to it, and what they see."""
    if row.branch[index] == TRUNK:
        return (index,)
    start = bisect_left(row.branch, row.branch[index])  # branches are numbered in order
    return (tuple(row.input_ids[start : index + 1]), row.visible_length[index])
