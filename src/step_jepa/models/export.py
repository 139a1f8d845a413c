"""Export: what any inference engine loads, the base model or an adapter, and beside it what training goes on from."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftModel

from step_jepa.errors import UserError
from step_jepa.models.predictors import hook_embeddings, save_predictors
from step_jepa.run_files import OPTIONS_FILE, PREDICTORS_FILE, STATE_FILE


def export(model: Any, tokenizer: Any, folder: str | os.PathLike, *, keep_adapter: bool = False) -> None:
    """Write what any inference engine loads: the model, merged, or the adapter alone.

    The predictor tokens lie beside it in predictors.safetensors, (K, E). The model itself is left as it is."""
    keep = keep_adapter and isinstance(model, PeftModel)
    if not keep and getattr(model, "is_quantized", False):
        raise UserError("a quantised model cannot be merged without loss: export its adapter with --keep_adapter")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for pattern in ("adapter_*", "model*.safetensors*", PREDICTORS_FILE, STATE_FILE, OPTIONS_FILE):
        for old in Path(folder).glob(pattern):  # of an earlier export, which would be loaded in place of this one
            old.unlink()
    if keep:
        # Without the base model's embeddings, which it has itself.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        _merged(model).save_pretrained(str(folder))
    save_predictors(model, folder)
    tokenizer.save_pretrained(folder)


def _merged(model: Any) -> Any:
    """A copy with the adapter merged in, made on the CPU, where a second model has room."""
    if not isinstance(model, PeftModel):
        return model
    device = model.device
    copy = deepcopy(model.to("cpu")).merge_and_unload()
    hook_embeddings(copy)
    model.to(device)
    return copy
