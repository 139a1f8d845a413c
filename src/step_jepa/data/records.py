"""A record: a conversation whose last turn is cut into steps; and what makes one of what a format holds.

A format is one entry, `RecordFormat`; formats.py holds ours. A module of a user's own adds one by `register_format`,
and reads its records with what stands under "For readers of formats" below.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from step_jepa.data.format_registry import RecordFormat as RecordFormat  # which users' formats take from here
from step_jepa.data.format_registry import register_format as register_format
from step_jepa.data.raw_record import RawRecord, Rejected, required_text
from step_jepa.data.raw_record import short_answer as short_answer
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.steps import answer_step, split, strip_annotations
from step_jepa.data.thinking import part_thinking, trimmed, wrap_thinking

NOT_USED = "not used: "  # before the name of a column, in a note
Message = dict[str, Any]  # `role` and `content`, and whatever else a chat template reads


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


def context_of(record: Mapping[str, Any]) -> list[Message]:
    """The turns before the answer."""
    turns: list[Message] = list(record["messages"])
    return turns[:-1] if has_solution(record) else turns


def with_answer(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The conversation of a record with another answer, which is not cut into steps yet."""
    turns = [*context_of(record), {"role": "assistant", "content": trimmed(text)}]
    return {"messages": turns} | {key: record[key] for key in ("tools",) if record.get(key) is not None}


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
