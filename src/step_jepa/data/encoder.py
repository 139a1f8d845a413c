"""Raw rows -> examples, batch by batch, and all that they follow from."""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation, to_conversation
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import Example, truncate
from step_jepa.data.format_registry import formats
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading import usable_record
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import Reading
from step_jepa.data.sources import Line
from step_jepa.data.tokens import encode_rows
from step_jepa.errors import UserError

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
            return to_conversation(record, self.reading)
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
