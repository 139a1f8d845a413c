"""A sample of a long row's tokens, as a mask of all of them would be neither readable nor small."""

from collections.abc import Sequence
from dataclasses import dataclass

from step_jepa.rows.regions import Region

MOST_TOKENS = 2000
MOST_STEPS = 20  # of longer answers the first ten and the last ten


@dataclass(frozen=True)
class Sample:
    """Tokens of a row, in order.

    Attributes:
        tokens: their indices in the row.
        regions: what tiles them; `indices` are places in `tokens`.
        note: what was chosen of how much; empty where it is everything.
    """

    tokens: list[int]
    regions: list[Region]
    note: str


def sample_of(regions: Sequence[Region]) -> Sample:
    """All tokens where they are few; else some of each region, its last one among them, of the first and last steps.

    Args:
        regions: what tiles the row.
    """
    kept = _with_few_steps(regions)
    total = sum(len(region.indices) for region in kept)
    tokens: list[int] = []
    sampled = []
    for region in kept:
        chosen = _evenly(region.indices, min(1.0, MOST_TOKENS / total))
        sampled.append(Region(region.kind, region.number, range(len(tokens), len(tokens) + len(chosen))))
        tokens += chosen
    length = regions[-1].indices.stop
    note = "" if len(tokens) == length else f"{len(tokens)} of {length} tokens, {len(kept)} of {len(regions)} regions"
    return Sample(tokens, sampled, note)


def _with_few_steps(regions: Sequence[Region]) -> list[Region]:
    numbers = sorted({region.number for region in regions if region.number is not None})
    if len(numbers) <= MOST_STEPS:
        return list(regions)
    shown = {None, *numbers[: MOST_STEPS // 2], *numbers[-MOST_STEPS // 2 :]}
    return [region for region in regions if region.number in shown]


def _evenly(indices: range, share: float) -> list[int]:
    """About so many of them, the last one among them."""
    count = max(1, int(len(indices) * share))
    return [indices[(place + 1) * len(indices) // count - 1] for place in range(count)]
