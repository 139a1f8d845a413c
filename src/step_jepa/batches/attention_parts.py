"""Attention over a flat batch without a mask of all its tokens, through transformers' attention interface.

Three parts, by the one rule of attention.py: trunks are causal documents; isolated branches are short causal documents;
only the tokens of branches that see a prefix need a mask, of those few tokens against the prefixes of their trunks.

Axes: T tokens of the flat batch, L of one of N documents, H heads, D width of a head, I tokens of isolated branches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from step_jepa.batches import varlen
from step_jepa.batches.batch import Batch
from step_jepa.batches.parts import Parts

NAME = "step_jepa_parts"


def attention_in_parts(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    parts: Parts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query, key, value (1, H, T, D) -> (1, T, H, D).

    A forward pass that brings no parts gets transformers' own attention. Raises ValueError for what is not computed
    here."""
    if parts is None:
        options = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **kwargs}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    _refuse(module, dropout, kwargs)
    parts.windows[getattr(module, "layer_idx", len(parts.windows))] = sliding_window
    # enable_gqa: queries of a group share their keys, which are not copied.
    attend = Attention(parts, sliding_window, {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]})
    return attend(query, key, value), None


@dataclass
class Attention:
    """One layer's attention over a flat batch.

    window    that it looks through, counted in positions
    options   of the kernels
    """

    parts: Parts
    window: int | None
    options: dict[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, H, T, D) -> (1, T, H, D)."""
        # One split each: as many slices would each fill a gradient of all T tokens with zeros.
        pieces = [states.split(self.parts.lengths, dim=2) for states in (query, key, value)]
        if query.is_cuda and query.dtype in varlen.DTYPES and varlen.serves(query.device, query.dtype, query.shape[3]):
            outputs = [self._by_varlen(query, key, value)]
        else:
            outputs = self._by_document(pieces)
        queries, keys, values = pieces
        for call, tokens in enumerate(self.parts.prefixed):
            mask = self.parts.mask(call, self.window)
            states = tokens.queried(queries), tokens.seen(keys), tokens.seen(values)
            outputs.append(self._kernel(*states, attn_mask=mask))
        return torch.cat(outputs, dim=1)

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, **mask: Any) -> Tensor:
        """(N, H, L, D) -> (N, L, H, D)."""
        return F.scaled_dot_product_attention(query, key, value, **mask, **self.options).transpose(1, 2)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """N documents of L tokens: (N, H, L, D) -> (N, L, H, D)."""
        length = query.shape[2]
        if self.window is None or length <= self.window:
            return self._kernel(query, key, value, is_causal=True)
        if length > 2 * self.window:
            return self._in_blocks(query, key, value, self.window)
        return self._kernel(query, key, value, attn_mask=self.parts.band(length, self.window))

    def _in_blocks(self, query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        """As `_causal`, of documents longer than two windows: blocks of a window's tokens see the block before and
        themselves, so that the cost is by the window."""
        documents, _, length, _ = query.shape
        first = [states[:, :, :window] for states in (query, key, value)]
        padding = (0, 0, 0, -length % window)
        queries, keys, values = (
            F.pad(states, padding).unflatten(2, (-1, window)).transpose(1, 2) for states in (query, key, value)
        )  # (N, blocks, H, window, D)
        seen = [torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=3).flatten(0, 1) for blocks in (keys, values)]
        mask = self.parts.band(2 * window, window)[window:]
        later = self._kernel(queries[:, 1:].flatten(0, 1), *seen, attn_mask=mask)
        later = later.unflatten(0, (documents, -1)).flatten(1, 2)
        return torch.cat([self._kernel(*first, is_causal=True), later], dim=1)[:, :length]

    def _by_document(self, pieces: list[tuple[Tensor, ...]]) -> list[Tensor]:
        """A call for every trunk, and one for all isolated branches of like length."""
        queries, keys, values = pieces
        count = len(self.parts.trunks)
        trunks = zip(queries[:count], keys[:count], values[:count], strict=True)
        outputs = [self._causal(*trunk) for trunk in trunks]
        if self.parts.buckets:
            outputs.append(self._isolated(queries[count], keys[count], values[count]))
        return outputs

    def _isolated(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, H, I, D) -> (1, I, H, D)."""
        by_token = [states[0].transpose(0, 1) for states in (query, key, value)]
        outputs = []
        for bucket in self.parts.buckets:
            padded = [states.index_select(0, bucket.flatten()).unflatten(0, bucket.shape) for states in by_token]
            query, key, value = (states.transpose(1, 2) for states in padded)
            outputs.append(self._causal(query, key, value).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.parts.unpadded)[None]

    def _by_varlen(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All causal documents in one call of a kernel that knows where they end."""
        ends, longest = self.parts.document_ends, max([*self.parts.trunks, *self.parts.isolated])
        causal = sum(self.parts.trunks) + sum(self.parts.isolated)
        query, key, value = (states[0, :, :causal].transpose(0, 1) for states in (query, key, value))
        window = (-1 if self.window is None else self.window - 1, 0)
        output: Tensor = varlen.varlen_attn(
            query, key, value, ends, ends, longest, longest, window_size=window, **self.options
        )
        return output[None]


def _refuse(module: Any, dropout: float, kwargs: dict[str, Any]) -> None:
    reasons = {
        "attention dropout": dropout > 0,
        "soft-capping": kwargs.get("softcap") is not None,
        "attention sinks": kwargs.get("s_aux") is not None,
        "a position bias": kwargs.get("position_bias") is not None,
        "attention in both directions": kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"attention in parts knows no {reason}: give --attention dense")


AttentionInterface.register(NAME, attention_in_parts)


def inputs_in_parts(batch: Batch) -> dict[str, Any]:
    """What `model(...)` takes of a flat batch, within `in_parts`.

    A mask of four dimensions is used as it is, so that transformers makes none, which would cut at jumps of the
    positions. This one fits nothing: attention that does not read the parts fails instead of seeing too much."""
    no_mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=batch["input_ids"].device)
    return {"attention_mask": no_mask, "position_ids": batch["position_ids"], "parts": Parts(batch)}


@contextmanager
def in_parts(model: Any) -> Iterator[None]:
    """The model's attention goes through here; then as it was, so that nothing else that the model is used for changes.

    Activation checkpointing runs layers once more in the backward pass, which must stand inside too."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
