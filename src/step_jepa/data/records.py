"""One raw record -> a conversation with steps, by the format that the record has. Knows no file, tokenizer or model.

A format is one entry, `RecordFormat`; formats.py holds ours. A module of a user's own adds one by `register_format`,
and reads its records with what stands under "For readers" below.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Number
from typing import Any, Literal, NotRequired, TypedDict, cast

from step_jepa.data.steps import SplitBy, answer_step, final_answer, split, strip_annotations
from step_jepa.data.thinking import part_thinking, trimmed, wrap_thinking
from step_jepa.errors import UserError
from step_jepa.options import check_bounds, option

SYSTEM_PROMPT = "Reason step by step, then give the final answer."
NOT_USED = "not used: "  # before the name of a column, in a note
Message = dict[str, Any]  # `role` and `content`, and whatever else a chat template reads
_SHOWN_KEYS = 8
RawRecord = dict[str, Any]


class Record(TypedDict):
    """A conversation whose last turn is the assistant's, cut into steps; `answer` is the short ground truth.

    A problem without a solution has no such turn and no steps: it serves for evaluation only."""

    question: str
    answer: str | None
    steps: list[str]
    total_steps: int
    answer_step: int | None
    messages: list[Message]
    tools: NotRequired[list[Any]]  # what the assistant may call, as chat templates take it
    template: NotRequired[int]  # problems that were generated from one template have it in common


class Reading(dict[str, Any]):
    """A record that also knows what became of the raw one.

    roles    column -> what it is in the record
    notes    what was changed or left out; equal words are counted over records
    """

    def __init__(self, record: Mapping[str, Any], roles: dict[str, str], notes: list[str]) -> None:
        super().__init__(record)
        self.roles, self.notes = roles, notes


def noted(counts: Mapping[str, int]) -> dict[str, int]:
    """What is said of how many records; columns that are unused equally often stand together."""
    most_first = Counter(counts).most_common()
    changed = {note: count for note, count in most_first if not note.startswith(NOT_USED)}
    unused: dict[int, list[str]] = defaultdict(list)
    for note, count in most_first:
        if note.startswith(NOT_USED):
            unused[count].append(note.removeprefix(NOT_USED))
    return changed | {NOT_USED + ", ".join(keys): count for count, keys in unused.items()}


@dataclass(frozen=True)
class Answer:
    """What the assistant says, and its steps: stripped texts that follow one another in it, with only whitespace
    between."""

    content: str
    steps: list[str]


class Rejected(ValueError):
    """A raw record that cannot be used, and why: "what: detail"."""


@dataclass(frozen=True)
class RecordFormat:
    """A kind of raw record.

    name   what `--format` calls it
    keys   a record that has all of them, none of them null, is taken for one; "metadata.answer_cot" is a key of the
           object under "metadata", and of "problem|question" one is enough
    read   makes a conversation of it, or raises Rejected; a Reading also says what became of its columns
    """

    name: str
    keys: frozenset[str]
    read: Callable[[RawRecord, "ReadArguments"], "Record | Reading"]

    def fits(self, keys: set[str]) -> bool:
        """Whether a record that has these keys is one."""
        return all(not keys.isdisjoint(_alternatives(key)) for key in self.keys)


@cache
def _alternatives(key: str) -> list[str]:
    return key.split("|")


_FORMATS: dict[str, RecordFormat] = {}


def register_format(record_format: RecordFormat) -> None:
    """Make a format known, in place of one of the same name.

    The last one registered is the first that a record is held against, so general formats go before particular ones.
    """
    _FORMATS.pop(record_format.name, None)  # so that it becomes the last
    _FORMATS[record_format.name] = record_format


def format_names() -> list[str]:
    """All that are known, in the order in which a record is held against them."""
    return list(reversed(_FORMATS))


def formats() -> list[RecordFormat]:
    """All that are known."""
    return list(_FORMATS.values())


@dataclass(kw_only=True)
class ReadArguments:
    """How raw records are read. Raises UserError for an unknown format and for a number out of range."""

    format: str | None = option(
        None,
        help="Input format: prepared, prm800k, messages, stepwise, processbench, math_shepherd, gsm_symbolic, "
        "deepseek_response, solution, gsm8k, problem, or one that you registered; recognised by its keys if not given.",
    )
    columns: list[str] = option(
        default_factory=list,
        help="Names for columns that are not known: question=KEY,solution=KEY; also truth, thinking, messages and any "
        "other name that a format looks for.",
    )
    for_evaluation: bool = option(
        False, help="Keep problems that have a truth but no solution: evaluate takes them, train does not."
    )
    split_by: SplitBy = option(
        "auto", help="What ends a step; auto: markers, else paragraphs, else lines. sentences only where asked for."
    )
    keep_thinking: bool = option(False, help="Keep the <think> tags around thinking, not just its steps.")
    keep_annotations: bool = option(False, help="Keep GSM8K's calculator annotations, <<48/2=24>>.")
    strip_annotations: bool = option(False, help="Take such annotations out of other formats, too.")
    min_step_tokens: int = option(
        0, least=0, help="Steps of fewer tokens (here: whitespace-separated words) join a neighbour."
    )
    max_examples: int | None = option(
        None,
        least=1,
        help="Stop after this many usable examples (1000 of gsm_symbolic or chains, which are endless).",
    )
    skip: int = option(0, least=0, help="Leave out the first so many records.")
    seed: int = option(42, help="Seed of gsm_symbolic and chains. Seeds share some problems: hold out templates.")
    templates: Literal["all", "train", "test"] = option(
        "all", help="Templates of gsm_symbolic and chains; train and test have none in common."
    )
    system_prompt: str = option(SYSTEM_PROMPT, help="System turn of formats that have none; empty: no such turn.")
    dataset_config: str | None = option(None, help="Configuration of a hub data set.")
    dataset_split: str | None = option(None, help="Split of a hub data set or folder; train by default.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.format is not None and self.format not in _FORMATS:
            raise UserError(f"format = {self.format}: give one of {', '.join(format_names())}")
        for each in self.renamed_columns:
            if not all(each):
                raise UserError(f"columns = {' '.join(self.columns)}: give NAME=KEY, such as question=problem")

    @property
    def renamed_columns(self) -> list[tuple[str, str]]:
        """(our name, the record's) of each column that the user names."""
        pairs = [each.partition("=") for each in ",".join(self.columns).split(",") if each]
        return [(ours.strip(), theirs.strip()) for ours, _, theirs in pairs]


def to_record(raw: Any, args: ReadArguments) -> Record:
    """One raw record as a conversation with steps.

    Args:
        raw: a dictionary, or a line of JSON that holds one.
        args: how it is read.

    Raises:
        Rejected: it cannot be used.
    """
    return cast(Record, dict(to_reading(raw, args)))


def to_reading(raw: Any, args: ReadArguments) -> Reading:
    """The same, with what became of its columns. Raises Rejected."""
    parsed = parsed_record(raw, args)
    record = _FORMATS[args.format or format_of(parsed)].read(parsed, args)
    reading = record if isinstance(record, Reading) else Reading(record, {}, [])
    if isinstance(parsed.get("template"), int):
        reading["template"] = parsed["template"]
    _refuse_half_characters(reading)
    if not has_solution(reading) and not args.for_evaluation:
        raise Rejected(
            "no solution to learn: there is only a result, for evaluation (step-jepa prepare --for_evaluation keeps "
            "it; where it is all that is to be learned, name its column: step-jepa prepare --columns solution=KEY)"
        )
    return reading


def has_solution(record: Mapping[str, Any]) -> bool:
    """Whether the assistant answers, so that there is something to learn and not just to evaluate."""
    return bool(record["messages"][-1]["role"] == "assistant")


def answerable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record; one without a solution with its truth in that place. What precedes an answer in training is the same
    whatever it says, and so is what ends it."""
    if has_solution(record):
        return dict(record)
    answer = {"role": "assistant", "content": record["answer"]}
    return {**record, "steps": [record["answer"]], "messages": [*record["messages"], answer]}


def _refuse_half_characters(record: Reading) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"text holds half a character (a lone surrogate): {error.reason}") from error


def parsed_record(raw: Any, args: ReadArguments) -> RawRecord:
    """The record with plain values, under the names that the user gives its columns. Raises Rejected."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Rejected(f"not JSON: {error}") from error
    if not isinstance(raw, Mapping):
        raise Rejected("not a JSON object")
    return _renamed(plain(raw), args)


def plain(value: Any) -> Any:
    """Values as JSON has them: arrays of numpy and pandas become lists, and what is missing there (NaN) None."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if value != value or type(value).__name__ == "NAType" else value


def _renamed(raw: RawRecord, args: ReadArguments) -> RawRecord:
    renamed = dict(raw)
    for ours, theirs in args.renamed_columns:
        if column(raw, theirs) is None:
            raise Rejected(f"column {theirs} (--columns) is missing or empty: keys {', '.join(raw)}")
        _remove(renamed, theirs)
        _remove(renamed, ours)
    return renamed | {ours: column(raw, theirs) for ours, theirs in args.renamed_columns}


def _remove(raw: RawRecord, name: str) -> None:
    outer, _, inner = name.partition(".")
    if name not in raw and isinstance(raw.get(outer), Mapping):
        raw[outer] = {key: value for key, value in raw[outer].items() if key != inner}
    raw.pop(name, None)


def format_of(raw: RawRecord) -> str:
    """The name of the format that a record has. Raises Rejected."""
    keys = _keys(raw)
    for name in format_names():
        if _FORMATS[name].fits(keys):
            return name
    shown = ", ".join(list(raw)[:_SHOWN_KEYS]) + (", ..." if len(raw) > _SHOWN_KEYS else "")
    raise Rejected(
        f"format not recognised: keys {shown}; question and solution columns are looked for, see docs/formats.md; "
        "name them by `step-jepa prepare --columns question=KEY,solution=KEY`"
    )


def _keys(raw: RawRecord) -> set[str]:
    """Those that hold something, also of objects inside, as they are written and in small letters."""
    keys = {key for key, value in raw.items() if value is not None}
    for key, value in raw.items():
        if isinstance(value, dict):
            keys.update(f"{key}.{inner}" for inner, entry in value.items() if entry is not None)
    return keys | {key.lower() for key in keys}


# For readers of formats


def make_record(
    context: list[Message], answer: Answer | list[str], truth: str | None, turn: Message | None = None
) -> Record:
    """The conversation of the turns before the answer, and the answer.

    Args:
        context: turns, one of them the user's.
        answer: what `cut_into_steps` makes of a text; or steps that are given as such, and are joined by blank lines.
        truth: the short ground truth, where it is known.
        turn: the assistant's, where it holds more than its content.

    Raises:
        Rejected: there is no user turn, or no step.
    """
    if isinstance(answer, list):
        answer = steps_as_given(answer)
    last = {**(turn or {}), "role": "assistant", "content": answer.content}
    if not answer.steps:
        raise Rejected("no text to train on: tool calls alone" if last.get("tool_calls") else "no steps")
    return {
        "question": last_question(context),
        "answer": truth,
        "steps": answer.steps,
        "total_steps": len(answer.steps),
        "answer_step": answer_step(answer.steps),
        "messages": [*context, last],
    }


def make_problem(context: list[Message], truth: str) -> Record:
    """What has a truth and no solution. Raises Rejected where there is no user turn."""
    return {
        "question": last_question(context),
        "answer": truth,
        "steps": [],
        "total_steps": 0,
        "answer_step": None,
        "messages": context,
    }


def last_question(context: list[Message]) -> str:
    """What the user says last. Raises Rejected."""
    questions = [message for message in context if message.get("role") == "user"]
    if not questions:
        raise Rejected("no user turn")
    return required_text(questions[-1], "content")


def steps_as_given(texts: list[str]) -> Answer:
    """Steps that stand in a list, without the empty ones, joined by blank lines; their indentation stays."""
    texts = [text.strip("\r\n").rstrip() for text in texts if text.strip()]
    joined = "\n\n".join(text.removeprefix(" ") if text[:2].strip() else text for text in texts)
    return Answer(trimmed(joined), [text.strip() for text in texts])


def column(raw: Mapping[str, Any], name: str) -> Any:
    """What stands under a name, which "a.b" may take from an object inside; None where there is nothing."""
    if name in raw or "." not in name:
        return raw.get(name)
    outer, _, inner = name.partition(".")
    inside = raw.get(outer)
    return column(inside, inner) if isinstance(inside, Mapping) else None


def question_turns(raw: RawRecord, args: ReadArguments, key: str = "question") -> list[Message]:
    """The turns before the answer of a record that has a question alone: the system's, if wanted, and the user's.
    Raises Rejected where there is no text under the key."""
    user = {"role": "user", "content": required_text(raw, key).strip()}
    return [{"role": "system", "content": args.system_prompt}, user] if args.system_prompt else [user]


def cut_into_steps(text: str, args: ReadArguments, reasoning: str = "") -> Answer:
    """An answer without the whitespace around it, and its steps, those of its thinking first. Raises Rejected.

    Args:
        text: the answer, perhaps with its thinking in tags, which are left out.
        args: how it is cut.
        reasoning: the thinking, where it is given apart.
    """
    if args.strip_annotations and not args.keep_annotations:
        text, reasoning = strip_annotations(text), strip_annotations(reasoning)
    try:
        thinking, answer = part_thinking(text, reasoning)
    except ValueError as error:
        raise Rejected(str(error)) from error
    steps = split(answer, args.split_by, args.min_step_tokens)
    if not thinking:
        return Answer(answer, steps)
    thoughts = split(thinking, args.split_by, args.min_step_tokens)
    if args.keep_thinking:
        return Answer(f"<think>\n{thinking.lstrip()}\n</think>\n\n{answer}", [*wrap_thinking(thoughts), *steps])
    return Answer(f"{thinking}\n\n{answer}", [*thoughts, *steps])


def without_annotations(text: str, args: ReadArguments) -> str:
    """The text without GSM8K's calculator annotations, unless these are kept: for formats that have them."""
    return text if args.keep_annotations else strip_annotations(text)


def required_text(raw: RawRecord, key: str) -> str:
    """The text under a key. Raises Rejected where there is none."""
    text = raw.get(key)
    if not isinstance(text, str) or not text.strip():
        raise Rejected(f"{key} is missing, empty or not text")
    return text


def required_texts(raw: RawRecord, key: str) -> list[str]:
    """The list of texts under a key. Raises Rejected where there is none."""
    texts = raw.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(f"{key} is not a list of texts")
    return texts


def short_answer(raw: RawRecord, key: str) -> str | None:
    """The ground truth under a key, as `final_answer` gives it, also where it stands behind "####" or in a box; None
    where there is none. Raises Rejected for anything but text and numbers: of several values one cannot know which."""
    truth = raw.get(key)
    if truth is None:
        return None
    if not isinstance(truth, str | Number):
        raise Rejected(f"{key} is neither text nor a number: it is a {type(truth).__name__}, {truth}")
    text = " ".join(str(truth).split())
    return final_answer(text) or final_answer(f"#### {text}")
