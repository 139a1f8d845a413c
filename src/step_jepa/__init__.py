"""Step-JEPA: fine-tune language models with a joint-embedding predictive loss between reasoning steps."""

from importlib import import_module
from typing import Any

_HOMES = {
    "RepresentationConfig": "training.config",
    "RepresentationTrainer": "training.trainer",
    "StepJEPAConfig": "adapted",
    "StepJEPARepresentationTrainer": "adapted",
    "load_and_prepare_dataset": "data.dataset",
    "setup_model_and_tokenizer": "models.loading",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Loads on first use: `step-jepa --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'step_jepa' has no attribute {name!r}")
    return getattr(import_module(f"step_jepa.{_HOMES[name]}"), name)
