"""Who sees whom: the mask of a batch, made on the device from its integers, in the form that the model takes.

Axes: B rows, L tokens of a row; q the token that looks, k the token that it may see.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from step_jepa.errors import UserError
from step_jepa.rows.branches import TRUNK

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


def check(model: Any) -> None:
    """Raises UserError, with the reason, where the model cannot take a mask of branches.

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
    if leak := _leak(model):
        raise UserError(f"{name} lets {leak} in spite of the mask: it cannot be trained with branches")


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def _leak(model: Any) -> str | None:
    """Trunk 0..4, a branch 5..6 that continues trunk token 2, an isolated branch 7..8; then other tokens in places."""
    device = model.device
    branch = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, 2]], device=device)
    visible_length = torch.tensor([[0, 0, 0, 0, 0, 3, 3, 0, 0]], device=device)
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 3, 4]], device=device)
    mask = attention_mask(model, branch, visible_length, position_ids)
    labelled = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0]], device=device).bool()

    # Spread over the vocabulary: its first ids are often special tokens that were never trained and look all alike.
    apart = model.config.get_text_config().vocab_size // 20

    def states(changed: slice | None = None) -> Tensor:
        ids = torch.arange(1, 10, device=device)[None] * apart
        if changed:
            ids[:, changed] += 10 * apart
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids,
            output_hidden_states=[-1],
            logits_to_keep=labelled,
            use_cache=False,
        )
        if len(out.logits) != 2:
            raise ValueError("it makes logits where none are asked for")
        return out.hidden_states[-1][0].float()

    def moved(before: Tensor, after: Tensor, least: float = 1e-2) -> bool:
        return bool((before - after).norm() > least * before.norm())

    training = model.training
    model.eval()
    try:
        plain, trunk, branches = states(), states(slice(0, 5)), states(slice(5, 9))
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
