"""Objectives: each says which branches hang on the trunk and where its pairs of views are read.

An objective is a frozen dataclass with a `pairs` method; OBJECTIVES maps its name on the command line to it. How to add
one: docs/adding-an-objective.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from step_jepa.branches import Row, trunk
from step_jepa.controls import Control, Donors, Draw, with_random_boundaries
from step_jepa.objectives.base import Objective
from step_jepa.objectives.llm_jepa import LLMJEPA
from step_jepa.objectives.ssp import SSP
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.objectives.stp import STP, STPReleased
from step_jepa.tokens import Example

OBJECTIVES: dict[str, type[Objective]] = {
    "step_jepa": StepJEPA,
    "llm_jepa": LLMJEPA,
    "stp": STP,
    "stp_released": STPReleased,
    "ssp": SSP,
}


@dataclass(frozen=True)
class Planner:
    """Example -> row, for several objectives at once. Random choices follow from (seed, epoch, example, objective)
    alone, so they are the same for any batching, any number of workers, and after a resume."""

    objectives: Sequence[Objective] = ()
    seed: int = 0
    control: Control = "none"
    redraw: bool = False
    donors: Donors | None = None

    def __call__(self, example: Example, epoch: int = 0) -> Row:
        row = trunk(example)
        control_epoch = epoch if self.redraw else 0
        if self.control == "random_boundaries":
            example = with_random_boundaries(example, Random(f"{self.seed} {control_epoch} {example.index} boundaries"))
        for number, objective in enumerate(self.objectives):
            place = f"{example.index} {type(objective).__name__}"
            rng = Random(f"{self.seed} {epoch} {place}")
            draw = Draw(rng, self.control, f"{self.seed} {control_epoch} {place}", self.donors)
            row.pairs += [replace(pair, objective=number) for pair in objective.pairs(row, example, draw)]
        return row
