"""Examples in an Arrow table, in memory or mapped from a file: made anew whenever one is read, so that memory does not
grow with their number."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from step_jepa.data.example import IGNORED, Example, Turn, Turns
from step_jepa.data.offsets import Span
from step_jepa.plurals import counted

_IDS = pa.list_(pa.int32())
_TURN = pa.struct({"input_ids": _IDS, "content": _IDS})
# Spans lie flat, start and stop in turn. Labels are the ids or IGNORED: `labelled` has the spans of the former.
SCHEMA = pa.schema(
    {
        "text": pa.large_string(),
        "input_ids": _IDS,
        "labelled": _IDS,
        "steps": _IDS,
        "chars": _IDS,
        "user": _IDS,
        "contents": _IDS,
        "answer": pa.int32(),
        "turns": pa.struct({"user": _TURN, "assistant": _TURN}),
    }
)
READ_AT_ONCE = 1000


class FilledSteps(NamedTuple):
    """The steps of all rows that have tokens of their own, one after another: int64 (S,) each, is_answer bool.

    row        number of the row
    place      among the row's filled steps
    start, stop, content
               as in Example
    is_answer  whether it is the final answer
    """

    row: NDArray[np.int64]
    place: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    content: NDArray[np.int64]
    is_answer: NDArray[np.bool_]


class Examples(Sequence[Example]):
    """Rows of a table.

    dataset  columns as in SCHEMA
    places   which of its rows; an example's index is its row
    """

    def __init__(self, dataset: Dataset, places: range | None = None) -> None:
        self.dataset, self.places = dataset, range(len(dataset)) if places is None else places

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Examples":
        """The same examples in memory."""
        return examples if isinstance(examples, Examples) else cls(Dataset(pa.Table.from_batches([table(examples)])))

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return Examples(self.dataset, self.places[index])
        place = self.places[index]
        return _example(self.dataset[place], place)

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), READ_AT_ONCE):
            places = self.places[start : start + READ_AT_ONCE]
            columns = self.dataset[places]
            for number, place in enumerate(places):
                yield _example({name: values[number] for name, values in columns.items()}, place)

    def token_counts(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return self._lengths("input_ids")

    def step_counts(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return self._lengths("steps") // 2

    def filled_steps(self) -> FilledSteps:
        """Of the whole table."""
        assert len(self) == len(self.dataset)
        counts, columns = self.step_counts(), self.dataset.data
        row, start, stop, content, answer = (
            np.repeat(np.arange(len(self)), counts),
            *np.asarray(pc.list_flatten(columns.column("steps")), dtype=np.int64).reshape(-1, 2).T,
            np.asarray(pc.list_flatten(columns.column("contents")), dtype=np.int64),
            np.repeat(np.asarray(pc.fill_null(columns.column("answer"), -1), dtype=np.int64), counts),
        )
        is_answer = _places(row) == answer
        filled = start < stop
        row = row[filled]
        return FilledSteps(row, _places(row), start[filled], stop[filled], content[filled], is_answer[filled])

    def with_answer(self) -> int:
        """How many end with an answer step."""
        answers = self.dataset.data.column("answer")
        return int(np.asarray(pc.is_valid(answers))[self.places].sum())

    def digest(self) -> str:
        """Equal for tables with the same tokens and labels in the same order."""
        assert len(self) == len(self.dataset)
        digest = hashlib.sha256()
        for column in ("input_ids", "labelled"):
            digest.update(self._lengths(column).tobytes())
            for chunk in self.dataset.data.column(column).chunks:
                digest.update(chunk.flatten().to_numpy())
        return digest.hexdigest()[:16]

    def _lengths(self, column: str) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = np.asarray(pc.list_value_length(self.dataset.data.column(column)), dtype=np.int64)
        return lengths[self.places]


def _places(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of numbers that rise, the place of each among its equals."""
    return np.arange(len(row)) - np.searchsorted(row, row)


@dataclass
class PreparedData:
    """Examples, how many were cut to `max_length`, and how many were left out because not one whole step fits; what was
    changed in, or is not used of, how many of the records."""

    examples: Sequence[Example]
    cut: int
    left_out: int
    notes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        examples = Examples.of(self.examples)
        step_counts = examples.step_counts()
        steps, tokens = int(step_counts.sum()), int(examples.token_counts().sum())
        notes = {
            "with an answer step at the end": examples.with_answer(),
            "cut to whole steps within max_length": self.cut,
            "left out, as not one whole step fits into max_length": self.left_out,
            "with fewer than two steps, which train the language model only": int((step_counts < 2).sum()),
        }
        parts = [f"{number} {note}" for note, number in notes.items() if number]
        sizes = {"example": len(examples), "step": steps, "token": tokens}
        return "; ".join([", ".join(counted(number, noun) for noun, number in sizes.items()), *parts])


def table(examples: Sequence[Example]) -> pa.RecordBatch:
    """Rows of SCHEMA."""
    rows = list(map(_row, examples))
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _row(example: Example) -> dict[str, Any]:
    return {
        "text": example.text,
        "input_ids": example.input_ids,
        "labelled": _labelled(example.labels),
        "steps": _flat(example.steps),
        "chars": _flat(example.chars),
        "user": example.user,
        "contents": example.contents,
        "answer": example.answer,
        "turns": _turns_row(example.turns),
    }


def _turns_row(turns: Turns | None) -> dict[str, Any] | None:
    if turns is None:
        return None
    both = {"user": turns.user, "assistant": turns.assistant}
    return {name: {"input_ids": turn.input_ids, "content": turn.content} for name, turn in both.items()}


def _flat(spans: Sequence[Span]) -> list[int]:
    return list(chain.from_iterable(spans))


def _labelled(labels: Sequence[int]) -> list[int]:
    """Start and stop, in turn, of each run of tokens that have a label."""
    has_label = np.zeros(len(labels) + 2, dtype=bool)
    has_label[1:-1] = np.asarray(labels) != IGNORED
    edges: list[int] = np.flatnonzero(has_label[1:] != has_label[:-1]).tolist()
    return edges


def _example(row: Mapping[str, Any], place: int) -> Example:
    ids = row["input_ids"]
    labels = [IGNORED] * len(ids)
    for start, stop in _spans(row["labelled"]):
        labels[start:stop] = ids[start:stop]
    return Example(
        text=row["text"],
        input_ids=ids,
        labels=labels,
        steps=_spans(row["steps"]),
        chars=_spans(row["chars"]),
        user=_span(row["user"]),
        contents=row["contents"],
        answer=row["answer"],
        turns=_turns(row["turns"]),
        index=place,
    )


def _turns(row: Mapping[str, Any] | None) -> Turns | None:
    return None if row is None else Turns(_turn(row["user"]), _turn(row["assistant"]))


def _turn(row: Mapping[str, Any]) -> Turn:
    start, stop = row["content"]
    return Turn(row["input_ids"], (start, stop))


def _span(edges: Sequence[int] | None) -> Span | None:
    return None if edges is None else (edges[0], edges[1])


def _spans(edges: Sequence[int]) -> list[Span]:
    return [(edges[place], edges[place + 1]) for place in range(0, len(edges), 2)]
