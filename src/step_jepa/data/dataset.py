"""Records -> examples: a file or a set of conversations, tokenised, cut to length, and counted."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation, Refused, to_conversation
from step_jepa.data.sources import read_records
from step_jepa.data.template_notes import say_what_is_special
from step_jepa.data.tokens import Encoding, Example, encode_rows, truncate
from step_jepa.errors import UserError

_BATCH = 1000  # records that are tokenised in one call


class Records(Protocol):
    """A list of records with `messages` (and `steps`), or a data set of `datasets`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


@dataclass
class PreparedData:
    """Examples, how many were cut to `max_length`, and how many were left out because not one whole step fits."""

    examples: list[Example]
    cut: int
    left_out: int

    def __str__(self) -> str:
        step_counts = [len(example.steps) for example in self.examples]
        notes = {
            "end with an answer step": sum(example.answer is not None for example in self.examples),
            "cut to whole steps within max_length": self.cut,
            "left out, as not one whole step fits into max_length": self.left_out,
            "with fewer than two steps, which train the language model only": sum(n < 2 for n in step_counts),
        }
        parts = [f"{count} {note}" for note, count in notes.items() if count]
        return "; ".join([f"{len(step_counts)} examples, {sum(step_counts)} steps", *parts])


DataSource = str | os.PathLike[str] | Records | PreparedData  # what a trainer takes


def load_and_prepare_dataset(
    data: str | os.PathLike[str] | Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    encoding: Encoding = Encoding(),  # noqa: B008 - it is frozen
) -> PreparedData:
    """Examples of a data set.

    Args:
        data: a file or id that `prepare` reads, or records that carry `messages` (and `steps`). A record without
            `steps` is cut into steps as `prepare` does it; its content stays as it is.
        tokenizer: a fast one, with a chat template.
        max_length: most tokens of an example; longer ones are cut to whole steps, or left out where none fits.
        limit: most records that are read.
        encoding: what else is encoded, and how.

    Raises:
        UserError: a record, which is named, cannot be used, or none is left.
    """
    records, source = _opened(data)
    examples: list[Example] = []
    cut = left_out = 0
    shown = tqdm(islice(records, limit), desc="tokenising", leave=False, delay=2)
    for index, whole in enumerate(_encoded(tokenizer, shown, encoding)):
        if isinstance(whole, Refused):
            where = f"example {index} of {source}" if source else f"example {index}"
            raise UserError(f"{where}: {whole.reason}")
        example = truncate(whole, max_length)
        if not example.steps:
            left_out += 1
            continue
        cut += len(example.input_ids) < len(whole.input_ids)
        examples.append(replace(example, index=len(examples)))
    if not examples:
        reason = f"no whole step fits into max_length = {max_length}: raise it" if left_out else "it is empty"
        raise UserError(f"{source or 'the data set'}: no example to use, {reason}")
    return PreparedData(examples, cut, left_out)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, records: Iterable[Mapping[str, Any]], encoding: Encoding
) -> Iterator[Example | Refused]:
    """Batch by batch."""
    records = iter(records)
    while batch := [to_conversation(record) for record in islice(records, _BATCH)]:
        say_what_is_special(tokenizer, [row for row in batch if isinstance(row, Conversation)])
        yield from encode_rows(tokenizer, batch, encoding)


def _opened(data: str | os.PathLike[str] | Records) -> tuple[Iterable[Mapping[str, Any]], str]:
    """The records, and the name of the source that they are read from; "" for records themselves."""
    if isinstance(data, str | os.PathLike):
        return read_records(str(data)), str(data)
    if isinstance(data, Mapping) or not hasattr(data, "__len__"):
        raise UserError("give one data set of known length: no dictionary of them, no stream")
    return data, ""


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
    (example,) = encode_rows(tokenizer, [to_conversation(record)], encoding)
    if isinstance(example, Refused):
        raise UserError(f"{where}: {example.reason}")
    return example
