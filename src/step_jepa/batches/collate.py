"""Rows -> one padded batch. Workers ship integers; the mask is made from them on the device (attention.py).

Axes: B rows, L tokens of a row, P pairs, R states that are read for views, S states of trajectories.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from step_jepa.data.tokens import IGNORED, Example
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import TRUNK, Row

PADDING = -1  # as a branch: padding sees itself, so that no row of the mask is empty
PAIR_COLUMNS = ("pair_row", "pair_objective", "pair_problem", "pair_step")
READ_COLUMNS = ("read_view", "read_row", "read_column", "read_weight")
STATE_COLUMNS = ("state_row", "state_column", "state_problem", "state_place")
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
        pair_row, pair_objective, pair_problem, pair_step: int64 (P,).
        read_view, read_row, read_column: int64 (R,), of each state that is read its view (2p is the predicted view of
        pair p, 2p + 1 the target) and its place. read_weight: float32 (R,), its weight in that view.
        state_row, state_column, state_problem, state_place: int64 (S,), of each state of the rows' trajectories the
        place in the batch, the example, and its place on the trajectory, from 0."""
        return {**self._tokens(rows), **_pairs(rows), **_reads(rows), **_states(rows)}

    def _tokens(self, rows: list[Row]) -> Batch:
        if all(row.branch[-1] == TRUNK for row in rows):
            return PlainCollator(self.pad_id)(rows)
        return {
            "input_ids": _pad([row.input_ids for row in rows], self.pad_id),
            "labels": _pad([row.labels for row in rows], IGNORED),
            "position_ids": _pad([row.position_ids for row in rows], 0),
            "branch": _pad([row.branch for row in rows], PADDING),
            "visible_length": _pad([row.visible_length for row in rows], 0),
        }


def _pairs(rows: list[Row]) -> Batch:
    columns: dict[str, list[int]] = {name: [] for name in PAIR_COLUMNS}
    for place, row in enumerate(rows):
        for pair in row.pairs:
            columns["pair_row"].append(place)
            columns["pair_objective"].append(pair.objective)
            columns["pair_problem"].append(row.problem)
            columns["pair_step"].append(pair.step)
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def _reads(rows: list[Row]) -> Batch:
    columns: dict[str, list[int]] = {"read_view": [], "read_row": [], "read_column": []}
    weights: list[float] = []
    view = 0
    for place, row in enumerate(rows):
        for pair in row.pairs:
            for states in (pair.predicted, pair.target):
                columns["read_view"] += [view] * len(states)
                columns["read_row"] += [place] * len(states)
                columns["read_column"] += [index for index, _ in states]
                weights += [weight for _, weight in states]
                view += 1
    integers = {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
    return {**integers, "read_weight": torch.tensor(weights, dtype=torch.float32)}


def _states(rows: list[Row]) -> Batch:
    columns: dict[str, list[int]] = {name: [] for name in STATE_COLUMNS}
    for place, row in enumerate(rows):
        columns["state_row"] += [place] * len(row.trajectory)
        columns["state_column"] += row.trajectory
        columns["state_problem"] += [row.problem] * len(row.trajectory)
        columns["state_place"] += range(len(row.trajectory))
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def _pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    padded = [row + [value] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {name: values.to(device) for name, values in batch.items()}


def pair_count(batch: Batch) -> int:
    """P."""
    return len(batch["pair_row"])


def tokens_read(batch: Batch) -> Tensor:
    """int64 (): how many tokens the model reads, without padding."""
    return (batch["branch"] >= 0).sum() if "branch" in batch else batch["attention_mask"].sum()


def without_branches(batch: Batch) -> Batch:
    """The batch cut back to its trunks: what a step that drops the JEPA term (`jepa_ratio`) needs."""
    none = {name: batch[name][:0] for name in (*PAIR_COLUMNS, *READ_COLUMNS, *STATE_COLUMNS)}
    if "branch" not in batch:
        return {**batch, **none}
    trunk = batch["branch"] == TRUNK
    length = int(trunk.sum(1).max())
    cut = {name: batch[name][:, :length] for name in ("input_ids", "labels")}  # branches have no labels
    return {**cut, "attention_mask": trunk[:, :length].long(), **none}
