"""Rows -> one padded batch. Workers ship integers; the mask is made from them on the device (attention.py)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from step_jepa.data.tokens import IGNORED, Example
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import TRUNK, Row

PADDING = -1  # as a branch: padding sees itself, so that no row of the mask is empty
Batch = dict[str, Tensor]


class PlannedRows(Dataset):
    """Examples, each planned anew when it is read."""

    def __init__(self, examples: list[Example], plan: Planner) -> None:
        self.examples, self.plan = examples, plan
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # one number that running workers see too

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        return self.plan(self.examples[index], int(self.epoch))


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
        """input_ids, labels, position_ids, branch, visible_length: int64 (B, L); without a branch, attention_mask takes
        the place of the last three, and the model its own causal path.
        pairs: int64 (P, 4), of each pair its row, objective, problem and step.
        reads: int64 (R, 3), of each state that is read the view (2p and 2p + 1 for pair p), row and column.
        weights: float32 (R,), the state's weight in that view."""
        pairs = [
            (place, pair.objective, row.problem, pair.step, pair.predicted, pair.target)
            for place, row in enumerate(rows)
            for pair in row.pairs
        ]
        reads = [
            (2 * number + side, place, index, weight)
            for number, (place, _, _, _, *views) in enumerate(pairs)
            for side, view in enumerate(views)
            for index, weight in view
        ]
        if all(row.branch[-1] == TRUNK for row in rows):
            tokens = PlainCollator(self.pad_id)(rows)
        else:
            tokens = {
                "input_ids": _pad([row.input_ids for row in rows], self.pad_id),
                "labels": _pad([row.labels for row in rows], IGNORED),
                "position_ids": _pad([row.position_ids for row in rows], 0),
                "branch": _pad([row.branch for row in rows], PADDING),
                "visible_length": _pad([row.visible_length for row in rows], 0),
            }
        return {
            **tokens,
            "pairs": torch.tensor([pair[:4] for pair in pairs], dtype=torch.long).view(-1, 4),
            "reads": torch.tensor([read[:3] for read in reads], dtype=torch.long).view(-1, 3),
            "weights": torch.tensor([read[3] for read in reads], dtype=torch.float32),
        }


def _pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def tokens_read(batch: Batch) -> Tensor:
    """int64 (): how many tokens the model reads, without padding."""
    return (batch["branch"] >= 0).sum() if "branch" in batch else batch["attention_mask"].sum()


def without_branches(batch: Batch) -> Batch:
    """The batch cut back to its trunks: what a step that drops the JEPA term (`jepa_ratio`) needs."""
    none = {name: batch[name][:0] for name in ("pairs", "reads", "weights")}
    if "branch" not in batch:
        return {**batch, **none}
    trunk = batch["branch"] == TRUNK
    length = int(trunk.sum(1).max())
    cut = {name: batch[name][:, :length] for name in ("input_ids", "labels")}  # branches have no labels
    return {**cut, "attention_mask": trunk[:, :length].long(), **none}
