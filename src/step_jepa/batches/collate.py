"""Rows -> a batch, padded or flat. Workers ship integers; who sees whom is made from them on the device (attention.py).

Axes: B rows, L tokens of a padded row, T tokens of a flat batch, I isolated branches, P pairs, R states that are read
for views, S states of trajectories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from step_jepa.batches.batch import BOUNDARY, PADDING, PAIR_COLUMNS, STATE_COLUMNS, TOKEN_COLUMNS, Batch
from step_jepa.data.example import IGNORED
from step_jepa.rows.branches import TRUNK, Row


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
        pair_row, pair_objective, pair_problem, pair_step: int64 (P,); pair_boundary too, see `_boundaries`.
        read_view, read_row, read_column: int64 (R,), of each state that is read its view (2p is the predicted view of
        pair p, 2p + 1 the target) and its place. read_weight: float32 (R,), its weight in that view.
        state_row, state_column, state_problem, state_place: int64 (S,), of each state of the rows' trajectories the
        place in the batch, the example, and its place on the trajectory, from 0."""
        places = [_Place(number, range(len(row.input_ids))) for number, row in enumerate(rows)]
        return {**self._tokens(rows), **_pairs(rows, places), **_reads(rows, places), **_states(rows, places)}

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


@dataclass
class FlatCollator:
    """Rows -> one sequence of documents without padding: all trunks, then all isolated branches, then all branches that
    see a prefix of their trunk. Positions begin anew in each.

    views   whether pairs and trajectories are read from it
    """

    views: bool = True

    def __call__(self, rows: list[Row]) -> Batch:
        """trunk_length: int64 (B,). isolated_length: int64 (I,), of each isolated branch.
        prefixed_length: int64 (B,), tokens of each row's branches with a prefix; prefix_length: int64 (B,), of the
        longest of these prefixes.
        input_ids, labels, position_ids, branch, visible_length, token_row: int64 (1, T); token_row is the number of the
        token's row.
        The other columns as `BranchCollator` gives them, read_row and the like being 0."""
        documents = _documents(rows)
        batch = {**_document_lengths(rows, documents), **_flat_tokens(rows, documents)}
        if not self.views:
            return batch
        places = _flat_places(rows, documents)
        return {**batch, **_pairs(rows, places), **_reads(rows, places), **_states(rows, places)}


@dataclass
class _Place:
    """Where a row's tokens are: row of the batch, and column of each."""

    row: int
    columns: Sequence[int]


@dataclass
class _Document:
    """A trunk or a branch: number of its row, and its indices there."""

    row: int
    indices: slice
    branch: int
    visible_length: int

    def __len__(self) -> int:
        return self.indices.stop - self.indices.start

    def kind(self) -> int:
        """Trunk, isolated, with a prefix."""
        if self.branch == TRUNK:
            return 0
        return 2 if self.visible_length else 1


def _documents(rows: list[Row]) -> list[_Document]:
    """In the order of a flat batch."""
    documents = []
    for number, row in enumerate(rows):
        start = 0
        for branch, tokens in groupby(row.branch):
            stop = start + len(list(tokens))
            documents.append(_Document(number, slice(start, stop), branch, row.visible_length[start]))
            start = stop
    return sorted(documents, key=_Document.kind)  # which keeps the order within a kind


def _document_lengths(rows: list[Row], documents: list[_Document]) -> Batch:
    prefixed, prefix = [0] * len(rows), [0] * len(rows)
    for document in documents:
        if document.visible_length:
            prefixed[document.row] += len(document)
            prefix[document.row] = max(prefix[document.row], document.visible_length)
    columns = {
        "trunk_length": [len(document) for document in documents if document.kind() == 0],
        "isolated_length": [len(document) for document in documents if document.kind() == 1],
        "prefixed_length": prefixed,
        "prefix_length": prefix,
    }
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def _flat_tokens(rows: list[Row], documents: list[_Document]) -> Batch:
    columns: dict[str, list[int]] = {name: [] for name in (*TOKEN_COLUMNS, "token_row")}
    for document in documents:
        for name in TOKEN_COLUMNS:
            columns[name] += getattr(rows[document.row], name)[document.indices]
        # Else the last token of the document before would have to predict it.
        columns["labels"][-len(document)] = IGNORED
        columns["token_row"] += [document.row] * len(document)
    return {name: torch.tensor([values], dtype=torch.long) for name, values in columns.items()}


def _flat_places(rows: list[Row], documents: list[_Document]) -> list[_Place]:
    columns = [[0] * len(row.input_ids) for row in rows]
    start = 0
    for document in documents:
        columns[document.row][document.indices] = range(start, start + len(document))
        start += len(document)
    return [_Place(0, each) for each in columns]


def _pairs(rows: list[Row], places: list[_Place]) -> Batch:
    columns: dict[str, list[int]] = {name: [] for name in PAIR_COLUMNS}
    for place, row in zip(places, rows, strict=True):
        for pair in row.pairs:
            columns["pair_row"].append(place.row)
            columns["pair_objective"].append(pair.objective)
            columns["pair_problem"].append(row.problem)
            columns["pair_step"].append(pair.step)
    pairs = {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
    return pairs | _boundaries(rows, places)


def _boundaries(rows: list[Row], places: list[_Place]) -> Batch:
    """pair_boundary: int64 (P,), the column of the token whose next-token entropy decides whether the loss keeps the
    pair; -1 where it does anyway. Without any such pair there is none."""
    columns: list[int] = []
    for place, row in zip(places, rows, strict=True):
        for pair in row.pairs:
            columns.append(-1 if pair.boundary is None else place.columns[pair.boundary])
    return {BOUNDARY: torch.tensor(columns, dtype=torch.long)} if max(columns, default=-1) >= 0 else {}


def _reads(rows: list[Row], places: list[_Place]) -> Batch:
    columns: dict[str, list[int]] = {"read_view": [], "read_row": [], "read_column": []}
    weights: list[float] = []
    view = 0
    for place, row in zip(places, rows, strict=True):
        for pair in row.pairs:
            for states in (pair.predicted, pair.target):
                columns["read_view"] += [view] * len(states)
                columns["read_row"] += [place.row] * len(states)
                columns["read_column"] += [place.columns[index] for index, _ in states]
                weights += [weight for _, weight in states]
                view += 1
    integers = {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
    return {**integers, "read_weight": torch.tensor(weights, dtype=torch.float32)}


def _states(rows: list[Row], places: list[_Place]) -> Batch:
    columns: dict[str, list[int]] = {name: [] for name in STATE_COLUMNS}
    for place, row in zip(places, rows, strict=True):
        columns["state_row"] += [place.row] * len(row.trajectory)
        columns["state_column"] += [place.columns[index] for index in row.trajectory]
        columns["state_problem"] += [row.problem] * len(row.trajectory)
        columns["state_place"] += range(len(row.trajectory))
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def _pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    padded = [row + [value] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long)
