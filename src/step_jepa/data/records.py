"""One raw record -> a conversation with steps. Knows the record formats; no file, no tokenizer, no model."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
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

SYSTEM_PROMPT = "Reason step by step, then give the final answer."
Format = Literal["deepseek_response", "gsm8k", "messages", "stepwise", "gsm_symbolic", "prepared"]
Turn = dict[str, Any]


class Record(TypedDict):
    """A conversation whose last turn is the assistant's, cut into steps; `answer` is the short ground truth."""

    question: str
    answer: str | None
    steps: list[str]
    total_steps: int
    answer_step: int | None
    messages: list[Turn]
    template: NotRequired[int]  # problems that were generated from one template have it in common


class Rejected(ValueError):
    """A raw record that cannot be used, and why: "what: detail"."""


@dataclass(kw_only=True)
class ReadArguments:
    """How raw records are read. Raises UserError for a number out of range."""

    format: Format | None = field(default=None, metadata={"help": "Input format; recognised by its keys if not given."})
    split_by: SplitBy = field(
        default="auto", metadata={"help": "What ends a step; auto: markers, else paragraphs, else lines."}
    )
    keep_thinking: bool = field(
        default=False, metadata={"help": "Keep the <think> tags around thinking, not just its steps."}
    )
    keep_annotations: bool = field(
        default=False, metadata={"help": "Keep GSM8K's calculator annotations, <<48/2=24>>."}
    )
    min_step_tokens: int = field(
        default=0,
        metadata={"help": "Steps of fewer tokens (here: whitespace-separated words) join a neighbour."},
    )
    max_examples: int | None = field(
        default=None,
        metadata={"help": "Stop after this many usable examples (1000 of gsm_symbolic or chains, which are endless)."},
    )
    skip: int = field(default=0, metadata={"help": "Leave out the first so many records."})
    seed: int = field(
        default=42, metadata={"help": "Seed of gsm_symbolic and chains. Seeds share some problems: hold out templates."}
    )
    templates: Literal["all", "train", "test"] = field(
        default="all", metadata={"help": "Templates of gsm_symbolic and chains; train and test have none in common."}
    )
    system_prompt: str = field(
        default=SYSTEM_PROMPT, metadata={"help": "System turn of formats that have none; empty: no such turn."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"--max_examples is {self.max_examples}; give 1 or more, or leave it out to take all")
        for name in ("min_step_tokens", "skip"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; give 0 or more")


def to_record(raw: Any, args: ReadArguments) -> Record:
    """One raw record, a dict or a line of JSON, as a conversation with steps. Raises Rejected."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise Rejected(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Rejected("not a JSON object")
    record = _READERS[args.format or _recognised(raw)](raw, args)
    if isinstance(raw.get("template"), int):
        record["template"] = raw["template"]
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"text holds half a character (a lone surrogate): {error.reason}") from error
    return record


# Formats: each makes the turns before the answer, the steps and the short answer.


def _recognised(raw: dict[str, Any]) -> Format:
    given = {key for key, value in raw.items() if value is not None}
    if isinstance(raw.get("metadata"), dict):
        given |= {f"metadata.{key}" for key in raw["metadata"]}
    for name, keys in _KEYS.items():
        if keys <= given:
            return name
    raise Rejected(f"format not recognised: keys {', '.join(raw)}")


def _from_deepseek(raw: dict[str, Any], args: ReadArguments) -> Record:
    text = _text(raw, "deepseek_response")
    answer = _short(raw.get("ground_truth")) or _short(raw.get("answer")) or final_answer(text)
    return _record(_asked(raw, args), _cut(text, args), answer)


def _from_gsm8k(raw: dict[str, Any], args: ReadArguments) -> Record:
    text = _text(raw, "answer")
    return _record(_asked(raw, args), _cut(text, args), final_answer(text))


def _from_gsm_symbolic(raw: dict[str, Any], args: ReadArguments) -> Record:
    metadata = raw.get("metadata") or {}
    if "error" in metadata:
        raise Rejected(f"template failed: {metadata['error']}")
    solution = _text(metadata, "answer_cot")
    answer, value = final_answer(solution), metadata.get("answer_value")
    if answer is None or _number(answer) != _number(value):
        raise Rejected(f"solution disagrees with its answer: {answer} and {value}")
    return _record(_asked(raw, args), _cut(solution, args), answer)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def _from_messages(raw: dict[str, Any], args: ReadArguments) -> Record:
    context, last = _conversation(raw)
    text = _text(last, "content")
    reasoning = last.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise Rejected("reasoning_content is not text")
    steps = _cut(text, args, reasoning)
    return _record(context, steps, _short(raw.get("answer")) or final_answer(text))


def _from_stepwise(raw: dict[str, Any], args: ReadArguments) -> Record:
    prompt, completions = raw.get("prompt"), _strings(raw, "completions")
    if not all(raw.get("labels") or ()):
        raise Rejected("labels mark a step as wrong: it must not be learned")
    context = _turns(raw, "prompt") if isinstance(prompt, list) else _asked({"question": prompt}, args)
    steps = [_annotated(step, args).strip() for step in completions if step.strip()]
    return _record(context, steps, _short(raw.get("answer")) or final_answer("\n".join(steps)))


def _from_prepared(raw: dict[str, Any], args: ReadArguments) -> Record:
    """Our own output; what follows from steps and messages is worked out anew, the messages stay as they are."""
    context, last = _conversation(raw)
    text, steps, end = _text(last, "content"), _strings(raw, "steps"), 0
    for number, step in enumerate(steps, 1):
        start = text.find(step, end)
        if not step.strip() or start < 0 or text[end:start].strip():
            raise Rejected(f"steps are not the assistant's content: step {number} does not follow")
        end = start + len(step)
    if text[end:].strip():
        raise Rejected("steps are not the assistant's content: text follows the last step")
    return {**_record(context, steps, _short(raw.get("answer"))), "messages": raw["messages"]}


# The first whose keys a record has is its format, so the particular ones stand before the general.
_KEYS: dict[Format, set[str]] = {
    "prepared": {"messages", "steps"},
    "messages": {"messages"},
    "stepwise": {"prompt", "completions"},
    "deepseek_response": {"question", "deepseek_response"},
    "gsm_symbolic": {"question", "metadata.answer_cot"},
    "gsm8k": {"question", "answer"},
}
_READERS: dict[Format, Callable[[dict[str, Any], ReadArguments], Record]] = {
    "prepared": _from_prepared,
    "messages": _from_messages,
    "stepwise": _from_stepwise,
    "deepseek_response": _from_deepseek,
    "gsm_symbolic": _from_gsm_symbolic,
    "gsm8k": _from_gsm8k,
}


def _record(context: list[Turn], steps: list[str], answer: str | None) -> Record:
    questions = [turn for turn in context if turn.get("role") == "user"]
    if not questions or not steps:
        raise Rejected("no user turn" if not questions else "no steps")
    return {
        "question": _text(questions[-1], "content"),
        "answer": answer,
        "steps": steps,
        "total_steps": len(steps),
        "answer_step": answer_step(steps),
        "messages": [*context, {"role": "assistant", "content": "\n\n".join(steps)}],
    }


def _cut(text: str, args: ReadArguments, reasoning: str = "") -> list[str]:
    try:
        parts = part_thinking(_annotated(text, args), _annotated(reasoning, args))
    except ValueError as error:
        raise Rejected(str(error)) from error
    thinking, answer = (split(part, args.split_by, args.min_step_tokens) for part in parts)
    return (wrap_thinking(thinking) if args.keep_thinking else thinking) + answer


def _annotated(text: str, args: ReadArguments) -> str:
    return text if args.keep_annotations else strip_annotations(text)


def _asked(raw: dict[str, Any], args: ReadArguments) -> list[Turn]:
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": _text(raw, "question").strip()}]


def _conversation(raw: dict[str, Any]) -> tuple[list[Turn], Turn]:
    *context, last = _turns(raw, "messages")
    if last["role"] != "assistant":
        raise Rejected(f"last turn is not the assistant's: {last['role']}")
    return context, last


def _turns(raw: dict[str, Any], key: str) -> list[Turn]:
    turns = raw.get(key)
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        raise Rejected(f"{key} is not a list of turns, each with role and content, both text")
    return turns


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _strings(raw: dict[str, Any], key: str) -> list[str]:
    strings = raw.get(key)
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise Rejected(f"{key} is not a list of texts")
    return strings


def _text(raw: Any, key: str) -> str:
    text = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Rejected(f"{key} is missing, empty or not text")
    return text


def _short(truth: Any) -> str | None:
    text = "" if truth is None else " ".join(str(truth).split())
    return final_answer(text) or final_answer(f"#### {text}")
