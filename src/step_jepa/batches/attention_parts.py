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
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, chain
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
MOST_CELLS = 2**24  # of a mask that is made at once, and of all that are kept from layer to layer
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
VARLEN_DTYPES = (torch.float16, torch.bfloat16)

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


@dataclass
class PrefixedTokens:
    """Tokens of branches with a prefix that are looked up in one call. Places are those of the flat batch.

    batch      that they are of
    piece      the piece of it that they are in: its number, and the place of its first token
    queries    their places
    own        places of the keys among them: from the start of the first one's branch on
    prefixes   of each of their trunks: (number of the trunk, how many of its first tokens are keys)
    """

    batch: Batch
    piece: tuple[int, int]
    queries: range
    own: range
    prefixes: list[tuple[int, int]]

    @property
    def cells(self) -> int:
        """Of the mask."""
        return len(self.queries) * (len(self.own) + sum(length for _, length in self.prefixes))

    def mask(self, window: int | None, trunk_starts: list[int]) -> Tensor:
        """bool (q, k): the keys are those of the prefixes, then the tokens' own."""
        keys = [range(trunk_starts[trunk], trunk_starts[trunk] + length) for trunk, length in self.prefixes]
        device = self.batch["input_ids"].device
        places = torch.cat([torch.arange(each.start, each.stop, device=device) for each in (*keys, self.own)])
        queries = torch.arange(self.queries.start, self.queries.stop, device=device)
        mask = sees(self.batch, queries, places)
        position = self.batch["position_ids"][0]
        return mask if window is None else mask & (position[queries, None] - position[places] < window)

    def parts(self) -> "Iterator[PrefixedTokens]":
        """The same tokens in as many calls as masks of MOST_CELLS take, each with no more keys than its tokens see."""
        size = max(1, len(self.queries) * MOST_CELLS // self.cells)
        rows, branches, visible = (self.batch[name][0] for name in ("token_row", "branch", "visible_length"))
        for start in range(self.queries.start, self.queries.stop, size):
            queries = range(start, min(start + size, self.queries.stop))
            row, before = rows[start : queries.stop], slice(self.own.start, start)
            begun = (rows[before] == rows[start]) & (branches[before] == branches[start])
            longest = [(trunk, visible[start : queries.stop][row == trunk]) for trunk in row.unique().tolist()]
            prefixes = [(trunk, int(lengths.max())) for trunk, lengths in longest]
            yield replace(self, queries=queries, own=range(start - int(begun.sum()), queries.stop), prefixes=prefixes)

    def queried(self, pieces: tuple[Tensor, ...]) -> Tensor:
        """(1, H, q, D): of the queries of each piece (1, H, L, D)."""
        return self._of_piece(pieces, self.queries)

    def seen(self, pieces: tuple[Tensor, ...]) -> Tensor:
        """(1, H, k, D): of the keys or values of each piece."""
        prefixes = [pieces[trunk][:, :, :length] for trunk, length in self.prefixes]
        return torch.cat([*prefixes, self._of_piece(pieces, self.own)], dim=2)

    def _of_piece(self, pieces: tuple[Tensor, ...], places: range) -> Tensor:
        number, start = self.piece
        return pieces[number][:, :, places.start - start : places.stop - start]


class Parts:
    """What attention needs to know of a flat batch, made once for all layers; `model(..., parts=...)` takes it.

    trunks            lengths
    isolated          lengths of isolated branches
    buckets           int64 (N, M) each, isolated branches of like length: places of their tokens among the I
    unpadded          int64 (I,), where each isolated token is in the concatenated buckets
    prefixed          in groups of rows, in order; of long ones in several calls
    windows           by layer, the sliding window that attention was called with
    """

    def __init__(self, batch: Batch, *, one_call: bool | None = None) -> None:
        """Of `one_call` for the prefixed tokens of all rows, or a call for each row; by default the former on an
        accelerator, where calls cost more than empty cells of a mask."""
        self.device = batch["input_ids"].device
        self.trunks: list[int] = batch["trunk_length"].tolist()
        self.isolated: list[int] = batch["isolated_length"].tolist()
        self.buckets, self.unpadded = _buckets(self.isolated, self.device)
        self._trunk_starts = list(accumulate(self.trunks, initial=0))
        groups = self._prefixed(batch, self.device.type != "cpu" if one_call is None else one_call)
        self.lengths = [*self.trunks, sum(self.isolated), *(len(group.queries) for group in groups)]
        self.prefixed = list(
            chain.from_iterable(group.parts() if group.cells > MOST_CELLS else [group] for group in groups)
        )
        self.windows: dict[int, int | None] = {}
        self._bands: dict[tuple[int, int], Tensor] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def mask(self, call: int, window: int | None) -> Tensor:
        """bool (q, k): of a call for prefixed tokens. Large ones are made anew for each layer."""
        if (call, window) in self._masks:
            return self._masks[call, window]
        mask = self.prefixed[call].mask(window, self._trunk_starts)
        if sum(each.cells for each in self.prefixed) <= MOST_CELLS:
            self._masks[call, window] = mask
        return mask

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
        start = self._trunk_starts[-1] + sum(self.isolated)
        prefixed = []
        for number, group in enumerate(groups, start=len(self.trunks) + 1):
            places = range(start, start + sum(lengths[row] for row in group))
            seen = [(row, prefixes[row]) for row in group]
            prefixed.append(PrefixedTokens(batch, (number, start), places, places, seen))
            start = places.stop
        return prefixed


def sees(batch: Batch, queries: Tensor, keys: Tensor) -> Tensor:
    """The one rule between tokens of a flat batch at these places: bool (q, k)."""
    row, branch = batch["token_row"][0], batch["branch"][0]
    position, visible_length = batch["position_ids"][0], batch["visible_length"][0]
    same_row = row[queries, None] == row[keys]
    own = (branch[queries, None] == branch[keys]) & (keys <= queries[:, None])
    prefix = (branch[keys] == TRUNK) & (position[keys] < visible_length[queries, None])
    return same_row & (own | prefix)


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
