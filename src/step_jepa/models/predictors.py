"""Predictor tokens: K rows of a parameter of their own, beside a base model that stays as it is.

Predictor token k is not in the tokenizer: its id is V + k, V the embedding rows of the base model, which can exceed
the tokenizer's length. Its row is put into the output of the input embeddings; the head makes logits of V tokens.

Axes: K predictor tokens, E width of the embeddings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from step_jepa.batches.views import at_least_float32
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.models.sharding import reshard, spread_like, whole
from step_jepa.plurals import counted
from step_jepa.run_files.names import PREDICTORS_FILE


class PredictorTokens(nn.Embedding):
    """The rows.

    weight    (K, E), drawn and saved as rows of the base model's embedding are
    first_id  V
    scale     what the base model's embedding multiplies its rows by, as Gemma's does
    """

    def __init__(self, rows: Tensor, first_id: int, scale: float) -> None:
        count, width = rows.shape
        super().__init__(count, width, device="meta")  # which draws no random numbers
        self.weight = nn.Parameter(rows)
        self.first_id, self.scale = first_id, scale

    def put_into(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """Embeddings (B, L, E), with these rows where ids (B, L) are V and above."""
        rows = self((ids - self.first_id).clamp(min=0))
        rows = rows * torch.tensor(self.scale, dtype=rows.dtype)
        # Selected from all places, also where there is no such id: under DDP every rank must use every parameter.
        return torch.where((ids >= self.first_id)[..., None], rows.to(embedded), embedded)


@dataclass
class _Hooks:
    """What the hooks of an embedding need, kept in it, so that those of a copy find the copy's.

    ids  of the call that is under way
    """

    tokens: PredictorTokens
    handles: list[Any]
    ids: Tensor | None = None


_HOOKS = "predictor_hooks"


def _hide_predictor_ids(embedding: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The embedding has no row for them."""
    hooks, (ids, *others) = vars(embedding)[_HOOKS], inputs
    hooks.ids = ids
    return ids.clamp(max=hooks.tokens.first_id - 1), *others


def _put_rows_in_place(embedding: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
    hooks = vars(embedding)[_HOOKS]
    ids, hooks.ids = hooks.ids, None
    return hooks.tokens.put_into(embedded, ids)


def hook_embeddings(model: Any) -> None:
    """Have the rows put in place by the input embeddings as they are by now: adapters wrap them, merging unwraps."""
    for module in model.modules():
        hooks = vars(module).pop(_HOOKS, None)
        for handle in hooks.handles if hooks else ():
            handle.remove()
    tokens = getattr(model, "predictor_tokens", None)
    if tokens is None:
        return
    embedding = model.get_input_embeddings()
    handles = [
        embedding.register_forward_pre_hook(_hide_predictor_ids),
        # Before others, such as the one that lets gradients through frozen embeddings: they act on the whole output.
        embedding.register_forward_hook(_put_rows_in_place, prepend=True),
    ]
    vars(embedding)[_HOOKS] = _Hooks(tokens, handles)  # not as a submodule: it is the model's


def base_rows(model: Any) -> int:
    """V, the embedding rows of the base model."""
    return model.get_input_embeddings().weight.shape[0]


def predictor_ids(model: Any) -> list[int]:
    """Token ids of the model's predictor tokens."""
    tokens = getattr(model, "predictor_tokens", None)
    return [] if tokens is None else list(range(tokens.first_id, tokens.first_id + len(tokens.weight)))


def saved_predictors(name: str) -> int | None:
    """How many trained predictor rows lie beside a model; None if there are none."""
    path = Path(resolve(name), PREDICTORS_FILE)
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return file.get_slice("predictors").get_shape()[0]


def add_predictors(model: Any, tokenizer: Any, count: int, folder: str | None, seed: int) -> None:
    """Rows that continue those beside the model's export, or are drawn like the rows that are there.

    The model's attribute `predictor_tokens` holds them; it is None where `count` is 0."""
    if hasattr(model, "predictor_tokens"):
        present = len(predictor_ids(model))
        if present != count:
            carried = counted(present, "predictor row")
            raise UserError(f"the model carries {carried}, not {count}: use --predictors {present}")
        return
    rows = base_rows(model)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} rows: resize its embeddings first"
        )
    trained = _saved_rows(folder, count)
    if trained is None and count:
        trained = _drawn_like(model.get_input_embeddings().weight.detach().float(), count, seed)
    set_predictors(model, trained)


def set_predictors(model: Any, rows: Tensor | None) -> None:
    """Give the model predictor tokens of these rows (K, E); none where there are none."""
    embedding, network = model.get_input_embeddings(), model
    if isinstance(model, PeftModel):
        network = model.get_base_model()  # so that the rows stay when the adapter is merged
    network.predictor_tokens = None
    if rows is not None and len(rows):
        rows = rows.to(embedding.weight)
        if isinstance(model, PeftModel):
            rows = at_least_float32(rows)  # as the adapter's own parameters are
        network.predictor_tokens = PredictorTokens(rows, base_rows(model), _scale(embedding))
        save_beside(network, "predictor_tokens.weight")
    hook_embeddings(model)


def save_beside(model: Any, parameter: str) -> None:
    """Have the model's own files not hold a parameter of ours: they stay the base model's, whoever loads them."""
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), parameter}


def _scale(embedding: Any) -> float:
    inner = getattr(embedding, "base_layer", embedding)  # of one that an adapter wraps
    return float(getattr(inner, "embed_scale", 1.0))


def _drawn_like(known: Tensor, count: int, seed: int) -> Tensor:
    """(K, E) of the mean and spread of the rows that are there."""
    noise = torch.randn(count, known.shape[1], generator=torch.Generator().manual_seed(seed))
    return known.mean(0) + known.std(0) * noise.to(known.device)


# Files


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What a file of ours holds, by name. Raises UserError for one that is cut off."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): write it anew, or move it away") from error


def _saved_rows(folder: str | None, count: int) -> Tensor | None:
    """(K, E), beside the model's export. Raises UserError for another K."""
    path = Path(folder, PREDICTORS_FILE) if folder else None
    if path is None or not path.exists():
        return None
    trained = load_tensors(path)["predictors"]
    if len(trained) != count:
        rows = counted(len(trained), "predictor row")
        raise UserError(f"{path} holds {rows}: use --predictors {len(trained)}, or move it away")
    return trained


def trained_predictors(model: Any) -> Tensor:
    """(K, E), a copy on the CPU; all ranks that share the model have to call it."""
    tokens = model.predictor_tokens
    if tokens is None:
        return torch.zeros(0, model.get_input_embeddings().weight.shape[1])
    return whole(tokens.weight.detach()).cpu().clone()


def save_predictors(model: Any, folder: Any) -> None:
    """Write predictors.safetensors, (K, E), where it is decided how many there are, none included."""
    if hasattr(model, "predictor_tokens"):
        save_predictor_rows(trained_predictors(model), folder)


def save_predictor_rows(rows: Tensor, folder: Any) -> None:
    """Write predictors.safetensors."""
    save_file({"predictors": rows}, Path(folder, PREDICTORS_FILE))


@torch.no_grad()
def load_predictors(model: Any, checkpoint: Any) -> None:
    """The rows of a checkpoint that a run goes on from."""
    if predictor_ids(model):
        reshard(model)
        weight = model.predictor_tokens.weight
        weight.copy_(spread_like(load_tensors(Path(checkpoint, PREDICTORS_FILE))["predictors"], weight))


# Earlier versions appended the rows to the vocabulary, and said in the configuration how many they are.


def part_appended_rows(model: Any) -> None:
    """Give a model of an earlier version's checkpoint the base model's rows, and predictor tokens of the others."""
    count = getattr(model.config, "predictors", None)
    if count is None:
        return
    del model.config.predictors
    rows = base_rows(model) - count
    appended = model.get_input_embeddings().weight[rows:].detach().clone()
    if count:
        model.resize_token_embeddings(rows)
    set_predictors(model, appended)


def check_checkpoint(model: Any, checkpoint: Any) -> None:
    """Raises UserError for a checkpoint of an earlier version."""
    if not predictor_ids(model) or Path(checkpoint, PREDICTORS_FILE).exists():
        return
    advice = f"begin a new run from its weights with --model_name {checkpoint}"
    if Path(checkpoint, "adapter_config.json").exists():
        advice = "begin the run anew, or resume it with the version that wrote it"
    version = "a version that kept predictor rows in the vocabulary"
    raise UserError(f"{checkpoint} has no {PREDICTORS_FILE}: it is of {version}: {advice}")
