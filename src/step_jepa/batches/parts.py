"""The parts that attention over a flat batch falls into, made once for all layers.

Axes: T tokens of the flat batch, H heads, D width of a head, I tokens of isolated branches, q the token that looks, k
the token that it may see.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from step_jepa.batches.batch import Batch
from step_jepa.rows.branches import TRUNK

SHORT, PADDED_TO = 8, 128  # isolated branches are padded to a common length up to the latter, longer ones are not
MOST_CELLS = 2**24  # of a mask that is made at once, and of all that are kept from layer to layer


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
