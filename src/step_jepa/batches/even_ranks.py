"""As many batches for each rank, of rows that are one process's: what is missing in the last step is blank."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader


class BlankFilled(BatchSampler):
    """A sampler's batches, and blank rows (None) where the last step of the epoch has too few for all ranks. accelerate
    would take rows from the start of the epoch instead, which one process does not.

    Args:
        batches: to be filled up.
        ranks: how many processes share the batches.
    """

    def __init__(self, batches: BatchSampler, ranks: int) -> None:
        self.batches, self.ranks = batches, ranks
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self.sampler: Any = batches.sampler  # whose epoch accelerate sets

    def __len__(self) -> int:
        return -(-len(self.batches) // self.ranks) * self.ranks

    def __iter__(self) -> Iterator[list[Any]]:
        batches = iter(self.batches)
        while step := list(islice(batches, self.ranks)):
            yield from self._filled(step)

    def _filled(self, step: list[list[Any]]) -> list[list[Any]]:
        step = step + [[]] * (self.ranks - len(step))
        return [rows + [None] * (self.batch_size - len(rows)) for rows in step]


def fill_with_blanks(loader: DataLoader[Any]) -> None:
    """Where accelerate shares whole batches of a sampler among ranks, and none is dropped."""
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard) and not (shard.drop_last or shard.split_batches):
        shard.batch_sampler = BlankFilled(shard.batch_sampler, shard.num_processes)
