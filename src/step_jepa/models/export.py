"""Export: what any inference engine loads, at the base model's size, and beside it what training goes on from."""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from step_jepa.errors import UserError
from step_jepa.models.predictors import base_rows, trained_predictors, vocabulary_modules
from step_jepa.run_files import OPTIONS_FILE, PREDICTORS_FILE, STATE_FILE


def export(model: Any, tokenizer: Any, folder: str | os.PathLike, *, keep_adapter: bool = False) -> None:
    """Write what any inference engine loads: the base model's number of rows, merged, or the adapter alone.

    The predictor rows lie beside it in predictors.safetensors, (K, H). The model itself is left as it is."""
    rows, keep = base_rows(model), keep_adapter and isinstance(model, PeftModel)
    if not keep and getattr(model, "is_quantized", False):
        raise UserError("a quantised model cannot be merged without loss: export its adapter with --keep_adapter")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for pattern in ("adapter_*", "model*.safetensors*", PREDICTORS_FILE, STATE_FILE, OPTIONS_FILE):
        for old in Path(folder).glob(pattern):  # of an earlier export, which would be loaded in place of this one
            old.unlink()
    if keep:
        _export_adapter(model, folder)
    else:
        _export_model(_merged(model), rows, folder)
    if hasattr(model.config, "predictors"):
        save_file({"predictors": trained_predictors(model)}, Path(folder, PREDICTORS_FILE))
    tokenizer.save_pretrained(folder)


def _merged(model: Any) -> Any:
    """A copy with the adapter merged in, made on the CPU, where a second model has room."""
    if not isinstance(model, PeftModel):
        return model
    device = model.device
    copy = deepcopy(model.to("cpu")).merge_and_unload()
    model.to(device)
    return copy


def _base_state(model: Any, rows: int) -> dict[str, torch.Tensor]:
    """The model's weights with its embeddings, input and output, cut to `rows`."""
    owners = vocabulary_modules(model)
    state = model.state_dict()
    vocabulary = [value for name, value in state.items() if name.rpartition(".")[0] in owners]
    # By address, so that what was tied stays tied.
    cut = {value.data_ptr(): value[:rows].clone() for value in vocabulary}
    kept = {name: value for name, value in state.items() if not name.startswith("predictor_head.")}
    return {name: cut.get(value.data_ptr(), value) for name, value in kept.items()}


def _export_model(model: Any, rows: int, folder: str | os.PathLike) -> None:
    original, exported = model.config, deepcopy(model.config)
    exported.get_text_config().vocab_size = rows
    if hasattr(exported, "predictors"):
        del exported.predictors
    model.config = exported
    try:
        model.save_pretrained(folder, state_dict=_base_state(model, rows))
    finally:
        model.config = original


def _export_adapter(model: PeftModel, folder: str | os.PathLike) -> None:
    """The adapter without the predictor rows, which the base model does not have."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    weights = Path(folder, "adapter_model.safetensors")
    kept = {name: value for name, value in load_file(weights).items() if "token_adapter" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    path = Path(folder, "adapter_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "trainable_token_indices": None}, indent=2, sort_keys=True) + "\n")
