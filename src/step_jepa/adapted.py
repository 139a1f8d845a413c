"""StepJEPARepresentationTrainer: the representation trainer with Step-JEPA's own part, the views of reasoning steps."""

from dataclasses import dataclass

from step_jepa.training.config import RepresentationConfig
from step_jepa.training.jepa_options import StepJEPAOptions, with_registered_options
from step_jepa.training.trainer import RepresentationTrainer


@dataclass
class StepJEPAConfig(StepJEPAOptions, RepresentationConfig):
    """TrainingArguments, the options of the JEPA term, and those of Step-JEPA and the other objectives."""


class StepJEPARepresentationTrainer(RepresentationTrainer):
    """Predict the representation of step i+1, read alone, from everything up to step i; or what `objective` names."""


def train_config() -> type[StepJEPAConfig]:
    """StepJEPAConfig with the options of all objectives that are registered by now, a user's own included."""
    return with_registered_options(StepJEPAConfig)
