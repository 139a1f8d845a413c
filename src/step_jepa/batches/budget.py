"""Batches of as many whole rows as a budget of tokens holds, so that long and short rows mix and memory has a bound."""

from collections.abc import Iterator, Sequence
from itertools import chain
from random import Random

from transformers.trainer_pt_utils import BatchRebalanceSampler

from step_jepa import terminal
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.errors import UserError

UNITS = 256  # lengths are rounded up to this part of a budget: rows that differ by less change places between epochs


class TokenBudgetSampler(BatchRebalanceSampler):  # type: ignore[misc]  # the kind that Trainer takes for one of batches
    """The batches of one rank: lists of row indices.

    They follow from seed and epoch alone. Every epoch has as many, and every rank too.
    """

    def __init__(self, rows: PlannedRows, budget: int, *, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Rows are measured as their epoch plans them now.

        Args:
            rows: with branches; their epoch is that of the batches.
            budget: most tokens of a batch.
            seed: of the order.
            rank: whose batches these are.
            ranks: how many processes share the batches.

        Raises:
            UserError: a row alone has more tokens than the budget.
        """
        self.rows, self.seed, self.rank, self.ranks = rows, seed, rank, ranks
        lengths = list(terminal.bar(rows.lengths(), label="measuring rows", unit="row", total=len(rows)))
        longest = max(lengths)
        if longest > budget:
            raise UserError(
                f"max_tokens_per_batch = {budget}: example {lengths.index(longest)} has {longest} tokens with its "
                "branches: raise it, or lower --max_length or --pair_tokens"
            )
        unit = -(-budget // UNITS)
        self.room = budget // unit
        self.units = [-(-length // unit) for length in lengths]
        self.count = len(self._batches()) // ranks  # in every epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches()[self.rank :: self.ranks]

    def __len__(self) -> int:
        return self.count

    def _batches(self) -> list[list[int]]:
        """Of all ranks, in the order of the epoch."""
        rng = Random(f"{self.seed} {int(self.rows.epoch)} batches")
        order = list(range(len(self.units)))
        rng.shuffle(order)
        batches = packed(order, self.units, self.room)
        rng.shuffle(batches)
        return divisible(batches, self.ranks)


def packed(order: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices in groups whose sizes sum up to `room` at most: best fit, the largest first, the earlier ones in `order`
    first among those of one size. How many groups there are does not depend on the order."""
    by_room: list[list[list[int]]] = [[] for _ in range(room + 1)]  # groups, by the room that is left in them
    for index in sorted(order, key=lambda index: -sizes[index]):
        size = sizes[index]
        tightest = next((left for left in range(size, room + 1) if by_room[left]), None)
        group = [] if tightest is None else by_room[tightest].pop()
        group.append(index)
        by_room[(room if tightest is None else tightest) - size].append(group)
    return list(chain.from_iterable(by_room))


def divisible(batches: list[list[int]], ranks: int) -> list[list[int]]:
    """The same rows in a number of batches that `ranks` divides: those of most rows are parted. Where there are fewer
    rows than ranks, some stand in several batches."""
    batches = list(batches)
    while len(batches) % ranks:
        largest = max(range(len(batches)), key=lambda place: len(batches[place]))
        rows = batches[largest]
        half = max(1, len(rows) // 2)
        batches[largest] = rows[:half]
        batches.append(rows[half:] or rows)
    return batches
