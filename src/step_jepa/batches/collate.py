"""Rows -> a batch, padded or flat. Workers ship integers; who sees whom is made from them on the device (attention.py).

Axes: B rows, L tokens of a padded row, T tokens of a flat batch, I isolated branches, P pairs, R states that are read
for views, S states of trajectories.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from step_jepa.data.example import IGNORED, Example
from step_jepa.data.examples import Examples
from step_jepa.data.stream import ExampleStream
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import TRUNK, Row

PADDING = -1  # as a branch: padding sees itself, so that no row of the mask is empty
TOKEN_COLUMNS = ("input_ids", "labels", "position_ids", "branch", "visible_length")
PAIR_COLUMNS = ("pair_row", "pair_objective", "pair_problem", "pair_step")
BOUNDARY = "pair_boundary"
READ_COLUMNS = ("read_view", "read_row", "read_column", "read_weight")
STATE_COLUMNS = ("state_row", "state_column", "state_problem", "state_place")
Batch = dict[str, Tensor]
MOST_PLANNED = 10_000  # rows that are planned before training, to be counted and checked


class PlannedRows(Dataset):
    """Examples, each planned anew when it is read."""

    def __init__(self, examples: Sequence[Example], plan: Planner) -> None:
        self.examples, self.plan = examples, plan
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # one number that running workers see too

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int | None) -> Row:
        """The row of an example; None is a blank row, of which nothing is learnt."""
        if index is None:
            return Row(input_ids=self.examples[0].input_ids[:1], labels=[IGNORED])
        return self.plan(self.examples[index], int(self.epoch))

    @property
    def sample(self) -> Sequence[Example]:
        """All examples, or MOST_PLANNED of more, evenly spaced."""
        return self.examples[:: -(-len(self) // MOST_PLANNED)]

    def lengths(self) -> Iterator[int]:
        """Tokens of each row, in order, as its epoch plans it."""
        known = self.plan.lengths(Examples.of(self.examples))
        if known is not None:
            yield from known.tolist()
            return
        for example in self.examples:  # many are read at once, as by index they are not
            yield len(self.plan(example, int(self.epoch)).input_ids)

    def token_counts(self) -> tuple[int, int]:
        """Tokens of the sample's rows without and with their branches."""
        trunks = branching = 0
        for example in self.sample:
            trunks, branching = trunks + len(example.input_ids), branching + len(self.plan(example).input_ids)
        return trunks, branching


class PlannedStream(IterableDataset):
    """Examples of a stream, planned as they come, without end."""

    def __init__(self, stream: ExampleStream, plan: Planner) -> None:
        self.stream, self.plan = stream, plan
        self.examples = stream.head

    def __iter__(self) -> Iterator[Row]:
        for epoch in count():
            for example in self.stream.epoch(epoch):
                yield self.plan(example, epoch)


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
