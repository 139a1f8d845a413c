"""One raw record -> a conversation with steps, by the format that the record has. Knows no file, tokenizer or model.

A format is one entry, `RecordFormat`; formats.py holds ours. A module of a user's own adds one by `register_format`,
and reads its records with what stands under "For readers" below.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal, NotRequired, TypedDict

from step_jepa.data.steps import (
    SplitBy,
    answer_step,
    final_answer,
    part_thinking,
    split,
    strip_annotations,
    wrap_thinking,
)
from step_jepa.errors import UserError
from step_jepa.options import check_bounds, option

SYSTEM_PROMPT = "Reason step by step, then give the final answer."
Message = dict[str, Any]  # `role` and `content`, and whatever else a chat template reads
RawRecord = dict[str, Any]


class Record(TypedDict):
    """A conversation whose last turn is the assistant's, cut into steps; `answer` is the short ground truth."""

    question: str
    answer: str | None
    steps: list[str]
    total_steps: int
    answer_step: int | None
    messages: list[Message]
    template: NotRequired[int]  # problems that were generated from one template have it in common


class Rejected(ValueError):
    """A raw record that cannot be used, and why: "what: detail"."""


@dataclass(frozen=True)
class RecordFormat:
    """A kind of raw record.

    name   what `--format` calls it
    keys   a record that has all of them, none of them null, is taken for one; "metadata.answer_cot" is a key of the
           object under "metadata"
    read   makes a conversation of it, or raises Rejected
    """

    name: str
    keys: frozenset[str]
    read: Callable[[RawRecord, "ReadArguments"], Record]


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
        help="Input format: prepared, messages, stepwise, deepseek_response, gsm_symbolic, solution, gsm8k, or one "
        "that you registered; recognised by its keys if not given.",
    )
    split_by: SplitBy = option("auto", help="What ends a step; auto: markers, else paragraphs, else lines.")
    keep_thinking: bool = option(False, help="Keep the <think> tags around thinking, not just its steps.")
    keep_annotations: bool = option(False, help="Keep GSM8K's calculator annotations, <<48/2=24>>.")
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


def to_record(raw: Any, args: ReadArguments) -> Record:
    """One raw record as a conversation with steps.

    Args:
        raw: a dictionary, or a line of JSON that holds one.
        args: how it is read.

    Raises:
        Rejected: it cannot be used.
    """
    parsed = _parsed(raw)
    record = _FORMATS[args.format or _recognised(parsed)].read(parsed, args)
    if isinstance(parsed.get("template"), int):
        record["template"] = parsed["template"]
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"text holds half a character (a lone surrogate): {error.reason}") from error
    return record


def _parsed(raw: Any) -> RawRecord:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise Rejected(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Rejected("not a JSON object")
    return raw


def _recognised(raw: RawRecord) -> str:
    """The name of the format that a record has."""
    keys = _keys(raw)
    for name in format_names():
        if _FORMATS[name].keys <= keys:
            return name
    raise Rejected(f"format not recognised: keys {', '.join(raw)}")


def _keys(raw: RawRecord) -> set[str]:
    """Those that hold something, also of objects inside."""
    keys = {key for key, value in raw.items() if value is not None}
    for key, value in raw.items():
        if isinstance(value, dict):
            keys.update(f"{key}.{inner}" for inner in value)
    return keys


# For readers of formats


def make_record(context: list[Message], steps: list[str], answer: str | None) -> Record:
    """The conversation of the turns before the answer, and the answer: its steps, joined by blank lines.

    Args:
        context: turns, one of them the user's.
        steps: of the answer.
        answer: the short ground truth, where it is known.

    Raises:
        Rejected: there is no user turn, or no step.
    """
    questions = [message for message in context if message.get("role") == "user"]
    if not questions or not steps:
        raise Rejected("no user turn" if not questions else "no steps")
    return {
        "question": required_text(questions[-1], "content"),
        "answer": answer,
        "steps": steps,
        "total_steps": len(steps),
        "answer_step": answer_step(steps),
        "messages": [*context, {"role": "assistant", "content": "\n\n".join(steps)}],
    }


def question_turns(raw: RawRecord, args: ReadArguments, key: str = "question") -> list[Message]:
    """The turns before the answer of a record that has a question alone: the system's, if wanted, and the user's.
    Raises Rejected where there is no text under the key."""
    user = {"role": "user", "content": required_text(raw, key).strip()}
    return [{"role": "system", "content": args.system_prompt}, user] if args.system_prompt else [user]


def cut_into_steps(text: str, args: ReadArguments, reasoning: str = "") -> list[str]:
    """The steps of an answer, those of its thinking first. Raises Rejected.

    Args:
        text: the answer, perhaps with its thinking in `<think>` tags.
        args: how it is cut.
        reasoning: the thinking, where it is given apart.
    """
    try:
        parts = part_thinking(without_annotations(text, args), without_annotations(reasoning, args))
    except ValueError as error:
        raise Rejected(str(error)) from error
    thinking, answer = (split(part, args.split_by, args.min_step_tokens) for part in parts)
    return [*(wrap_thinking(thinking) if args.keep_thinking else thinking), *answer]


def without_annotations(text: str, args: ReadArguments) -> str:
    """The text without GSM8K's calculator annotations, unless these are kept."""
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


def required_messages(raw: RawRecord, key: str) -> list[Message]:
    """The turns under a key. Raises Rejected where there are none."""
    messages = raw.get(key)
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise Rejected(f"{key} is not a list of turns, each with role and content, both text")
    return messages


def _is_message(message: Any) -> bool:
    fields = ("role", "content")
    return isinstance(message, dict) and all(isinstance(message.get(field), str) for field in fields)


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
