"""Held-out figures of a model, and the views that they are of."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from step_jepa.batches.views import Views
from step_jepa.errors import UserError
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.run_files import VIEWS_FILE
from step_jepa.training.config import StepJEPAOptions
from step_jepa.training.held_out import held_out
from step_jepa.training.representation import Representation

HELDOUT = ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "pairs")
MOST_VIEWS = 2000


def heldout(
    model: Any,
    data: Any,
    *,
    processing_class: Any = None,
    predictors: int = 1,
    pairs: Pairs = "all",
    loss: str = "cosine",
    batch_size: int = 16,
    seed: int = 42,
    **views: Any,
) -> tuple[dict[str, Any], Views]:
    """The Step-JEPA figures on examples that were not trained on: lm_loss (mean over tokens), jepa_loss and
    cosine_paired (means over pairs), cosine_unpaired (mean over all views of different pairs), pairs (their number).
    A figure that the data has too few pairs for is None. And the views of these pairs.

    model, data    what StepJEPARepresentationTrainer takes; a module needs its tokenizer as `processing_class`
    views          options of StepJEPAConfig that say how views are read
    Seeds the global random generators. Raises UserError."""
    options = StepJEPAOptions(predictors=predictors, pairs=pairs, loss=loss, **views)
    representation = Representation.load(model, options, seed=seed, processing_class=processing_class)
    result = held_out(representation, representation.evaluation_rows(data), batch_size=batch_size)
    figures = {"lm_loss": result.lm_loss, **result.figures}
    return {name: figures.get(name) for name in HELDOUT}, result.views.of(0)


def check_weights(model: nn.Module, name: str) -> None:
    """Raises UserError, naming the model, for weights that are not finite: whatever is read from them says nothing."""
    for parameter, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(f"{name}: its weights are not finite ({parameter}): training diverged; lower its step size")


def save_views(folder: Path, views: Views) -> None:
    """Write views.safetensors: predicted and target, float16 (P, H), each of length 1, as only directions are compared;
    problem and step (of the target), int64 (P,). P is at most 2,000, the first; without a pair there is no file."""
    path, first = folder / VIEWS_FILE, views[:MOST_VIEWS]
    path.unlink(missing_ok=True)
    if not len(first):
        return
    tensors = {
        "predicted": F.normalize(first.predicted, dim=-1).half(),
        "target": F.normalize(first.target, dim=-1).half(),
        "problem": first.problem.contiguous(),
        "step": first.step.contiguous(),
    }
    save_file(tensors, path)
