"""The formats of raw records that are known by themselves: each makes the turns before the answer, the steps and the
short answer."""

from math import nan
from typing import Any

from step_jepa.data.columns import EITHER, QUESTION, SOLUTION, THINKING, TRUTH, Reader, is_result, solution_of, truth_of
from step_jepa.data.labelled_steps import STEP_TAG, read_math_shepherd, read_prm800k, read_processbench, read_stepwise
from step_jepa.data.raw_record import RawRecord, Rejected, no_text, required_text, required_texts, short_answer
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import (
    Answer,
    Message,
    Reading,
    Record,
    RecordFormat,
    make_problem,
    make_record,
    register_format,
    without_annotations,
)
from step_jepa.data.steps import final_answer, stated_answer
from step_jepa.data.turns import REASONING, TURNS, answered, is_turns, required_messages, thinking_beside, tools_of

SEVERAL = "have several solutions, of which the first is taken"
ANNOTATIONS = "calculator annotations left out (--keep_annotations)"


def _read_columns(raw: RawRecord, args: ReadArguments) -> Reading:
    """A question and its solution, thinking and truth, in whatever columns."""
    reader = Reader(raw, args)
    context = reader.question()
    thinking, solution = solution_of(reader.columns, args)
    if solution is None:
        return reader.reading(_problem(reader, context))
    return reader.reading(_solved(reader, context, thinking, solution))


def _problem(reader: Reader, context: list[Message]) -> Record:
    truth = truth_of(reader.columns)
    if truth is None:
        key = next(
            (key for key in (*SOLUTION, *EITHER, *TRUTH) if reader.columns.raw.get(key) is not None), "a solution"
        )
        raise no_text(reader.columns.raw, key)
    return make_problem(context, truth)


def _solved(reader: Reader, context: list[Message], thinking: str | None, solution: str) -> Record:
    columns, last = reader.columns, None
    if is_turns(columns.value(solution)):
        columns.take(solution, "solution")
        *more, last = answered(required_messages(columns.raw, solution))
        context, text, thoughts = [*context, *more], last["content"], thinking_beside(last)
    else:
        text, thoughts = _text(reader, solution), columns.take_text(thinking, "thinking") if thinking else ""
    truth = truth_of(columns) or stated_answer(text)
    if truth is None and is_result(text):
        truth = short_answer({solution: text}, solution)
    return make_record(context, reader.cut(text, thoughts), truth, _without_thinking(last))


def _text(reader: Reader, key: str) -> str:
    """The solution, of several one; GSM8K's, under `answer`, has annotations."""
    several = key.lower() == "generations" or _are_solutions(key, reader.columns.value(key))
    text = _chosen(reader, key) if several else reader.columns.take_text(key, "solution")
    reader.notes += [SEVERAL] if several and key.lower() != "generations" else []
    if key.lower() != "answer":
        return text
    bare = without_annotations(text, reader.args)
    reader.notes += [ANNOTATIONS] if bare != text else []
    return bare


def _are_solutions(key: str, value: Any) -> bool:
    """Whether these are several solutions; of several results one cannot know which is meant."""
    return key.lower() == "solution" and isinstance(value, list) and len(value) > 1 and not any(map(is_result, value))


def _chosen(reader: Reader, key: str) -> str:
    """Of several solutions the first that is known to be right; the first of all where nothing is known. A record stays
    one example: several of one problem would count it several times, and could fall into train and test."""
    texts = required_texts({key: reader.columns.take(key, "solution: one of them")}, key)
    judged = reader.columns.find("correctness_math_verify", "correctness_llama", "correctness")
    verdicts = reader.columns.take(judged, "verdict") if judged else [True] * len(texts)
    right = [text for text, verdict in zip(texts, verdicts, strict=False) if verdict is True]
    if not right:
        raise Rejected(f"marked as wrong: {judged} is true of none")
    return right[0]


def _without_thinking(turn: Message | None) -> Message | None:
    return turn and {key: value for key, value in turn.items() if key not in REASONING}


def _read_messages(raw: RawRecord, args: ReadArguments) -> Reading:
    """Turns, of which the last is the answer; where that is the user's, columns beside it may hold the answer."""
    reader = Reader(raw, args)
    key = reader.columns.find(*TURNS) or TURNS[0]
    reader.columns.take(key, "turns")
    turns = reader.with_system(required_messages(raw, key), add=False)
    if turns[-1]["role"] == "assistant":
        return reader.reading(_answered(reader, turns))
    thinking, solution = solution_of(reader.columns, args)
    if solution:
        return reader.reading(_solved(reader, turns, thinking, solution))
    truth = truth_of(reader.columns)
    if truth is None or turns[-1]["role"] != "user":
        answered(turns)
    return reader.reading(make_problem(turns, str(truth)))


def _answered(reader: Reader, turns: list[Message]) -> Record:
    *context, last = turns
    text, thinking = last["content"], thinking_beside(last)
    calls_only = last.get("tool_calls") and not text.strip()
    if not calls_only:
        required_text(last, "content")
    truth = truth_of(reader.columns) or _reference(turns)
    answer = reader.cut(thinking if calls_only else text, "" if calls_only else thinking) if text or thinking else None
    truth = truth or stated_answer(text)
    return make_record(context, answer or Answer("", []), truth, _without_thinking(last))


def _reference(turns: list[Message]) -> str | None:
    """AM-DeepSeek-R1 has the truth in its turns."""
    infos = [turn["info"] for turn in turns if isinstance(turn.get("info"), dict)]
    found = (short_answer(info, "reference_answer") for info in infos)
    return next((truth for truth in found if truth), None)


def _read_prepared(raw: RawRecord, args: ReadArguments) -> Record | Reading:
    """Our own output; what follows from steps and messages is worked out anew, the messages stay as they are."""
    turns, steps = required_messages(raw, "messages"), required_texts(raw, "steps")
    truth = short_answer(raw, "answer")
    *context, last = turns
    if not steps and truth is not None and last["role"] == "user":
        return _with_tools(make_problem(turns, truth), raw)
    if not steps:
        return _read_messages({key: value for key, value in raw.items() if key != "steps"}, args)
    answered(turns)
    _check_steps(required_text(last, "content"), steps)
    if thinking_beside(last):
        raise Rejected("steps leave out the thinking beside the content: without `steps` both are cut")
    record = make_record(context, Answer(last["content"], steps), truth)
    record["messages"] = turns
    return _with_tools(record, raw)


def _with_tools(record: Record, raw: RawRecord) -> Record:
    if raw.get("tools") is not None:
        record["tools"] = tools_of(raw["tools"])
    return record


def _check_steps(text: str, steps: list[str]) -> None:
    end = 0
    for number, step in enumerate(steps, 1):
        start = text.find(step, end)
        if not step.strip() or start < 0 or text[end:start].strip():
            raise Rejected(f"steps are not the assistant's content: step {number} does not follow")
        end = start + len(step)
    if text[end:].strip():
        raise Rejected("steps are not the assistant's content: text follows the last step")


def _read_gsm_symbolic(raw: RawRecord, args: ReadArguments) -> Reading:
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
    reader = Reader(raw, args)
    reader.columns.used |= {"metadata": "solution and truth", "answer": "truth"}
    return reader.reading(make_record(reader.question(), reader.cut(without_annotations(solution, args)), answer))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def _read_tagged(raw: RawRecord, args: ReadArguments) -> Reading:
    """Math-Shepherd's record, or one whose columns happen to have the same names."""
    return read_math_shepherd(raw, args) if STEP_TAG in str(raw.get("input")) else _read_columns(raw, args)


def _read_steps(raw: RawRecord, args: ReadArguments) -> Reading:
    """ProcessBench's record, or one that has their number under `steps`."""
    return read_processbench(raw, args) if isinstance(raw.get("steps"), list) else _read_columns(raw, args)


_ANY_QUESTION = "|".join(QUESTION)
_ANY_TURNS = "|".join(TURNS)
_ANY_ANSWER = "|".join(dict.fromkeys((*SOLUTION, *EITHER, *TRUTH, *THINKING, "attempt", "deepseek_attempt")))

# A record is held against the last one first: the general stand before the particular.
for _format in (
    RecordFormat("problem", frozenset({_ANY_QUESTION, _ANY_ANSWER}), _read_columns),
    RecordFormat("gsm8k", frozenset({"question", "answer"}), _read_columns),
    RecordFormat("solution", frozenset({"question", "solution", "answer"}), _read_columns),
    RecordFormat("gsm_symbolic", frozenset({"question", "metadata.answer_cot"}), _read_gsm_symbolic),
    RecordFormat("deepseek_response", frozenset({"question", "deepseek_response"}), _read_columns),
    RecordFormat("math_shepherd", frozenset({"input", "label"}), _read_tagged),
    RecordFormat("processbench", frozenset({_ANY_QUESTION, "steps"}), _read_steps),
    RecordFormat("stepwise", frozenset({_ANY_QUESTION, "completions"}), read_stepwise),
    RecordFormat("messages", frozenset({_ANY_TURNS}), _read_messages),
    RecordFormat("prm800k", frozenset({"question.problem", "label.steps"}), read_prm800k),
    RecordFormat("prepared", frozenset({"messages", "steps"}), _read_prepared),
):
    register_format(_format)
