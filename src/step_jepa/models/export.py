"""Export: what any inference engine loads, the base model or an adapter, and beside it what training goes on from."""

import os
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from step_jepa.data.example import IGNORED
from step_jepa.data.tokens import encode
from step_jepa.errors import UserError
from step_jepa.models.predictors import hook_embeddings, save_predictors
from step_jepa.run_files.names import OPTIONS_FILE, PREDICTORS_FILE, STATE_FILE
from step_jepa.run_files.writing import staged

_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_BESIDE = ("adapter_config.json", PREDICTORS_FILE, STATE_FILE, OPTIONS_FILE)
_README = "README.md"  # PEFT writes one


def export(
    model: Any,
    tokenizer: Any,
    folder: str | os.PathLike,
    *,
    keep_adapter: bool = False,
    expendable: bool = False,
) -> None:
    """Write what any inference engine loads: the model, merged, or the adapter alone.

    The predictor tokens lie beside it in predictors.safetensors, (K, E). The model itself is left as it is, unless it
    is expendable. An earlier export is replaced once this one is whole. Raises UserError where the folder is that of
    the adapter's base model."""
    keep, folder = keep_adapter and isinstance(model, PeftModel), Path(folder)
    if not keep and getattr(model, "is_quantized", False):
        raise UserError("a quantised model cannot be merged without loss: export its adapter with --keep_adapter")
    if keep and folder.exists() and is_folder_of(folder, getattr(model, "loaded_from", None)):
        raise UserError(f"{folder} holds the base model, which the adapter would replace: give another output folder")
    with staged(folder) as stage:
        if not keep and isinstance(model, PeftModel):
            model = _merged(model if expendable else _copied(model))
        _write(model, tokenizer, stage)
        if (folder / _README).exists():
            (stage / _README).unlink(missing_ok=True)
        for old in filter(is_exported, folder.iterdir()):  # it would be loaded in place of this one
            old.unlink()


def is_exported(path: Path) -> bool:
    """Whether it has the name of a file of an export that an earlier one may have, and a later one not."""
    return path.name in _BESIDE or _WEIGHTS.fullmatch(path.name) is not None


def is_folder_of(folder: Path, model: str | None) -> bool:
    """Whether a model, given by hub id or folder, lies in the folder."""
    return model is not None and Path(model).is_dir() and Path(model).samefile(folder)


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    generation = _generation_config(model, tokenizer)
    # An adapter without the base model's embeddings, which it has itself.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(str(folder), **options)
    generation.save_pretrained(folder)
    save_predictors(model, folder)
    tokenizer.save_pretrained(folder)


def _generation_config(model: Any, tokenizer: Any) -> GenerationConfig:
    """The model's, with the end of turn that was trained among the tokens that end a text: a base model knows its own
    alone, and would write on."""
    generation = deepcopy(model.generation_config)
    end, known = end_of_turn(tokenizer), generation.eos_token_id
    known = known if isinstance(known, list) else [known]
    if end is not None and end not in known:
        generation.eos_token_id = [end, *(token for token in known if token is not None)]
    return generation


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the tokenizer's chat template ends an answer with, which training labels; None where no answer can
    be trained with it."""
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    try:
        labels = encode(tokenizer, messages, ["2"]).labels
    except UserError:
        return None
    return next(label for label in reversed(labels) if label != IGNORED)


def _copied(model: Any) -> Any:
    """On the CPU, where a second model has room."""
    device = model.device
    copy = deepcopy(model.to("cpu"))
    model.to(device)
    return copy


def _merged(model: Any) -> Any:
    """The base model, with the adapter merged in."""
    base = model.merge_and_unload()
    hook_embeddings(base)
    return base
