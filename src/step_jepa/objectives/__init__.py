"""Objectives: each says which branches hang on the trunk and where its pairs of views are read.

An objective is a frozen dataclass with a `pairs` method; OBJECTIVES maps its name on the command line to it. How to add
one: docs/adding-an-objective.md.
"""

from step_jepa.objectives.base import Objective
from step_jepa.objectives.llm_jepa import LLMJEPA
from step_jepa.objectives.ssp import SSP
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.objectives.stp import STP, STPReleased

OBJECTIVES: dict[str, type[Objective]] = {
    "step_jepa": StepJEPA,
    "llm_jepa": LLMJEPA,
    "stp": STP,
    "stp_released": STPReleased,
    "ssp": SSP,
}
