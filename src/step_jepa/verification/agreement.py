"""How far the two implementations are apart, and whether that is within tolerance."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from step_jepa.verification.outcomes import Outcome

LOSS_TOLERANCE, VIEW_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3, 1e-3


@dataclass(frozen=True)
class LossOfBoth:
    """One loss, by either implementation."""

    standalone: float
    adapted: float

    @property
    def difference(self) -> float:
        """How far they are apart."""
        return abs(self.adapted - self.standalone)


@dataclass(frozen=True)
class Comparison:
    """What the two implementations give on the same rows: the JSON of `step-jepa compare`.

    n                  rows
    cut                how many of them are read up to MOST_READ tokens only
    view_max_rel_diff  largest difference of a view, relative to its norm
    grad_max_rel_diff  largest difference of a parameter's gradient, relative to its norm
    first_difference   the first thing that differs, in the order in which they are computed; None where they agree
    """

    n: int
    cut: int
    lm_loss: LossOfBoth
    jepa_loss: LossOfBoth
    view_max_rel_diff: float
    grad_max_rel_diff: float
    agree: bool
    first_difference: str | None


class _Difference(NamedTuple):
    """Of one quantity: how far the implementations are apart, and how far they may be."""

    name: str
    value: float
    tolerance: float


def comparison_of(by_adapted: Outcome, by_standalone: Outcome, first: str | None, *, n: int, cut: int) -> Comparison:
    lm_loss = LossOfBoth(by_standalone.lm_loss, by_adapted.lm_loss)
    jepa_loss = LossOfBoth(by_standalone.jepa_loss, by_adapted.jepa_loss)
    view = _view_difference(by_adapted.views, by_standalone.views)
    gradients = _gradient_differences(by_adapted.gradients, by_standalone.gradients)
    worst = max(gradients, key=lambda name: gradients[name])
    differences = [
        _Difference("a view", view, VIEW_TOLERANCE),
        _Difference("the LM loss", lm_loss.difference, LOSS_TOLERANCE),
        _Difference("the JEPA loss", jepa_loss.difference, LOSS_TOLERANCE),
        _Difference(f"the gradient of {worst}", gradients[worst], GRADIENT_TOLERANCE),
    ]
    # What is not a number is within no tolerance.
    exceeded = [each.name for each in differences if not each.value <= each.tolerance]
    first = first or next(iter(exceeded), None)
    return Comparison(n, cut, lm_loss, jepa_loss, view, gradients[worst], first is None, first)


def _view_difference(by_adapted: Tensor, by_standalone: Tensor) -> float:
    if by_adapted.shape != by_standalone.shape:
        return 1.0
    return max((_relative(ours, theirs) for ours, theirs in zip(by_adapted, by_standalone, strict=True)), default=0.0)


def _gradient_differences(by_adapted: dict[str, Tensor], by_standalone: dict[str, Tensor]) -> dict[str, float]:
    """By parameter; 1 where only one of the two reaches it."""
    differences = {}
    for name in sorted(by_adapted.keys() | by_standalone.keys()):
        in_both = name in by_adapted and name in by_standalone
        differences[name] = _relative(by_adapted[name], by_standalone[name]) if in_both else 1.0
    return differences


def _relative(a: Tensor, b: Tensor) -> float:
    """norm(a - b) / norm(b); what is not a number counts as infinitely far."""
    difference = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
    return difference if math.isfinite(difference) else math.inf
