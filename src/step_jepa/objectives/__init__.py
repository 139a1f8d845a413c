"""Objectives: each says which branches hang on the trunk and where its pairs of views are read.

An objective is a dataclass with a method `pairs_of`; OBJECTIVES maps its name on the command line to it. How to add
one: docs/adding-an-objective.md.
"""

from step_jepa.objectives.base import Objective
from step_jepa.objectives.llm_jepa import LLMJEPA
from step_jepa.objectives.registry import OBJECTIVES, register_objective
from step_jepa.objectives.ssp import SSP
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.objectives.stp import STP, STPReleased

__all__ = ["LLMJEPA", "OBJECTIVES", "SSP", "STP", "Objective", "STPReleased", "StepJEPA", "register_objective"]
