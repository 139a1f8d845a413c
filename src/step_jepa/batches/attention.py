"""Who sees whom: the mask of a batch, made on the device from its integers, in the form that the model takes.

Axes: B rows, L tokens of a row; q the token that looks, k the token that it may see.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.batches.attention_parts import NAME, in_parts, inputs_in_parts
from step_jepa.batches.batch import Batch, is_flat
from step_jepa.batches.collate import BranchCollator, FlatCollator
from step_jepa.data.example import IGNORED
from step_jepa.errors import UserError
from step_jepa.rows.branches import TRUNK, Row

Mask = Tensor | dict[str, Tensor]


def may_see(branch: Tensor, visible_length: Tensor) -> Tensor:
    """The one rule of attention. int64 (B, L) twice -> bool (B, L, L), [b, q, k]: q sees k iff k is in q's own branch
    and k <= q, or k is on the trunk and k < visible_length(q)."""
    place = torch.arange(branch.shape[1], device=branch.device)
    own = (branch[:, :, None] == branch[:, None, :]) & (place <= place[:, None])
    trunk = (branch == TRUNK)[:, None, :] & (place < visible_length[:, :, None])
    return own | trunk


def within(position_ids: Tensor, window: int) -> Tensor:
    """bool (B, L, L): the sliding window, counted in positions, so that it slides back into a branch's prefix."""
    return position_ids[:, :, None] - position_ids[:, None, :] < window


def seen(config: Any, branch: Tensor, visible_length: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
    """What each kind of layer of a model of this configuration shows: bool (B, L, L) by "full_attention" or
    "sliding_attention"."""
    config = config.get_text_config()
    all_seen = may_see(branch, visible_length)
    kinds = _layer_kinds(config)
    slid = all_seen & within(position_ids, config.sliding_window) if "sliding_attention" in kinds else all_seen
    return {kind: slid if kind == "sliding_attention" else all_seen for kind in sorted(kinds)}


def attention_mask(model: Any, branch: Tensor, visible_length: Tensor, position_ids: Tensor) -> Mask:
    """What `model(attention_mask=...)` takes: (B, 1, L, L), bool for sdpa (True = sees), additive for eager; for a
    model with sliding layers one of these per layer type."""
    config = model.config.get_text_config()

    def formed(mask: Tensor) -> Tensor:
        return mask[:, None] if config._attn_implementation == "sdpa" else _additive(mask[:, None], model.dtype)

    masks = {kind: formed(mask) for kind, mask in seen(config, branch, visible_length, position_ids).items()}
    plain = set(masks) == {"full_attention"} or not getattr(config, "layer_types", None)
    return next(iter(masks.values())) if plain else masks


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _layer_kinds(config: Any) -> set[str]:
    if getattr(config, "layer_types", None):
        return set(config.layer_types)
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return {"sliding_attention" if windowed else "full_attention"}


def attention_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Who sees whom and where each token stands, as `model(...)` takes it. A flat batch is read within `reading`."""
    if is_flat(batch):
        return inputs_in_parts(batch)
    if "branch" not in batch:
        return {"attention_mask": batch["attention_mask"]}
    mask = attention_mask(model, batch["branch"], batch["visible_length"], batch["position_ids"])
    return {"attention_mask": mask, "position_ids": batch["position_ids"]}


def reading(model: Any, batch: Batch) -> AbstractContextManager[None]:
    """The model with the attention that this batch needs."""
    return in_parts(model) if is_flat(batch) else nullcontext()


def obstacle(model: Any) -> str | None:
    """Why attention cannot be in parts, as far as the model's configuration shows; None where it can."""
    config = model.config.get_text_config()
    if config is not model.config:
        return "it has more than a text model"
    if config._attn_implementation != "sdpa":
        return f"it was loaded with {config._attn_implementation} attention"
    if strange := _layer_kinds(config) - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {', '.join(sorted(strange))}"
    if "position_ids" not in inspect.signature(_unwrapped(model).forward).parameters:
        return "it takes no position ids"
    if any("att" in name and "drop" in name and value for name, value in config.to_dict().items()):
        return "it has attention dropout"  # attention_dropout; attn_pdrop in GPT-2; and whatever others call it
    if getattr(config, "output_router_logits", False):
        return "its routers have a loss of their own"
    if not _goes_through_the_interface(_unwrapped(model)):
        return "its attention does not go through transformers' interface"
    return None


def _goes_through_the_interface(model: Any) -> bool:
    if not hasattr(model, "set_attn_implementation"):  # no model of transformers
        return False
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    after = model.config._attn_implementation
    model.set_attn_implementation(before)
    return after == NAME


def check(model: Any, *, flat: bool = False) -> None:
    """Raises UserError, with the reason, where the model cannot take branches in padded rows, or flat batches.

    What can be read off its configuration is; then a row of nine tokens shows whether anything leaks."""
    config, name = model.config.get_text_config(), type(model).__name__
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {config._attn_implementation!r} takes no mask of branches: "
            'load the model with attn_implementation="sdpa" or "eager"'
        )
    strange = _layer_kinds(config) - {"full_attention", "sliding_attention"}
    if strange:
        raise UserError(f"{name} has layers of type {', '.join(sorted(strange))}, which take no mask of branches")
    if "position_ids" not in inspect.signature(_unwrapped(model).forward).parameters:
        raise UserError(f"{name} takes no position ids, which branches need")
    if getattr(config, "output_router_logits", False):
        raise UserError(f"{name} has routers with a loss of their own, which is not part of ours: turn it off")
    if leak := _leak(model, flat=flat):
        raise UserError(f"{name} lets {leak} in spite of the mask: it cannot be trained with branches")


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _nine_tokens(ids: list[int]) -> Row:
    """Trunk 0..4, a branch 5..6 that continues trunk token 2, an isolated branch 7..8."""
    row = Row(ids[:5], [IGNORED, IGNORED, IGNORED, *ids[3:5]])
    row.append_branch(ids[5:7], position_offset=3, visible_length=3)
    row.append_branch(ids[7:], position_offset=3, visible_length=0)
    return row


@torch.no_grad()
def _leak(model: Any, *, flat: bool) -> str | None:
    """What sees something that it must not, found by other tokens in places."""
    # Spread over the vocabulary: its first ids are often special tokens that were never trained and look all alike.
    apart = model.config.get_text_config().vocab_size // 20
    collate = FlatCollator() if flat else BranchCollator(pad_id=0)

    def states(changed: range = range(0)) -> Tensor:
        ids = [apart * (place + 1 + 10 * (place in changed)) for place in range(9)]
        batch = {name: values.to(model.device) for name, values in collate([_nine_tokens(ids)]).items()}
        inputs = attention_inputs(model, batch)
        with reading(model, batch):
            out = model(
                input_ids=batch["input_ids"],
                output_hidden_states=[-1],
                logits_to_keep=F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:] != IGNORED,
                use_cache=False,
                **inputs,
            )
        if len(out.logits) != 2:
            raise ValueError("it makes logits where none are asked for")
        if flat and inputs["parts"].windows != _windows(model):
            raise ValueError("its layers do not say the window that they look through: give --attention dense")
        in_order = batch["branch"][0].argsort(stable=True)
        return out.hidden_states[-1][0, in_order].float()

    def moved(before: Tensor, after: Tensor, least: float = 1e-2) -> bool:
        return bool((before - after).norm() > least * before.norm())

    training = model.training
    model.eval()
    try:
        plain, trunk, branches = states(), states(range(5)), states(range(5, 9))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{type(model).__name__} takes no mask of branches: {str(error).splitlines()[0]}") from None
    finally:
        model.train(training)
    if moved(plain[:5], branches[:5]):
        return "the trunk see a branch"
    if moved(plain[7:], trunk[7:]):
        return "an isolated branch see the trunk"
    if not moved(plain[5:7], trunk[5:7], least=1e-4):
        return "a branch overlook its prefix"
    return None


def _windows(model: Any) -> dict[int, int | None]:
    """By layer, the window that its configuration asks for."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or [*_layer_kinds(config)] * config.num_hidden_layers
    return {layer: config.sliding_window if kind == "sliding_attention" else None for layer, kind in enumerate(kinds)}
