"""A batch: integers by the name of their column, and what can be asked of them.

Axes: B rows, P pairs.
"""

import torch
from torch import Tensor

from step_jepa.rows.branches import TRUNK

PADDING = -1  # as a branch: padding sees itself, so that no row of the mask is empty
TOKEN_COLUMNS = ("input_ids", "labels", "position_ids", "branch", "visible_length")
PAIR_COLUMNS = ("pair_row", "pair_objective", "pair_problem", "pair_step")
BOUNDARY = "pair_boundary"
READ_COLUMNS = ("read_view", "read_row", "read_column", "read_weight")
STATE_COLUMNS = ("state_row", "state_column", "state_problem", "state_place")
Batch = dict[str, Tensor]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {name: values.to(device) for name, values in batch.items()}


def pair_count(batch: Batch) -> int:
    """P."""
    return len(batch["pair_row"])


def is_flat(batch: Batch) -> bool:
    """Whether it is one sequence of documents."""
    return "trunk_length" in batch


def row_count(batch: Batch) -> int:
    """B."""
    return len(batch["trunk_length"] if is_flat(batch) else batch["input_ids"])


def tokens_read(batch: Batch) -> Tensor:
    """int64 (): how many tokens the model reads, without padding."""
    return (batch["branch"] >= 0).sum() if "branch" in batch else batch["attention_mask"].sum()


def without_branches(batch: Batch) -> Batch:
    """The batch cut back to its trunks: what a step that drops the JEPA term (`jepa_ratio`) needs."""
    none = {name: batch[name][:0] for name in (*PAIR_COLUMNS, *READ_COLUMNS, *STATE_COLUMNS)}
    batch = {name: values for name, values in batch.items() if name != BOUNDARY}
    if "branch" not in batch:
        return {**batch, **none}
    trunk = batch["branch"] == TRUNK
    if is_flat(batch):
        trunks = int(trunk.sum())  # which come first
        cut = {name: batch[name][:, :trunks] for name in (*TOKEN_COLUMNS, "token_row")}
        branches = {name: torch.zeros_like(batch[name]) for name in ("prefixed_length", "prefix_length")}
        return {**batch, **cut, **branches, "isolated_length": batch["isolated_length"][:0], **none}
    length = int(trunk.sum(1).max())
    cut = {name: batch[name][:, :length] for name in ("input_ids", "labels")}  # branches have no labels
    return {**cut, "attention_mask": trunk[:, :length].long(), **none}
