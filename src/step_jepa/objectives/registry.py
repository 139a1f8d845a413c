"""The objectives by name."""

from collections.abc import Callable

from step_jepa.errors import UserError
from step_jepa.objectives.base import Objective
from step_jepa.objectives.llm_jepa import LLMJEPA
from step_jepa.objectives.ssp import SSP
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.objectives.stp import STP, STPReleased
from step_jepa.options import option_fields

OBJECTIVES: dict[str, type[Objective]] = {
    "step_jepa": StepJEPA,
    "llm_jepa": LLMJEPA,
    "stp": STP,
    "stp_released": STPReleased,
    "ssp": SSP,
}


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """A class decorator: `--objective NAME` is this one from now on, and its options are options of `train`.

    Raises:
        UserError: for a name that is taken.
    """

    def register(objective: type[Objective]) -> type[Objective]:
        if name in OBJECTIVES or name == "none":
            raise UserError(f"objective {name} is there already: give another name")
        OBJECTIVES[name] = objective
        return objective

    return register


def objectives_that_read(name: str) -> list[str]:
    """The objectives that have an option, or use the predictors; none for one that belongs to all of them."""
    if name == "predictors":
        return [home for home, objective in OBJECTIVES.items() if objective.predicts]
    return [home for home, objective in OBJECTIVES.items() if name in _option_names(objective)]


def _option_names(objective: type[Objective]) -> set[str]:
    return {each.name for each in option_fields(objective)}
