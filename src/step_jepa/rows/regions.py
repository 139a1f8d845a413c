"""Regions of a row: what each of its tokens is part of, and, from a mask, who sees whom in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from step_jepa.data.tokens import Example, Span
from step_jepa.rows.branches import TRUNK, Row, View

Kind = Literal["system", "question", "header", "prompt", "step", "end", "predictor", "target"]
Extent = Literal["all", "causal", "part", "none"]


@dataclass(frozen=True)
class Region:
    """kind     system (all before the question), question, header (of the answer), or prompt where the question cannot
             be told from what is around it; step, end (after the last step); predictor and target: the branches that
             a pair's views are read from
    number   index of the step; of a predictor and a target, of the step that is predicted; else None
    places   row indices
    """

    kind: Kind
    number: int | None
    places: range

    @property
    def name(self) -> str:
        return self.kind if self.number is None else f"{self.kind} {self.number}"

    @property
    def is_branch(self) -> bool:
        """Whether it is a branch."""
        return self.kind in ("predictor", "target")


def regions(example: Example, row: Row) -> list[Region]:
    """What tiles a row that was planned from the example: first the trunk's regions, then one for each branch."""
    return [*_trunk(example, row.branch.count(TRUNK)), *_branches(row)]


def in_place_regions(example: Example, predictors: int) -> list[Region]:
    """What tiles the row of the standalone implementation's second pass: everything up to the end of step 0, K
    predictor tokens, and step 1."""
    _, end = example.steps[0]
    start, stop = example.steps[1]
    before = _trunk(example, end)
    inserted = [Region("predictor", 1, range(end, end + predictors))] if predictors else []
    return [*before, *inserted, Region("target", 1, range(end + predictors, stop - start + end + predictors))]


def _trunk(example: Example, length: int) -> list[Region]:
    first = example.steps[0][0]
    steps = [Region("step", number, range(*span)) for number, span in enumerate(example.steps)]
    end = Region("end", None, range(example.steps[-1][1], length))
    parts = [*_prompt(example.user, first), *steps, end]
    return [part for part in parts if len(part.places) and part.places.stop <= length]


def _prompt(user: Span | None, first: int) -> list[Region]:
    if user is None:
        return [Region("prompt", None, range(first))]
    return [
        Region("system", None, range(user[0])),
        Region("question", None, range(*user)),
        Region("header", None, range(user[1], first)),
    ]


def _branches(row: Row) -> list[Region]:
    found = []
    for number in range(1, row.branch[-1] + 1):
        start = row.branch.index(number)
        places = range(start, start + row.branch.count(number))
        pair = next(pair for pair in row.pairs if _reads(pair.predicted, places) or _reads(pair.target, places))
        found.append(Region("predictor" if _reads(pair.predicted, places) else "target", pair.step, places))
    return found


def _reads(view: View, places: range) -> bool:
    return any(index in places for index, _ in view)


def extent(looking: Region, part: Region, seen: Tensor) -> Extent:
    """How much of a part a region sees by the mask (as in `sight`). causal: of itself, up to each token."""
    cells = seen[looking.places.start : looking.places.stop, part.places.start : part.places.stop]
    if part is looking and cells.equal(cells.new_ones(cells.shape).tril()):
        return "causal"
    return "all" if cells.all() else "part" if cells.any() else "none"


def sight(parts: Sequence[Region], seen: Tensor) -> list[str]:
    """One sentence for each region, read off a mask: bool (L, L), [q, k], True where token q sees token k."""
    return [f"{part.name} sees {_listed(_seen_by(part, parts, seen))}." for part in parts]


def _seen_by(looking: Region, parts: Sequence[Region], seen: Tensor) -> list[str]:
    names = [("itself" if part is looking else part.name, extent(looking, part, seen)) for part in parts]
    said = {"all": "{}", "causal": "{} up to each token", "part": "part of {}"}
    return [said[how].format(name) for name, how in names if how != "none"]


def _listed(names: list[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else f"nothing but {last}"
