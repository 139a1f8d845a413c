"""Records of any prepared or raw source, one by one; what cannot be used is named by its line."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, cast

from step_jepa.data.conversion import to_reading
from step_jepa.data.generated import GENERATED_BY_DEFAULT
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading_options import ReadArguments, ReadingOptions
from step_jepa.data.records import Reading, Record, noted
from step_jepa.data.sources import Line, generator_of, open_source
from step_jepa.data.splits import TRAIN, Splits
from step_jepa.errors import UserError
from step_jepa.plurals import counted

logger = logging.getLogger(__name__)

REMEDY = "step-jepa prepare has options for that"


def read_records(
    source: str, wanted: Splits = TRAIN, reading: ReadingOptions | None = None, **options: Any
) -> Iterator[Record]:
    """Records of any prepared or raw source.

    Args:
        source: a file, a folder, the id of a hub data set, or the name of generated problems, which `builtin:` may
            precede; a configuration and a split may follow.
        wanted: the splits that are looked for where the source names none; the first that there is is read.
        reading: how a command reads raw records.
        **options: other fields of ReadArguments.

    Raises:
        UserError: the source is missing or empty, or a record cannot be used; when the iteration gets there.
    """
    args = ReadArguments.of(reading, **options)
    notes: Counter[str] = Counter()
    try:
        for line, raw in islice(raw_records(source, args, wanted), record_limit(source, args)):
            record = usable_record(source, line, raw, args)
            notes.update(record.notes)
            yield cast(Record, dict(record))
    finally:  # the reader may want no more
        log_notes(source, notes)


def raw_records(source: str, args: ReadArguments, wanted: Splits = TRAIN) -> Iterator[tuple[Line, Any]]:
    """Raw records with the line of the file, else their number. Raises UserError, also where there are none."""
    rows = islice(open_source(source, args, wanted).rows(), args.skip, None)
    first = list(islice(rows, 1))
    if not first and args.skip:
        raise UserError(f"{source} holds no more than {counted(args.skip, 'record')}: give a smaller --skip")
    if not first:
        raise no_records(source)
    yield from chain(first, rows)


def record_limit(source: str, args: ReadArguments) -> int | None:
    """How many records are wanted; None for all that there are."""
    return args.max_examples or (GENERATED_BY_DEFAULT if generator_of(source) else None)


def usable_record(source: str, line: Line, raw: Any, args: ReadArguments) -> Reading:
    """The record of a line. Raises UserError, which names the line, where it cannot be used."""
    try:
        return to_reading(raw, args)
    except Rejected as error:
        raise UserError(
            f"{place(source, line)}: {error}; correct it or run step-jepa prepare, which sets such lines aside"
        ) from error


def place(source: str, line: Line) -> str:
    """What a line is called in messages."""
    return line if isinstance(line, str) else f"{source}:{line}"


def no_records(source: str) -> UserError:
    """What is said of an empty source."""
    if source.endswith("]"):
        return UserError(f"{source} holds no records: the last one comes before that slice, or it is of a split")
    return UserError(f"{source} holds no records: give a file with one JSON object a line")


def log_notes(source: str, notes: Mapping[str, int]) -> None:
    """Say what was changed in records and what of them is not used, in a line each."""
    for note, count in noted(notes).items():
        logger.info("%s: %s: %s (%s)", source, note, counted(count, "record"), REMEDY)


def say_what_was_read(source: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Say how many there are, and how many steps and pairs of steps that follow one another."""
    counts = [len(record["steps"]) for record in records]
    pairs = sum(max(0, count - 1) for count in counts)
    numbers = {"record": len(records), "step": sum(counts), "pair": pairs}
    found = ", ".join(counted(number, noun) for noun, number in numbers.items())
    logger.info("%s: %s of consecutive steps", source, found)
