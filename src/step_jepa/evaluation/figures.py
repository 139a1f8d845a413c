"""Held-out figures of a model, and the views that they are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step_jepa.batches.views import Views
from step_jepa.data.dataset import PreparedData
from step_jepa.run_files.names import VIEWS_FILE
from step_jepa.run_files.writing import write_whole
from step_jepa.training.held_out import held_out
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation

HELDOUT = ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "pairs")
MOST_VIEWS = 2000


@dataclass
class ModelFigures:
    """figures   by their names in HELDOUT; None for one that the data has too few pairs for
    views     of the first objective's pairs
    data      the examples, and how many were cut or left out
    """

    figures: dict[str, float | None]
    views: Views
    data: PreparedData


def model_figures(
    model: str | PreTrainedModel,
    records: Sequence[Mapping[str, Any]],
    options: StepJEPAOptions,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
    seed: int = 42,
) -> ModelFigures:
    """The figures of the options' objectives on examples that were not trained on: lm_loss (mean over tokens),
    jepa_loss and cosine_paired (means over pairs), cosine_unpaired (mean over all views of different pairs), pairs
    (their number).

    Args:
        model: hub id, folder, or module (then with `processing_class`).
        records: conversations with steps.
        options: which views are read and how, see `training.config.heldout_options`.
        processing_class: the tokenizer of a module.
        batch_size: examples that are read at once; a contrastive loss depends on it.
        seed: of predictor rows that were never trained, and of random pairs.

    Raises:
        UserError: for records that cannot be used.
    """
    representation = Representation.load(model, options, seed=seed, processing_class=processing_class)
    data = representation.prepare(records)
    result = held_out(representation, representation.evaluation_rows(data), batch_size=batch_size)
    figures = {"lm_loss": result.lm_loss, **result.figures}
    return ModelFigures({name: figures.get(name) for name in HELDOUT}, result.views.of(0), data)


def no_figures() -> ModelFigures:
    """Those where no record has a solution."""
    nothing, no_index = torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)
    views = Views(nothing, nothing, no_index, no_index, no_index)
    return ModelFigures(dict.fromkeys(HELDOUT), views, PreparedData([], cut=0, left_out=0))


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
    write_whole(path, save(tensors))
