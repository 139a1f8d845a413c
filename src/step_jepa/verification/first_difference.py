"""The first token, label, span or mask that the two implementations have otherwise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from step_jepa import standalone
from step_jepa.batches.attention import may_see
from step_jepa.batches.batch import Batch, is_flat
from step_jepa.batches.parts import sees
from step_jepa.data.example import Example
from step_jepa.verification.same_rows import BatchPair


def first_unequal_token(by_adapted: Sequence[Example], by_standalone: Sequence[Any]) -> str | None:
    """The first token, label or span that the two encode otherwise."""
    for place, (ours, theirs) in enumerate(zip(by_adapted, by_standalone, strict=True)):
        columns: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
            "token": (ours.input_ids, theirs.input_ids),
            "label": (ours.labels, theirs.labels),
            "span of step": (ours.steps, theirs.spans),
        }
        for name, (left, right) in columns.items():
            if left != right:
                return f"example {place}: {name} {_first_unequal_place(left, right)}"
    return None


def _first_unequal_place(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The first place where the two are not equal; the shorter one's length where they are up to there."""
    common = min(len(left), len(right))
    return next((place for place in range(common) if left[place] != right[place]), common)


def first_unequal_mask(model: Any, batches: Sequence[BatchPair]) -> str | None:
    """The first view that sees something else by the one than by the other."""
    for batch in batches:
        if batch.standalone["second_step"].any() and (difference := _unequal_mask(model, batch)):
            return difference
    return None


def _unequal_mask(model: Any, batch: BatchPair) -> str | None:
    """The two rows have other columns, but each view must see the same tokens at the same positions."""
    ours, theirs = batch.adapted, standalone.second_rows(batch.standalone, *standalone.sizes(model))
    rows, columns = (ours[name].view(-1, 2) for name in ("read_row", "read_column"))  # a view is one state here
    for pair in range(len(columns)):
        for side, name in enumerate(("predicted", "target")):
            row = int(rows[pair, side])
            by_adapted = _visible_tokens(ours, row, _seen(ours, row, columns[pair, side]))
            by_standalone = _visible_tokens(theirs, pair, theirs["sees"][pair, theirs["read"][pair, side]])
            if by_adapted != by_standalone:
                return f"example {batch.start + _place_of_pair(ours, pair)}: the mask of its {name} view"
    return None


def _seen(batch: Batch, row: int, column: Tensor) -> Tensor:
    """bool (L,): what a token of a row of the batch sees there."""
    if is_flat(batch):
        return sees(batch, column[None], torch.arange(batch["input_ids"].shape[1], device=column.device))[0]
    branch, visible_length = (batch[name][row : row + 1] for name in ("branch", "visible_length"))
    return may_see(branch, visible_length)[0, column]


def _place_of_pair(batch: Batch, pair: int) -> int:
    """Which of the batch's rows the pair is of."""
    row, column = (batch[name].view(-1, 2)[pair, 0] for name in ("read_row", "read_column"))
    return int(batch["token_row"][row, column] if is_flat(batch) else row)


def _visible_tokens(batch: Batch, row: int, mask: Tensor) -> list[tuple[int, int]]:
    """(token, position) of each column of the row that the mask (L,) shows."""
    ids, positions = batch["input_ids"][row][mask], batch["position_ids"][row][mask]
    return list(zip(ids.tolist(), positions.tolist(), strict=True))
