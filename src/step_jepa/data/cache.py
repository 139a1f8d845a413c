"""Raw rows -> a table of examples: in memory where they are few, else mapped from a file in the cache of `datasets`."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, config

from step_jepa import terminal
from step_jepa.data.encoder import Encoded, Encoder, RawRow
from step_jepa.data.example import Example
from step_jepa.data.examples import SCHEMA, Examples, PreparedData, table
from step_jepa.data.processes import over_processes
from step_jepa.data.template_notes import say_what_is_special
from step_jepa.errors import UserError
from step_jepa.run_files.writing import unfinished, unfinished_files

BATCH = 250  # rows that are encoded at once
IN_MEMORY = 1000  # fewer rows are encoded anew each time, and kept in memory
EXAMPLES_FILE, COUNTS_FILE = "examples.arrow", "counts.json"


class _Rows(NamedTuple):
    """What an encoder gives, with the examples as rows of a table."""

    rows: pa.RecordBatch
    cut: int
    left_out: int
    notes: Counter[str]


def encoded(encoder: Encoder, rows: Iterator[RawRow], digest: Callable[[], str], num_proc: int) -> PreparedData:
    """The examples of all rows: in memory where they are few, else in a file of datasets' cache, which is mapped.

    Args:
        encoder: what makes them.
        rows: all of them.
        digest: of the rows.
        num_proc: processes that encode.

    Raises:
        UserError: a row cannot be used.
    """
    head = list(islice(rows, IN_MEMORY))
    say_what_is_special(encoder.tokenizer, encoder.conversations(head))
    if len(head) < IN_MEMORY:
        return _in_memory(encoder, head)
    folder = Path(config.HF_DATASETS_CACHE, "step_jepa", encoder.fingerprint(digest()))
    if not folder.exists():
        _fill(folder, encoder, _chained(head, rows), num_proc)
    counts = json.loads((folder / COUNTS_FILE).read_text())
    return PreparedData(Examples(Dataset.from_file(str(folder / EXAMPLES_FILE))), **counts)


def _chained(head: list[RawRow], rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """All rows; the head is not held longer than it is needed."""
    while head:
        yield head.pop(0)
    yield from rows


def _in_memory(encoder: Encoder, rows: list[RawRow]) -> PreparedData:
    parts = list(map(encoder, _batches(iter(rows))))
    examples: list[Example] = []
    for part in parts:
        examples += part.examples
    return PreparedData(Examples.of(examples), **_counts(parts))


def _counts(parts: Iterable[Encoded | _Rows]) -> dict[str, Any]:
    """What PreparedData says of its examples."""
    cut, left_out, notes = 0, 0, Counter[str]()
    for part in parts:
        cut += part.cut
        left_out += part.left_out
        notes.update(part.notes)
    return {"cut": cut, "left_out": left_out, "notes": notes}


def _batches(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _fill(folder: Path, encoder: Encoder, rows: Iterator[RawRow], num_proc: int) -> None:
    """Write the examples and their counts; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in unfinished_files(folder):
        shutil.rmtree(abandoned, ignore_errors=True)
    begun = unfinished(folder)
    try:
        begun.mkdir()
        counts = _counts(_write(begun / EXAMPLES_FILE, encoder, rows, num_proc))
        (begun / COUNTS_FILE).write_text(json.dumps(counts))
        _keep(begun, folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: the tokenised data cannot be kept there ({error.strerror}): make room, or set "
            "HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _keep(begun: Path, folder: Path) -> None:
    try:
        begun.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise


def _write(path: Path, encoder: Encoder, rows: Iterator[RawRow], num_proc: int) -> Iterator[_Rows]:
    """Write the examples, and give each batch that has been written."""
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        terminal.bar(label="tokenising", unit="row") as progress,
    ):
        for part in over_processes(partial(_encoded_rows, encoder), _batches(rows), num_proc):
            writer.write_batch(part.rows)
            progress.update(part.rows.num_rows + part.left_out)
            yield part


def _encoded_rows(encoder: Encoder, rows: Sequence[RawRow]) -> _Rows:
    part = encoder(rows)
    return _Rows(table(part.examples), part.cut, part.left_out, part.notes)
