"""Differences in words."""

from step_jepa.plurals import counted
from step_jepa.statistics.differences import Difference
from step_jepa.statistics.significance import ALPHA


def sentence(difference: Difference, adjusted: float | None = None, comparisons: int = 1) -> str:
    """What one comparison says, `adjusted` being its p-value after `holm` over so many comparisons."""
    figure = f"{difference.condition} minus {difference.baseline}: {difference.difference:+.3g}"
    data = f"{counted(len(difference.seeds), 'seed')}, {counted(difference.problems, 'problem')}"
    if difference.left_out:
        data += f"; {counted(len(difference.left_out), 'seed')} of only one arm left out"
    if difference.new_problems is None or difference.p is None:
        return f"{figure} ({data}); {_why_no_interval(difference)}."
    low, high = difference.new_problems
    interval = f"95 % interval for new seeds and new problems [{low:.3g}, {high:.3g}]"
    p = _p(difference.p)
    if adjusted is not None:
        p += f", {_p(adjusted)} after Holm over {counted(comparisons, 'comparison')}"
    final = difference.p if adjusted is None else adjusted
    verdict = "a difference is shown" if final <= ALPHA else "no difference is shown"
    return f"{figure}, {interval}, {p} ({data}): {verdict}."


def sign_flip_sentence(difference: Difference) -> str:
    """The p-value of sign flips over seeds, or that there can be none at 5 %."""
    flips = f"sign flips over {counted(len(difference.seeds), 'seed')}"
    if difference.sign_flip_p is None:
        return f"{flips} cannot reject at 5 %: p is at least {2 / 2 ** len(difference.seeds):.3g}."
    return f"{flips}, on these problems: {_p(difference.sign_flip_p)}."


def _why_no_interval(difference: Difference) -> str:
    for number, noun in ((len(difference.seeds), "seed"), (difference.problems, "problem")):
        if number == 1:
            return f"one {noun} does not tell what is due to the {noun}, so there is no interval and no test"
    return "nothing varies that an interval or a test could be made of"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
