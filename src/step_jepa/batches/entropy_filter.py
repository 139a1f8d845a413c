"""Which pairs of a batch the loss keeps: those at the boundaries where the next token is least certain.

Axes: P pairs, E of them with a boundary at which the trunk's next-token entropy is looked at, L tokens of a row.
"""

import torch
from torch import Tensor

from step_jepa.batches.batch import BOUNDARY, Batch, is_flat, pair_count
from step_jepa.rows.least_certain import least_certain


def boundaries(batch: Batch) -> Tensor:
    """int64 (E,): the boundaries' places among the batch's tokens (B * L)."""
    if BOUNDARY not in batch:
        return batch["labels"].new_empty(0)
    looked_at = batch[BOUNDARY] >= 0
    return (batch["pair_row"] * batch["input_ids"].shape[1] + batch[BOUNDARY])[looked_at]


def kept_pairs(batch: Batch, count: int | None, entropies: Tensor | None = None) -> Tensor:
    """bool (P,): which pairs the loss keeps.

    Args:
        batch: with pairs.
        count: how many of each row that have a boundary; None keeps all.
        entropies: (E,). How many are kept does not depend on them: without any, the first ones are.
    """
    kept = torch.ones(pair_count(batch), dtype=torch.bool, device=batch["pair_problem"].device)
    if count is None or BOUNDARY not in batch:
        return kept
    places = (batch[BOUNDARY] >= 0).nonzero()[:, 0]
    values = [0.0] * len(places) if entropies is None else entropies.tolist()
    chosen = least_certain(values, _rows(batch)[places].tolist(), count)
    kept[places] = False
    kept[places[chosen]] = True
    return kept


def _rows(batch: Batch) -> Tensor:
    """int64 (P,): the row of each pair, if it has a boundary."""
    return batch["token_row"][0, batch[BOUNDARY]] if is_flat(batch) else batch["pair_row"]
