"""Step-JEPA: fine-tune language models with a joint-embedding predictive loss between reasoning steps."""

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than `step-jepa --help` to print
if TYPE_CHECKING:  # what tools see
    from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer, train_config
    from step_jepa.data.dataset import load_and_prepare_dataset
    from step_jepa.losses.registry import LossSpec, register_loss
    from step_jepa.models.loading import setup_model_and_tokenizer
    from step_jepa.objectives.base import Objective
    from step_jepa.objectives.registry import register_objective
    from step_jepa.options import option
    from step_jepa.training.config import RepresentationConfig
    from step_jepa.training.metrics import Metric, register_metric
    from step_jepa.training.trainer import RepresentationTrainer

_HOMES = {
    "LossSpec": "losses.registry",
    "Metric": "training.metrics",
    "Objective": "objectives.base",
    "RepresentationConfig": "training.config",
    "RepresentationTrainer": "training.trainer",
    "StepJEPAConfig": "adapted",
    "StepJEPARepresentationTrainer": "adapted",
    "load_and_prepare_dataset": "data.dataset",
    "option": "options",
    "register_loss": "losses.registry",
    "register_metric": "training.metrics",
    "register_objective": "objectives.registry",
    "setup_model_and_tokenizer": "models.loading",
    "train_config": "adapted",
}
__all__ = [
    "LossSpec",
    "Metric",
    "Objective",
    "RepresentationConfig",
    "RepresentationTrainer",
    "StepJEPAConfig",
    "StepJEPARepresentationTrainer",
    "load_and_prepare_dataset",
    "option",
    "register_loss",
    "register_metric",
    "register_objective",
    "setup_model_and_tokenizer",
    "train_config",
]


def __getattr__(name: str) -> object:
    """Loads on first use."""
    from importlib import import_module

    if name == "__version__":
        return import_module("importlib.metadata").version("step-jepa")
    if name not in _HOMES:
        raise AttributeError(f"module 'step_jepa' has no attribute {name!r}")
    return getattr(import_module(f"step_jepa.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
