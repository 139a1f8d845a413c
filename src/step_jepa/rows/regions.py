"""Regions: what each token of a row is part of, such as the question, step 2 or the branch that predicts it."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from step_jepa.data.example import Example
from step_jepa.data.offsets import Span
from step_jepa.rows.branches import TRUNK, Row

BranchKind = Literal["predictor", "target"]
Kind = Literal["system", "question", "header", "prompt", "step", "end"] | BranchKind


@dataclass(frozen=True)
class Region:
    """Neighbouring tokens of a row that belong together.

    Attributes:
        kind: system (all before the question), question, header (of the answer), or prompt where the question cannot
            be told from what is around it; step, end (after the last step); predictor and target, the branches that a
            pair's views are read from.
        number: index of the step; of a predictor and a target, of the step that is predicted; else None.
        indices: where it lies in the row.
    """

    kind: Kind
    number: int | None
    indices: range

    @property
    def name(self) -> str:
        return self.kind if self.number is None else f"{self.kind} {self.number}"

    @property
    def is_branch(self) -> bool:
        """Whether it is a branch; otherwise it lies on the trunk."""
        return self.kind in ("predictor", "target")


class ViewOfBranch(NamedTuple):
    """Which view of a pair is read from a branch, and the step of that pair."""

    kind: BranchKind
    step: int


def row_regions(example: Example, row: Row) -> list[Region]:
    """What tiles a row that was planned from the example: first the trunk's regions, then one for each branch."""
    lengths = Counter(row.branch)
    views = _views_of_branches(row)
    regions = _trunk_regions(example, lengths[TRUNK])
    start = lengths[TRUNK]
    for branch in range(1, row.branch[-1] + 1):
        stop = start + lengths[branch]
        view = views[branch]
        regions.append(Region(view.kind, view.step, range(start, stop)))
        start = stop
    return regions


def in_place_regions(example: Example, predictors: int) -> list[Region]:
    """What tiles the row of the standalone implementation's second pass: everything up to the end of step 0, K
    predictor tokens, and step 1."""
    _, end = example.steps[0]
    start, stop = example.steps[1]
    after_predictors = end + predictors
    regions = _trunk_regions(example, end)
    if predictors:
        regions.append(Region("predictor", 1, range(end, after_predictors)))
    return [*regions, Region("target", 1, range(after_predictors, after_predictors + stop - start))]


def _trunk_regions(example: Example, length: int) -> list[Region]:
    """Those that lie within the first `length` tokens; regions without a token are left out."""
    first, last = example.steps[0][0], example.steps[-1][1]
    steps = [Region("step", number, range(*span)) for number, span in enumerate(example.steps)]
    end = Region("end", None, range(last, length))
    regions = [*_prompt_regions(example.user, first), *steps, end]
    return [region for region in regions if region.indices and region.indices.stop <= length]


def _prompt_regions(user: Span | None, length: int) -> list[Region]:
    if user is None:
        return [Region("prompt", None, range(length))]
    start, stop = user
    return [
        Region("system", None, range(start)),
        Region("question", None, range(start, stop)),
        Region("header", None, range(stop, length)),
    ]


def _views_of_branches(row: Row) -> dict[int, ViewOfBranch]:
    """By the number of the branch, the first view that is read from it."""
    views: dict[int, ViewOfBranch] = {}
    for pair in row.pairs:
        for index, _ in pair.predicted:
            views.setdefault(row.branch[index], ViewOfBranch("predictor", pair.step))
        for index, _ in pair.target:
            views.setdefault(row.branch[index], ViewOfBranch("target", pair.step))
    return views
