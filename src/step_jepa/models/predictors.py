"""Predictor tokens: rows that the embedding of a base model gets beside its own.

Predictor token k is not in the tokenizer: its id is V + k, V the embedding rows of the base model, which can exceed
the tokenizer's length. `config.predictors` says how many such rows a model carries.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.run_files import PREDICTORS_FILE


def predictor_ids(model: Any) -> list[int]:
    """Token ids of the model's predictor rows: its last embedding rows."""
    count, rows = getattr(model.config, "predictors", 0), model.get_input_embeddings().weight.shape[0]
    return list(range(rows - count, rows))


def saved_predictors(name: str) -> int | None:
    """How many trained predictor rows lie beside a model; None if there are none."""
    path = Path(resolve(name), PREDICTORS_FILE)
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return file.get_slice("predictors").get_shape()[0]


def base_rows(model: Any) -> int:
    """V, the embedding rows of the base model."""
    return model.get_input_embeddings().weight.shape[0] - getattr(model.config, "predictors", 0)


def add_predictors(model: Any, tokenizer: Any, count: int, folder: str | None, seed: int) -> None:
    """New rows continue those beside the model's export, or are drawn like the rows that are there."""
    present = getattr(model.config, "predictors", None)
    if present == count:
        return
    if present is not None:
        raise UserError(f"the model carries {present} predictor rows, not {count}: use --predictors {present}")
    if isinstance(model, PeftModel):
        raise UserError("the adapter does not train predictor rows: give the base model, and peft_config")
    rows = base_rows(model)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} rows: resize its embeddings first"
        )
    trained = _saved_rows(folder, count)
    if count:
        _append_rows(model, rows, count, trained, seed)
    model.config.predictors = count


def _saved_rows(folder: str | None, count: int) -> torch.Tensor | None:
    """(K, H), beside the model's export. Raises UserError for another K."""
    path = Path(folder, PREDICTORS_FILE) if folder else None
    if path is None or not path.exists():
        return None
    trained = load_file(path)["predictors"]
    if len(trained) != count:
        raise UserError(f"{path} holds {len(trained)} predictor rows: use --predictors {len(trained)}, or move it away")
    return trained


@torch.no_grad()
def _append_rows(model: Any, rows: int, count: int, trained: torch.Tensor | None, seed: int) -> None:
    tied = model.config.get_text_config().tie_word_embeddings
    with torch.random.fork_rng():  # an adapter that is drawn next begins the same with predictors as without
        model.resize_token_embeddings(rows + count, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    if trained is None:
        trained = _drawn_like(weight[:rows].float(), count, seed)
    weight[rows:] = trained.to(weight)
    if not tied and model.get_output_embeddings() is not None:
        model.get_output_embeddings().weight[rows:] = 0  # never read: the language-model loss leaves them out


def _drawn_like(known: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """(K, H) of the mean and spread of the rows that are there."""
    noise = torch.randn(count, known.shape[1], generator=torch.Generator().manual_seed(seed))
    return known.mean(0) + known.std(0) * noise.to(known.device)


def trained_predictors(model: Any) -> torch.Tensor:
    """(K, H); under LoRA the trained rows are not in the weight itself."""
    embedding = model.get_input_embeddings()
    adapter = getattr(embedding, "token_adapter", None)
    rows = (
        embedding.weight[base_rows(model) :]
        if adapter is None
        else adapter.trainable_tokens_delta[model.active_adapter]
    )
    return rows.detach().cpu().contiguous()


def vocabulary_modules(model: Any) -> list[str]:
    """Names of the modules with one row per token: the embeddings and the head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if module in ends]
