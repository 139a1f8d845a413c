"""Dot plots, which the page draws by itself: on each line a value and its 95 % interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

MOST_TICKS = 5
LEAST_SPAN = 1e-6  # of an axis; values that are nearer to each other are the same
KINDS = TRAINED, CONTROL, OTHER, BASELINE = "trained", "control", "other", "baseline"


class Dot(NamedTuple):
    """A line of a plot.

    text            the value in figures, with its interval
    low, high       of the interval; the value twice where there is none
    kind            one of KINDS, how it is drawn: of a model that was trained for it, of its control, of another model,
                    or of what needs no model
    group           of runs; None for what is of no run
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    kind: str = TRAINED
    group: str | None = None


@dataclass(frozen=True)
class DotPlot:
    """Lines on one axis.

    reference   a value with a line of its own, such as chance, and what it is called
    is_share    whether the figures are shares, from 0 to 1, to be written in per cent
    """

    title: str
    dots: Sequence[Dot]
    reference: tuple[float, str] | None = None
    is_share: bool = False

    @property
    def ticks(self) -> list[float]:
        """At round values, around all that is shown."""
        ends = [end for dot in self.dots for end in (dot.low, dot.high)]
        ends += [self.reference[0]] if self.reference else []
        low, high = min(ends), max(ends)
        if high - low < LEAST_SPAN:
            low, high = low - 0.5, high + 0.5
        if self.is_share:
            low, high = max(low, 0), min(high, 1)
        return list(map(float, MaxNLocator(MOST_TICKS).tick_values(low, high)))

    def place(self, value: float) -> str:
        """Of a value on the axis, in per cent from the left."""
        first, *_, last = self.ticks
        share = (value - first) / (last - first)
        return f"{100 * min(max(share, 0), 1):.2f}"

    def tick_text(self, tick: float) -> str:
        return f"{tick:.3g}" if not self.is_share else f"{100 * tick:.3g} %"


def figure_text(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def share_text(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def share_dot(label: str, figure: Mapping[str, Any], kind: str, group: str | None = None) -> Dot:
    """Of a figure with value, low and high, which is a share."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    return Dot(label, value, low, high, share_text(value, low, high), kind, group)


def kind_of(options: Mapping[str, Any]) -> str:
    """Of the options of a model's run; a model of no run, or of one without a JEPA term, is not trained for it."""
    if not options.get("lbd") or options.get("objective") in ("none", ["none"]):
        return OTHER
    return TRAINED if options.get("control", "none") == "none" else CONTROL
