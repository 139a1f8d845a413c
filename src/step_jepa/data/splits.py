"""Which split of a data set is read, and which part of it."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence

from step_jepa.data.loader_errors import loader_errors
from step_jepa.errors import UserError

logger = logging.getLogger(__name__)

Splits = Sequence[str]
TRAIN: Splits = ("train",)
VALIDATION: Splits = ("validation", "test")
TEST: Splits = ("test", "validation")
_SLICE = re.compile(r"-?\d*%?:-?\d*%?")


def chosen_split(source: str, named: str | None, names: list[str], wanted: Splits) -> str:
    """The split that is read, perhaps a slice: the one that is named, else the first of those that are wanted, else the
    only one; which one is said where there was a choice, and where it is none of these."""
    taken = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if named is not None:
        return completed_split(named, taken)
    if taken is None:
        raise UserError(
            f"{source} has no split {wanted[0]}, it has {', '.join(names)}: name one, as {source}[{names[0]}]"
        )
    if len(names) > 1 or taken not in wanted:
        logger.info("%s: the split %s is read", source, taken)
    return taken


def completed_split(named: str | None, split: str | None) -> str:
    """A slice that names no split is one of the split that would be read without it."""
    assert named or split
    return f"{split}[{named}]" if named and split and _SLICE.fullmatch(named) else named or str(split)


def parts_of_split(
    source: str, split: str, counts: Mapping[str, Callable[[], int]]
) -> list[tuple[str, int | None, int | None]]:
    """(split, first row, row after the last) of each part of what may be a slice or a sum.

    Args:
        source: what messages call it.
        split: what is read.
        counts: counts the rows of each split that there is.
    """
    from datasets import ReadInstruction

    if split in counts:
        return [(split, None, None)]
    named = [part.partition("[")[0].strip() for part in split.split("+")]
    if unknown := [name for name in named if name not in counts]:
        raise UserError(f"{source} has no split {unknown[0]}: it has {', '.join(counts)}")
    with loader_errors(source):
        parts = ReadInstruction.from_spec(split).to_absolute({name: counts[name]() for name in named})
    return [(part.splitname, part.from_, part.to) for part in parts]
