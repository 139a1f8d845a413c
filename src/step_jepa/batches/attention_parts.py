"""Attention over a flat batch without a mask of all its tokens, through transformers' attention interface.

Three parts, by the one rule of attention.py: trunks are causal documents; isolated branches are short causal documents;
only the tokens of branches that see a prefix need a mask, of those few tokens against the prefixes of their trunks.

Axes: T tokens of the flat batch, H heads, D width of a head, I tokens of isolated branches, q the token that looks, k
the token that it may see.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from step_jepa.batches.collate import Batch
from step_jepa.rows.branches import TRUNK

logger = logging.getLogger(__name__)

NAME = "step_jepa_parts"
SHORT, PADDED_TO = 8, 128  # isolated branches are padded to a common length up to the latter, longer ones are not
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
VARLEN_DTYPES = (torch.float16, torch.bfloat16)

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


@dataclass
class PrefixedTokens:
    """Tokens of branches with a prefix that are looked up in one call.

    prefixes   of each of their trunks: (number of the trunk, how many of its first tokens are keys)
    sees       bool (q, k): the keys are those of the prefixes, then the tokens themselves
    distance   int64 (q, k): position of q minus position of k, for sliding windows
    """

    prefixes: list[tuple[int, int]]
    sees: Tensor
    distance: Tensor

    def mask(self, window: int | None) -> Tensor:
        """bool (q, k)."""
        return self.sees if window is None else self.sees & (self.distance < window)


class Parts:
    """What attention needs to know of a flat batch, made once for all layers; `model(..., parts=...)` takes it.

    trunks            lengths
    isolated          lengths of isolated branches
    buckets           int64 (N, M) each, isolated branches of like length: places of their tokens among the I
    unpadded          int64 (I,), where each isolated token is in the concatenated buckets
    prefixed          in groups of rows, in order
    windows           by layer, the sliding window that attention was called with
    """

    def __init__(self, batch: Batch, *, one_call: bool | None = None) -> None:
        """Of `one_call` for the prefixed tokens of all rows, or a call for each row; by default the former on an
        accelerator, where calls cost more than empty cells of a mask."""
        self.device = batch["input_ids"].device
        self.trunks: list[int] = batch["trunk_length"].tolist()
        self.isolated: list[int] = batch["isolated_length"].tolist()
        self.buckets, self.unpadded = _buckets(self.isolated, self.device)
        self.prefixed = self._prefixed(batch, self.device.type != "cpu" if one_call is None else one_call)
        self.windows: dict[int, int | None] = {}
        self._bands: dict[tuple[int, int], Tensor] = {}

    @property
    def lengths(self) -> list[int]:
        """Of the pieces that the T tokens are split into: every trunk, all isolated branches, every prefixed group."""
        return [*self.trunks, sum(self.isolated), *(len(group.sees) for group in self.prefixed)]

    def band(self, length: int, window: int) -> Tensor:
        """bool (length, length): a causal document under a sliding window."""
        if (length, window) not in self._bands:
            place = torch.arange(length, device=self.device)
            behind = place[:, None] - place
            self._bands[length, window] = (behind >= 0) & (behind < window)
        return self._bands[length, window]

    @cached_property
    def document_ends(self) -> Tensor:
        """int32 (documents + 1,): where trunks and isolated branches begin and end, as varlen kernels take it."""
        ends = accumulate([*self.trunks, *self.isolated], initial=0)
        return torch.tensor(list(ends), dtype=torch.int32, device=self.device)

    def _prefixed(self, batch: Batch, one_call: bool) -> list[PrefixedTokens]:
        lengths, prefixes = batch["prefixed_length"].tolist(), batch["prefix_length"].tolist()
        rows = [row for row, length in enumerate(lengths) if length]
        groups = [rows] if one_call and rows else [[row] for row in rows]
        trunk_starts = list(accumulate(self.trunks, initial=0))
        start = trunk_starts[-1] + sum(self.isolated)
        prefixed = []
        for group in groups:
            stop = start + sum(lengths[row] for row in group)
            queries = torch.arange(start, stop, device=self.device)
            keys = [torch.arange(prefixes[row], device=self.device) + trunk_starts[row] for row in group]
            sees, distance = _sees(batch, queries, torch.cat([*keys, queries]))
            prefixed.append(PrefixedTokens([(row, prefixes[row]) for row in group], sees, distance))
            start = stop
        return prefixed


def _sees(batch: Batch, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The one rule between tokens of a flat batch at these places: bool (q, k), and position of q minus that of k."""
    row, branch = batch["token_row"][0], batch["branch"][0]
    position, visible_length = batch["position_ids"][0], batch["visible_length"][0]
    same_row = row[queries, None] == row[keys]
    own = (branch[queries, None] == branch[keys]) & (keys <= queries[:, None])
    prefix = (branch[keys] == TRUNK) & (position[keys] < visible_length[queries, None])
    return same_row & (own | prefix), position[queries, None] - position[keys]


def _buckets(lengths: list[int], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Documents one after another, sorted into calls: those of like length are padded to the longest of them."""
    bucket_of: dict[tuple[int, int], list[int]] = {}
    for number, length in enumerate(lengths):
        size = max(SHORT, 2 ** math.ceil(math.log2(length)))
        key = (size, 0) if length <= PADDED_TO else (length, number)  # a long one stays by itself
        bucket_of.setdefault(key, []).append(number)
    starts = list(accumulate(lengths, initial=0))
    buckets, unpadded, before = [], torch.zeros(starts[-1], dtype=torch.long), 0
    for numbers in bucket_of.values():
        counts = torch.tensor([lengths[number] for number in numbers])[:, None]
        start = torch.tensor([starts[number] for number in numbers])[:, None]
        place = torch.arange(int(counts.max()))
        # Padding repeats the document's own last token: nothing of another one comes near it.
        bucket = start + torch.minimum(place, counts - 1)
        filled = place < counts
        unpadded[bucket[filled]] = before + torch.arange(bucket.numel()).view_as(bucket)[filled]
        before += bucket.numel()
        buckets.append(bucket.to(device))
    return buckets, unpadded.to(device)


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
        if query.is_cuda and query.dtype in VARLEN_DTYPES and varlen_serves(query.device, query.dtype, query.shape[3]):
            outputs = [self._by_varlen(query, key, value)]
        else:
            outputs = self._by_document(pieces)
        first = len(self.parts.trunks) + 1
        for number, group in enumerate(self.parts.prefixed, start=first):
            seen_keys, seen_values = (_behind_prefixes(group, each, number) for each in pieces[1:])
            mask = group.mask(self.window)
            outputs.append(self._kernel(pieces[0][number], seen_keys, seen_values, attn_mask=mask))
        return torch.cat(outputs, dim=1)

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, **mask: Any) -> Tensor:
        """(N, H, L, D) -> (N, L, H, D)."""
        return F.scaled_dot_product_attention(query, key, value, **mask, **self.options).transpose(1, 2)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """N documents of L tokens: (N, H, L, D) -> (N, L, H, D)."""
        length = query.shape[2]
        if self.window is None or length <= self.window:
            return self._kernel(query, key, value, is_causal=True)
        return self._kernel(query, key, value, attn_mask=self.parts.band(length, self.window))

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
        output: Tensor = varlen_attn(
            query, key, value, ends, ends, longest, longest, window_size=window, **self.options
        )
        return output[None]


@lru_cache
def varlen_serves(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the varlen kernel runs here for heads of this width, and agrees with sdpa, forwards and backwards. Builds
    and devices without flash attention have the function too, and it was never run on most of them."""
    if varlen_attn is None:
        return False
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    values = torch.arange(8 * 4 * width, device=device).sin().view(8, 4, width)

    def results(attend: Attend, dtype: torch.dtype) -> list[Tensor]:
        states = values.to(dtype).requires_grad_()
        output = attend(states, states[:, :2], states[:, 2:])
        (gradient,) = torch.autograd.grad(output.float().square().sum(), states)
        return [output.detach().float(), gradient.float()]

    def by_varlen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = varlen_attn(
            query, key, value, ends, ends, 5, 5, window_size=(-1, 0), scale=None, enable_gqa=True
        )
        return output

    def by_sdpa(*states: Tensor) -> Tensor:
        documents = zip(*(each.transpose(0, 1)[None].split([3, 5], dim=2) for each in states), strict=True)
        outputs = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in documents]
        return torch.cat(outputs, dim=2)[0].transpose(0, 1)

    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            pairs = zip(results(by_varlen, dtype), results(by_sdpa, torch.float32), strict=True)
            serves = all(bool((ours - exact).norm() <= 0.03 * exact.norm()) for ours, exact in pairs)
    except (RuntimeError, ValueError) as error:
        logger.info("varlen attention does not run here (%s): documents are read one by one", str(error).split("\n")[0])
        return False
    if not serves:
        logger.warning("varlen attention is not what sdpa gives on this device: documents are read one by one")
    return serves


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


def _behind_prefixes(group: PrefixedTokens, pieces: tuple[Tensor, ...], number: int) -> Tensor:
    """(1, H, k, D): keys or values of the prefixes, then of the group's own tokens."""
    prefixes = [pieces[trunk][:, :, :length] for trunk, length in group.prefixes]
    return torch.cat([*prefixes, pieces[number]], dim=2)


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
