"""The formats of raw records that are known by themselves: each makes the turns before the answer, the steps and the
short answer."""

from math import nan
from typing import Any

from step_jepa.data.records import (
    Message,
    RawRecord,
    ReadArguments,
    Record,
    RecordFormat,
    Rejected,
    cut_into_steps,
    make_record,
    question_turns,
    register_format,
    required_messages,
    required_text,
    required_texts,
    short_answer,
    without_annotations,
)
from step_jepa.data.steps import final_answer


def _read_gsm8k(raw: RawRecord, args: ReadArguments) -> Record:
    """An answer of one word is the truth itself, as test problems have it."""
    text = required_text(raw, "answer")
    truth = short_answer(raw, "answer") if len(text.split()) == 1 else final_answer(text)
    return make_record(question_turns(raw, args), cut_into_steps(text, args), truth)


def _read_solution(raw: RawRecord, args: ReadArguments) -> Record:
    """A chain of thought and the truth; the two names are used either way round."""
    if not _is_truth(raw["answer"], raw["solution"]):
        return _read_gsm8k(raw, args)
    steps = cut_into_steps(required_text(raw, "solution"), args)
    return make_record(question_turns(raw, args), steps, short_answer(raw, "answer"))


def _is_truth(answer: Any, solution: Any) -> bool:
    """Whether the answer is the short one of the two."""
    text = str(answer).strip()
    return isinstance(solution, str) and "\n" not in text and len(text.split()) < len(solution.split())


def _read_gsm_symbolic(raw: RawRecord, args: ReadArguments) -> Record:
    """A problem of reasoning-gym, or why there is none."""
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        raise Rejected("metadata is missing, or no JSON object")
    if "error" in metadata:
        raise Rejected(f"template failed: {metadata['error']}")
    solution = required_text(metadata, "answer_cot")
    answer, value = final_answer(solution), metadata.get("answer_value")
    if answer is None or _number(answer) != _number(value):
        raise Rejected(f"solution disagrees with its answer: {answer} and {value}")
    return make_record(question_turns(raw, args), cut_into_steps(solution, args), answer)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def _read_deepseek(raw: RawRecord, args: ReadArguments) -> Record:
    text = required_text(raw, "deepseek_response")
    answer = short_answer(raw, "ground_truth") or short_answer(raw, "answer") or final_answer(text)
    return make_record(question_turns(raw, args), cut_into_steps(text, args), answer)


def _read_stepwise(raw: RawRecord, args: ReadArguments) -> Record:
    """Steps that are given as such, as TRL's stepwise supervision has them."""
    completions = required_texts(raw, "completions")
    if raw.get("labels") is not None:
        _refuse_wrong_steps(raw["labels"], len(completions))
    if isinstance(raw.get("prompt"), list):
        context = required_messages(raw, "prompt")
    else:
        context = question_turns(raw, args, "prompt")
    stripped = [without_annotations(step, args).strip() for step in completions]
    steps = [step for step in stripped if step]
    return make_record(context, steps, short_answer(raw, "answer") or final_answer("\n".join(steps)))


def _refuse_wrong_steps(labels: Any, steps: int) -> None:
    """A wrong step must not be learned. What its label means must be known for a step to be right: in some data sets -1
    and "-" are wrong, and would be true."""
    if not isinstance(labels, list):
        raise Rejected("labels is not a list")
    if len(labels) != steps:
        raise Rejected(f"labels and steps differ in number: {len(labels)} and {steps}")
    for number, label in enumerate(labels, 1):
        right = label.lower() in ("+", "good") if isinstance(label, str) else label == 1
        if not right:
            which = f"step {number} has {label!r}; right are 1, true, + and good"
            raise Rejected(f"labels mark a step as wrong, or not as we know it: {which}")


def _read_messages(raw: RawRecord, args: ReadArguments) -> Record:
    context, last = _conversation(raw)
    text = required_text(last, "content")
    reasoning = last.get("reasoning_content") or ""
    if not isinstance(reasoning, str):
        raise Rejected("reasoning_content is not text")
    steps = cut_into_steps(text, args, reasoning)
    return make_record(context, steps, short_answer(raw, "answer") or final_answer(text))


def _read_prepared(raw: RawRecord, args: ReadArguments) -> Record:
    """Our own output; what follows from steps and messages is worked out anew, the messages stay as they are."""
    context, last = _conversation(raw)
    text, steps, end = required_text(last, "content"), required_texts(raw, "steps"), 0
    for number, step in enumerate(steps, 1):
        start = text.find(step, end)
        if not step.strip() or start < 0 or text[end:start].strip():
            raise Rejected(f"steps are not the assistant's content: step {number} does not follow")
        end = start + len(step)
    if text[end:].strip():
        raise Rejected("steps are not the assistant's content: text follows the last step")
    return {**make_record(context, steps, short_answer(raw, "answer")), "messages": raw["messages"]}


def _conversation(raw: RawRecord) -> tuple[list[Message], Message]:
    """The turns before the answer, and the answer's."""
    *context, last = required_messages(raw, "messages")
    if last["role"] != "assistant":
        raise Rejected(f"last turn is not the assistant's: {last['role']}")
    return context, last


# A record is held against the last one first: the general stand before the particular.
for _format in (
    RecordFormat("gsm8k", frozenset({"question", "answer"}), _read_gsm8k),
    RecordFormat("solution", frozenset({"question", "solution", "answer"}), _read_solution),
    RecordFormat("gsm_symbolic", frozenset({"question", "metadata.answer_cot"}), _read_gsm_symbolic),
    RecordFormat("deepseek_response", frozenset({"question", "deepseek_response"}), _read_deepseek),
    RecordFormat("stepwise", frozenset({"prompt", "completions"}), _read_stepwise),
    RecordFormat("messages", frozenset({"messages"}), _read_messages),
    RecordFormat("prepared", frozenset({"messages", "steps"}), _read_prepared),
):
    register_format(_format)
