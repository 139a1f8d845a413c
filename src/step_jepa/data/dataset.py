"""Records -> examples: a file or a set of conversations, tokenised, cut to length, and counted."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from step_jepa.data.sources import read_records
from step_jepa.data.steps import split
from step_jepa.data.tokens import Encoding, Example, encode, truncate
from step_jepa.errors import UserError


@dataclass
class PreparedData:
    """Examples, how many were cut to `max_length`, and how many were left out because not one whole step fits."""

    examples: list[Example]
    cut: int
    left_out: int

    def __str__(self) -> str:
        counts = [len(example.steps) for example in self.examples]
        single = sum(count < 2 for count in counts)
        notes = {
            "end with an answer step": sum(example.answer is not None for example in self.examples),
            "cut to whole steps within max_length": self.cut,
            "left out, as not one whole step fits into max_length": self.left_out,
            "with fewer than two steps, which train the language model only": single,
        }
        said = [f"{count} {note}" for note, count in notes.items() if count]
        return "; ".join([f"{len(counts)} examples, {sum(counts)} steps", *said])


def load_and_prepare_dataset(
    data: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    encoding: Encoding = Encoding(),  # noqa: B008 - it is frozen
) -> PreparedData:
    """Examples from a file or id that `prepare` reads, or from records that carry `messages` (and `steps`).

    A record without `steps` is cut into steps as `prepare` does it; its content stays as it is. Raises UserError,
    naming the record, where one cannot be used, and where none is left."""
    named = isinstance(data, str | os.PathLike)
    if isinstance(data, Mapping) or not (named or hasattr(data, "__len__")):
        raise UserError("give one data set of known length: no dictionary of them, no stream")
    records: Iterable[Mapping[str, Any]] = read_records(str(data)) if named else data
    source = f" of {data}" if named else ""
    examples: list[Example] = []
    cut = left_out = 0
    for index, record in enumerate(tqdm(islice(records, limit), desc="tokenising", leave=False, delay=2)):
        whole = to_example(record, tokenizer, f"example {index}{source}", encoding)
        example = truncate(whole, max_length)
        if not example.steps:
            left_out += 1
            continue
        cut += len(example.input_ids) < len(whole.input_ids)
        examples.append(replace(example, index=len(examples)))
    if not examples:
        reason = f"no whole step fits into max_length = {max_length}: raise it" if left_out else "it is empty"
        raise UserError(f"{data if named else 'the data set'}: no example to use, {reason}")
    return PreparedData(examples, cut, left_out)


def to_example(
    record: Mapping[str, Any],
    tokenizer: Any,
    where: str,
    encoding: Encoding = Encoding(),  # noqa: B008 - it is frozen
) -> Example:
    """One record with `messages`, and `steps` where they are known. Raises UserError."""
    messages = record.get("messages")
    if not messages or not all(isinstance(turn.get("content"), str) for turn in messages):
        raise UserError(f"{where}: `messages` must be turns whose `content` is text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise UserError(f"{where}: `messages` must end with an assistant turn that says something")
    if messages[-1].get("reasoning_content"):
        raise UserError(f"{where}: reasoning_content would be read but not trained: run step-jepa prepare")
    steps = record.get("steps") or split(messages[-1]["content"])
    return encode(tokenizer, [dict(message) for message in messages], list(steps), where, encoding)
