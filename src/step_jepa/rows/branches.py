"""One row: the trunk, the branches that objectives hang on it, and the pairs of views read from it. Integers only.

One rule says who sees whom (attention.py): a token sees the earlier tokens of its own branch, and the first
`visible_length` tokens of the trunk. A view is a weighted sum of the row's states: last token, mean, difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from step_jepa.data.example import IGNORED, Example

TRUNK = 0
View = list[tuple[int, float]]  # (row index, weight) of each state in the sum


def last(indices: Sequence[int]) -> View:
    """The state at the last of these row indices."""
    return [(indices[-1], 1.0)]


def mean(indices: Sequence[int]) -> View:
    """The mean of the states at these row indices."""
    return [(index, 1 / len(indices)) for index in indices]


def difference(after: int, before: int) -> View:
    """The displacement of the state from one row index to another."""
    return [(after, 1.0), (before, -1.0)]


@dataclass
class Pair:
    """Two views that are to come together.

    step        which of the example's pairs it is: the index of the target step, where there is one
    objective   number of the objective that asks for it
    boundary    row index at which the trunk's next-token entropy decides whether the loss keeps it; None: it does
    """

    predicted: View
    target: View
    step: int = 0
    objective: int = 0
    boundary: int | None = None


@dataclass
class Row:
    """One training row. The lists but `pairs` and `trajectory` have one entry per token.

    branch          0 on the trunk, 1, 2, ... on the branches
    visible_length  how many trunk tokens a branch token may see before its own branch; 0 on the trunk
    problem         index of the example in its data set
    trajectory      row indices at which the trunk's states are looked at in order, for diagnostics
    """

    input_ids: list[int]
    labels: list[int]
    problem: int = 0
    position_ids: list[int] = field(init=False)
    branch: list[int] = field(init=False)
    visible_length: list[int] = field(init=False)
    pairs: list[Pair] = field(default_factory=list)
    trajectory: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = len(self.input_ids)
        self.position_ids = list(range(length))
        self.branch = [TRUNK] * length
        self.visible_length = [0] * length

    def append_branch(self, input_ids: Sequence[int], *, position_offset: int, visible_length: int) -> range:
        """Append a branch whose first token has position id `position_offset` and which sees the first
        `visible_length` tokens of the trunk; returns its row indices."""
        start, length = len(self.input_ids), len(input_ids)
        branch = self.branch[-1] + 1
        self.input_ids += input_ids
        self.labels += [IGNORED] * length
        self.position_ids += range(position_offset, position_offset + length)
        self.branch += [branch] * length
        self.visible_length += [visible_length] * length
        return range(start, start + length)


def trunk(example: Example) -> Row:
    """Ordinary fine-tuning: no branch."""
    return Row(list(example.input_ids), list(example.labels), example.index)
