"""Examples, planned as they are read: what a loader takes rows from."""

from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch.utils.data import Dataset, IterableDataset

from step_jepa.data.example import IGNORED, Example
from step_jepa.data.examples import Examples
from step_jepa.data.stream import ExampleStream
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import Row

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
