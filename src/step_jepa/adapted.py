"""StepJEPARepresentationTrainer: the representation trainer with Step-JEPA's own part, the views of reasoning steps."""

from copy import copy
from dataclasses import Field, dataclass, make_dataclass
from typing import Any, get_type_hints

from step_jepa.objectives import OBJECTIVES
from step_jepa.options import option_fields
from step_jepa.training.config import RepresentationConfig, StepJEPAOptions
from step_jepa.training.trainer import RepresentationTrainer


@dataclass
class StepJEPAConfig(StepJEPAOptions, RepresentationConfig):
    """TrainingArguments, the options of the JEPA term, and those of Step-JEPA and the other objectives."""


class StepJEPARepresentationTrainer(RepresentationTrainer):
    """Predict the representation of step i+1, read alone, from everything up to step i; or what `objective` names."""


def train_config() -> type[StepJEPAConfig]:
    """StepJEPAConfig with the options of all objectives that are registered by now, a user's own included."""
    added: list[tuple[str, Any, Field[Any]]] = []
    known = {each.name for each in option_fields(StepJEPAConfig)}
    for objective in OBJECTIVES.values():
        types = get_type_hints(objective)
        for each in option_fields(objective):
            if each.name not in known:
                known.add(each.name)
                added.append((each.name, types[each.name], copy(each)))
    if not added:
        return StepJEPAConfig
    # Trainer pickles its arguments, and a class that is made here cannot be found by its name.
    return make_dataclass("TrainConfig", added, bases=(StepJEPAConfig,), namespace={"__reduce__": _pickled})


def _pickled(config: StepJEPAConfig) -> tuple[Any, ...]:
    return _unpickled, (vars(config),)


def _unpickled(values: dict[str, Any]) -> StepJEPAConfig:
    config = StepJEPAConfig.__new__(StepJEPAConfig)
    vars(config).update(values)
    return config
