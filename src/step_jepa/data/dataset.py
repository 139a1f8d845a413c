"""Records -> examples: a file or a set of conversations, tokenised, cut to length, and counted."""

import hashlib
import logging
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedTokenizerBase

from step_jepa.data.cache import encoded
from step_jepa.data.conversations import to_conversation
from step_jepa.data.encoder import Encoder, RawRow
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import Example
from step_jepa.data.examples import PreparedData as PreparedData  # which users make and read
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading import log_notes, no_records, record_limit
from step_jepa.data.reading_options import ReadArguments, ReadingOptions
from step_jepa.data.sources import Line, Source, numbered, of_dataset, open_source
from step_jepa.data.splits import TRAIN, Splits
from step_jepa.data.tokens import encode_rows
from step_jepa.errors import UserError
from step_jepa.plurals import counted

logger = logging.getLogger(__name__)


class Records(Protocol):
    """A list of records with `messages` (and `steps`), or a data set of `datasets`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


SplitData: TypeAlias = DatasetDict | IterableDatasetDict
Stream: TypeAlias = IterableDataset | IterableDatasetDict
# What a trainer takes
DataSource: TypeAlias = str | os.PathLike[str] | Records | SplitData | IterableDataset | PreparedData


def load_and_prepare_dataset(
    data: str | os.PathLike[str] | Records | DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    encoding: Encoding = Encoding(),  # noqa: B008 - it is frozen
    reading: ReadingOptions | None = None,
    num_proc: int = 1,
    splits: Splits = TRAIN,
) -> PreparedData:
    """Examples of a data set, made anew from a table whenever they are read. A table of more than a few rows is kept in
    the cache of `datasets` for the next time.

    Args:
        data: a file, folder or id that `prepare` reads, or records that carry `messages` (and `steps`). A record
            without `steps` is cut into steps as `prepare` does it; its content stays as it is.
        tokenizer: a fast one, with a chat template.
        max_length: most tokens of an example; longer ones are cut to whole steps, or left out where none fits.
        limit: most records that are read.
        encoding: what else is encoded, and how.
        reading: how raw records of a file are read, and where contents without `steps` are cut.
        num_proc: processes that tokenise.
        splits: which split is read of data that has several, the first that there is.

    Raises:
        UserError: a record, which is named, cannot be used, or none is left.
    """
    source, encoder = opened(data, splits), encoder_of(data, tokenizer, max_length, encoding, reading)
    if source.endless:
        raise UserError("a stream is for training alone: give data of known length, or a file")
    name = source.name or "the data set"
    prepared = encoded(encoder, islice(raw_rows(source), limit), lambda: f"{limit} {source.digest()}", num_proc)
    if not len(prepared.examples):
        reason = f"no whole step fits into max_length = {max_length}: raise it" if prepared.left_out else "it is empty"
        raise UserError(f"{name}: no example to use, {reason}")
    log_notes(name, prepared.notes)
    if prepared.left_out:
        logger.warning("%s: left out as no whole step fits: %s", name, counted(prepared.left_out, "example"))
    return prepared


def encoder_of(
    data: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    encoding: Encoding,
    reading: ReadingOptions | None = None,
) -> Encoder:
    """What makes examples of the data's rows; the arguments as those of `load_and_prepare_dataset`."""
    name = str(data) if isinstance(data, str | os.PathLike) else ""
    return Encoder(tokenizer, encoding, max_length, name, ReadArguments.of(reading))


def raw_rows(source: Source) -> Iterator[RawRow]:
    """All of them, numbered. Raises UserError where a file has none."""
    rows = source.rows()
    first = list(islice(rows, 1))
    if not first and source.name:
        raise no_records(source.name)
    for number, (line, raw) in enumerate(chain(first, rows)):
        yield RawRow(number, line, raw)


def opened(data: Any, splits: Splits, *, stream: bool = False) -> Source:
    """What can be read. Raises UserError.

    Args:
        data: as `load_and_prepare_dataset` takes it, or a stream.
        splits: which split is read of data that has several.
        stream: a hub data set is read as it comes, and not downloaded first.

    Returns:
        The source; its name is "" where it is of Python.
    """
    if isinstance(data, str | os.PathLike):
        return _of_name(str(data), splits, stream=stream)
    if isinstance(data, SplitData):
        return of_dataset(_split_of(data, splits), "")
    if isinstance(data, Dataset | IterableDataset):
        return of_dataset(data, "")
    if isinstance(data, Mapping) or not hasattr(data, "__len__"):
        raise UserError("give one data set: records, a data set of `datasets`, or a file, and no dictionary of them")
    return Source("", partial(numbered, data), partial(_digest, data))


def _of_name(name: str, splits: Splits, *, stream: bool) -> Source:
    args = ReadArguments()
    source, limit = open_source(name, args, splits, stream=stream), record_limit(name, args)
    return replace(source, rows=partial(_first, source, limit))


def _first(source: Source, limit: int | None) -> Iterator[tuple[Line, Any]]:
    yield from islice(source.rows(), limit)


def _split_of(data: SplitData, splits: Splits) -> Dataset | IterableDataset:
    taken = next((split for split in splits if split in data), None)
    if taken is None:
        raise UserError(f"the {type(data).__name__} has no split {splits[0]}: it has {', '.join(map(str, data))}")
    return data[taken]


def _digest(records: Iterable[Any]) -> str:
    """Equal for equal records, of plain values at least."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(pickle.dumps(record))
    return digest.hexdigest()


def to_example(
    record: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    encoding: Encoding = Encoding(),  # noqa: B008 - it is frozen
) -> Example:
    """One record as the model reads it.

    Args:
        record: with `messages`, and `steps` where they are known.
        tokenizer: a fast one, with a chat template.
        where: what the record is called in messages to the user.
        encoding: what else is encoded, and how.

    Raises:
        UserError: the record cannot be used.
    """
    try:
        (example,) = encode_rows(tokenizer, [to_conversation(record)], encoding)
        if isinstance(example, Rejected):
            raise example
    except Rejected as reason:
        raise UserError(f"{where}: {reason}") from reason
    return example
