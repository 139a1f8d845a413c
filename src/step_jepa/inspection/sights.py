"""Sights: who sees whom in one row."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from step_jepa.data.tokens import Span
from step_jepa.rows.regions import Region

# The trunk sees the trunk; a branch sees the trunk, or itself.
Relation = Literal["trunk", "prefix", "own"]


@dataclass(frozen=True)
class Sights:
    """regions   what tiles the row
    layers    by kind of layer, bool (L, L), [q, k]: token q sees token k
    """

    regions: list[Region]
    layers: dict[str, Tensor]


def relation(looking: Region, part: Region) -> Relation:
    """What it means that one region sees a part."""
    return "trunk" if not looking.is_branch else "own" if part.is_branch else "prefix"


def runs(seen: Tensor) -> list[Span]:
    """The half-open ranges where a row of a mask, bool (L,), is True."""
    edges = seen.int().diff(prepend=seen.new_zeros(1).int(), append=seen.new_zeros(1).int()).nonzero().flatten()
    return [(int(start), int(stop)) for start, stop in edges.view(-1, 2)]
