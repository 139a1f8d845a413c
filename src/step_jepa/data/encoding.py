"""Raw records -> a table of examples, in batches, over processes, kept in the cache of `datasets`."""

import hashlib
import inspect
import json
import os
import shutil
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, config
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation, to_conversation
from step_jepa.data.examples import SCHEMA, Examples, PreparedData, table
from step_jepa.data.records import ReadArguments, Reading, Rejected, formats
from step_jepa.data.sources import Line, usable_record
from step_jepa.data.template_notes import say_what_is_special
from step_jepa.data.tokens import Encoding, Example, encode_rows, truncate
from step_jepa.errors import UserError
from step_jepa.run_files import unfinished_files

BATCH = 250  # rows that are encoded at once
IN_MEMORY = 1000  # fewer rows are encoded anew each time, and kept in memory
EXAMPLES_FILE, COUNTS_FILE = "examples.arrow", "counts.json"
LIBRARIES = ("step-jepa", "transformers", "tokenizers", "jinja2")


class RawRow(NamedTuple):
    """A record before it is read: its number in the source, from 0, and its line."""

    number: int
    line: Line
    raw: Any


class Encoded(NamedTuple):
    """The examples of a batch, how many of them were cut, how many rows were left out, and what was changed in how many
    records."""

    examples: list[Example]
    cut: int
    left_out: int
    notes: Counter[str]


class _Rows(NamedTuple):
    """The same, with the examples as rows of a table."""

    rows: pa.RecordBatch
    cut: int
    left_out: int
    notes: Counter[str]


@dataclass(frozen=True)
class Encoder:
    """What makes examples of raw rows.

    tokenizer    a fast one, with a chat template
    encoding     what else is encoded, and how
    max_length   most tokens of an example; longer ones are cut to whole steps
    source       what messages call the rows; "" for records from Python, which carry `messages`
    reading      how raw records of a source are read
    """

    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    max_length: int | None
    source: str
    reading: ReadArguments

    def __call__(self, rows: Sequence[RawRow]) -> Encoded:
        """Raises UserError, naming the row, for one that cannot be used."""
        records = list(map(self._record, rows))
        wholes = encode_rows(self.tokenizer, list(map(self._conversation, rows, records)), self.encoding)
        examples: list[Example] = []
        cut = 0
        for row, whole in zip(rows, wholes, strict=True):
            if isinstance(whole, Rejected):
                raise UserError(f"{self._place(row)}: {whole}")
            examples.append(truncate(whole, self.max_length))
            cut += bool(examples[-1].steps) and len(examples[-1].input_ids) < len(whole.input_ids)
        kept = [example for example in examples if example.steps]
        notes = Counter(chain.from_iterable(record.notes for record in records if isinstance(record, Reading)))
        return Encoded(kept, cut, len(examples) - len(kept), notes)

    def conversations(self, rows: Sequence[RawRow]) -> list[Conversation]:
        """What is encoded of them. Raises UserError, naming the row, for a record that cannot be used."""
        return [self._conversation(row, self._record(row)) for row in rows]

    def _conversation(self, row: RawRow, record: Mapping[str, Any]) -> Conversation:
        try:
            return to_conversation(record)
        except Rejected as reason:
            raise UserError(f"{self._place(row)}: {reason}") from reason

    def _record(self, row: RawRow) -> Mapping[str, Any]:
        if self.source:
            return usable_record(self.source, row.line, row.raw, self.reading)
        if not isinstance(row.raw, Mapping):
            raise UserError(f"{self._place(row)}: it is a {type(row.raw).__name__}: give records with `messages`")
        return row.raw

    def _place(self, row: RawRow) -> str:
        return f"example {row.number} of {self.source}" if self.source else f"example {row.number}"

    def fingerprint(self, digest: str) -> str:
        """Equal where the same examples come of rows with the same digest: it is of all that they follow from, our own
        code included."""
        template = self.tokenizer.chat_template
        parts = {
            "rows": digest,
            "tokenizer": [type(self.tokenizer).__name__, self.tokenizer.backend_tokenizer.to_str()],
            "special": self.tokenizer.special_tokens_map,
            "template": template,
            "day": str(date.today()) if "strftime_now" in str(template) else None,
            "options": [asdict(self.encoding), self.max_length, asdict(self.reading), bool(self.source)],
            "versions": [version(library) for library in LIBRARIES],
            "code": _code(),
        }
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:32]


def _code() -> str:
    """The text of the modules that read and encode, those of a user's own formats included."""
    readers = {inspect.getsourcefile(each.read) for each in formats()}
    ours = Path(__file__).parent.glob("*.py")
    files = sorted({Path(path).resolve() for path in (*ours, *readers) if path})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


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
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir()
        counts = _counts(_write(unfinished / EXAMPLES_FILE, encoder, rows, num_proc))
        (unfinished / COUNTS_FILE).write_text(json.dumps(counts))
        with suppress(FileExistsError):  # another process may have been faster
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: the tokenised data cannot be kept there ({error.strerror}): make room, or set "
            "HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, encoder: Encoder, rows: Iterator[RawRow], num_proc: int) -> Iterator[_Rows]:
    """Write the examples, and give each batch that has been written."""
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        tqdm(desc="tokenising", unit=" rows", leave=False, delay=2) as progress,
    ):
        for part in _over_processes(_Table(encoder), _batches(rows), num_proc):
            writer.write_batch(part.rows)
            progress.update(part.rows.num_rows + part.left_out)
            yield part


@dataclass(frozen=True)
class _Table:
    """Raw rows -> rows of a table."""

    encoder: Encoder

    def __call__(self, rows: Sequence[RawRow]) -> _Rows:
        part = self.encoder(rows)
        return _Rows(table(part.examples), part.cut, part.left_out, part.notes)


def _over_processes(function: Callable[[Any], Any], items: Iterable[Any], num_proc: int) -> Iterator[Any]:
    """The function's results in the order of the items, of which a few are read ahead."""
    if num_proc == 1:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    with _processes(function, num_proc) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_call, item))
                if len(waiting) > 2 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(function: Callable[[Any], Any], num_proc: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that call the function. Each uses one thread, or they would be in each other's way."""
    context = get_context("fork" if sys.platform == "linux" else None)  # which starts at once
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with ProcessPoolExecutor(num_proc, context, _start, (function,)) as pool:
            yield pool
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_function: Callable[[Any], Any]  # of this process


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks says so


def _call(item: Any) -> Any:
    return _function(item)
