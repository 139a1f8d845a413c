"""Rows -> one padded batch. Workers ship integers; the mask is made from them on the device (masks.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from step_jepa.branches import TRUNK, Row
from step_jepa.tokens import IGNORED, Example

PADDING = -1  # as a branch: padding sees itself, so that no row of the mask is empty
Batch = dict[str, Tensor]
Planner = Callable[[Example, Random], Row]


class PlannedRows(Dataset):
    """Examples, each planned anew when it is read. Random choices follow from (seed, epoch, index) alone, so they are
    the same for any batching, any number of workers, and after a resume."""

    def __init__(self, examples: list[Example], plan: Planner, seed: int) -> None:
        self.examples, self.plan, self.seed = examples, plan, seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # one number that running workers see too

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        return self.plan(self.examples[index], Random(f"{self.seed} {int(self.epoch)} {index}"))


@dataclass
class PlainCollator:
    """Rows without branches -> what `transformers.Trainer` itself expects."""

    pad_id: int

    def __call__(self, rows: list[Row]) -> Batch:
        """input_ids, attention_mask, labels: int64 (B, L)."""
        return {
            "input_ids": _pad([row.input_ids for row in rows], self.pad_id),
            "attention_mask": _pad([[1] * len(row.input_ids) for row in rows], 0),
            "labels": _pad([row.labels for row in rows], IGNORED),
        }


@dataclass
class BranchCollator:
    """Rows with branches -> a batch of integers."""

    pad_id: int

    def __call__(self, rows: list[Row]) -> Batch:
        """input_ids, labels, position_ids, branch, prefix: int64 (B, L). pairs: int64 (B, P, 2), row indices, padded
        with PADDING."""
        most = max(len(row.pairs) for row in rows)
        pairs = [[*row.pairs, *[(PADDING, PADDING)] * (most - len(row.pairs))] for row in rows]
        return {
            "input_ids": _pad([row.input_ids for row in rows], self.pad_id),
            "labels": _pad([row.labels for row in rows], IGNORED),
            "position_ids": _pad([row.position_ids for row in rows], 0),
            "branch": _pad([row.branch for row in rows], PADDING),
            "prefix": _pad([row.prefix for row in rows], 0),
            "pairs": torch.tensor(pairs, dtype=torch.long).view(len(rows), most, 2),
        }


def _pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def without_branches(batch: Batch) -> Batch:
    """The batch cut back to its trunks: what a step that drops the JEPA term (`jepa_ratio`) needs."""
    length = int((batch["branch"] == TRUNK).sum(1).max())
    cut = {name: value[:, :length] for name, value in batch.items() if name != "pairs"}
    cut["branch"] = torch.where(cut["branch"] == TRUNK, TRUNK, PADDING)
    cut["pairs"] = batch["pairs"][:, :0]
    return cut
