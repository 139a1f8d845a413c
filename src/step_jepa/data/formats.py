"""The formats of raw records that are known by themselves: each makes the turns before the answer, the steps and the
short answer."""

import json
import re
from math import nan
from typing import Any

from step_jepa.data.columns import (
    CONTEXT,
    EITHER,
    OPTIONS,
    QUESTION,
    SOLUTION,
    SYSTEM,
    THINKING,
    TRUTH,
    Columns,
    is_result,
    refuse_wrong,
    solution_of,
    truth_of,
)
from step_jepa.data.records import (
    NOT_USED,
    Answer,
    Message,
    RawRecord,
    ReadArguments,
    Reading,
    Record,
    RecordFormat,
    Rejected,
    cut_into_steps,
    make_problem,
    make_record,
    register_format,
    required_text,
    required_texts,
    short_answer,
    steps_as_given,
    without_annotations,
)
from step_jepa.data.steps import final_answer, stated_answer
from step_jepa.data.turns import REASONING, TURNS, is_turns, required_messages, thinking_beside

EARLIER_TURNS = "with earlier assistant turns: steps are those of the last"
SYSTEM_ADDED = "system turn added (--system_prompt)"
TAGS = "tags of thinking or answer left out, a blank line between the two"
BESIDE = "thinking that stands apart put before the answer, a blank line between the two"
WHITESPACE = "whitespace around the answer left out"
ANNOTATIONS = "calculator annotations left out (--keep_annotations)"


class _Reader:
    """One record on its way: its columns, and what is said of it in the end."""

    def __init__(self, raw: RawRecord, args: ReadArguments) -> None:
        self.columns, self.args = Columns(raw), args
        self.notes: list[str] = []
        refuse_wrong(self.columns)

    def reading(self, record: Record) -> Reading:
        """The record, with what became of the columns."""
        tools = self.columns.find(["tools"])
        if tools:
            record["tools"] = _tools(self.columns.take(tools, "tools"))
        turns = [message["role"] for message in record["messages"][:-1]]
        notes = [*self.notes, *([EARLIER_TURNS] if "assistant" in turns else [])]
        return Reading(record, self.columns.used, [*notes, *[NOT_USED + key for key in self.columns.ignored()]])

    def question(self) -> list[Message]:
        """The turns before the answer."""
        key = self.columns.find(QUESTION) or QUESTION[0]
        value = self.columns.take(key, "question")
        if is_turns(value):
            return self.with_system(required_messages(self.columns.raw, key), add=False)
        parts = [required_text(self.columns.raw, key).strip(), *self._beside(key)]
        for name in CONTEXT:
            if found := self.columns.find([name]):
                parts.insert(0, self.columns.take_text(found, "question, before it").strip())
        return self.with_system([{"role": "user", "content": "\n\n".join(parts)}], add=True)

    def _beside(self, key: str) -> list[str]:
        """Alpaca's input, and the options of a question."""
        parts = []
        beside = self.columns.find(["input"])
        if beside and key.lower() == "instruction":
            parts.append(self.columns.take_text(beside, "question, after it").strip())
        if options := self.columns.find(OPTIONS):
            parts.append(_options(self.columns.take(options, "question, after it"), options))
        return parts

    def with_system(self, turns: list[Message], *, add: bool) -> list[Message]:
        """The turns behind the record's system text, or the one that is asked for where `add`."""
        if turns[0]["role"] in ("system", "developer"):
            return turns
        key = self.columns.find(SYSTEM)
        given = self.columns.take_text(key, "system turn") if key else ""
        if add and not given and self.args.system_prompt:
            self.notes.append(SYSTEM_ADDED)
            given = self.args.system_prompt
        return [{"role": "system", "content": given}, *turns] if given else turns

    def cut(self, text: str, thinking: str = "") -> Answer:
        """The answer, with a note of what is left out around it."""
        answer = cut_into_steps(text, self.args, thinking)
        if thinking.strip():
            self.notes.append(BESIDE)
        elif answer.content != text:
            self.notes.append(WHITESPACE if answer.content == text.strip() else TAGS)
        return answer


def _tools(tools: Any) -> list[Any]:
    """Those that the conversation may call; data sets write them as JSON, too."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise Rejected(f"tools is neither a list nor the JSON of one: {error}") from error
    if not isinstance(tools, list):
        raise Rejected("tools is not a list")
    return tools


def _options(options: Any, key: str) -> str:
    texts = [options] if isinstance(options, str) else options
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(f"{key} is not a list of texts")
    return "\n".join(text.strip() for text in texts)


def _read_columns(raw: RawRecord, args: ReadArguments) -> Reading:
    """A question and its solution, thinking and truth, in whatever columns."""
    reader = _Reader(raw, args)
    context = reader.question()
    thinking, solution = solution_of(reader.columns, args)
    if solution is None:
        return reader.reading(_problem(reader, context))
    return reader.reading(_solved(reader, context, thinking, solution))


def _problem(reader: _Reader, context: list[Message]) -> Record:
    truth = truth_of(reader.columns)
    if truth is None:
        key = next(
            (key for key in (*SOLUTION, *EITHER, *TRUTH) if reader.columns.raw.get(key) is not None), "a solution"
        )
        raise Rejected(f"{key} is missing, empty or not text")
    return make_problem(context, truth)


def _solved(reader: _Reader, context: list[Message], thinking: str | None, solution: str) -> Record:
    columns, last = reader.columns, None
    if is_turns(columns.value(solution)):
        columns.take(solution, "solution")
        *more, last = required_messages(columns.raw, solution)
        context, text, thoughts = [*context, *more], last["content"], thinking_beside(last)
    else:
        text, thoughts = _text(reader, solution), columns.take_text(thinking, "thinking") if thinking else ""
    truth = truth_of(columns) or stated_answer(text)
    if truth is None and is_result(text):
        truth = short_answer({solution: text}, solution)
    return make_record(context, reader.cut(text, thoughts), truth, _without_thinking(last))


def _text(reader: _Reader, key: str) -> str:
    """The solution; GSM8K's, under `answer`, has annotations."""
    text = _chosen(reader, key) if key.lower() == "generations" else reader.columns.take_text(key, "solution")
    if key.lower() != "answer":
        return text
    bare = without_annotations(text, reader.args)
    reader.notes += [ANNOTATIONS] if bare != text else []
    return bare


def _chosen(reader: _Reader, key: str) -> str:
    """Of several generations the first that is known to be right; the first of all where nothing is known."""
    texts = required_texts({key: reader.columns.take(key, "solution: one of them")}, key)
    judged = reader.columns.find(("correctness_math_verify", "correctness_llama", "correctness"))
    verdicts = reader.columns.take(judged, "verdict") if judged else [True] * len(texts)
    right = [text for text, verdict in zip(texts, verdicts, strict=False) if verdict is True]
    if not right:
        raise Rejected(f"marked as wrong: {judged} is true of none")
    return right[0]


def _without_thinking(turn: Message | None) -> Message | None:
    return turn and {key: value for key, value in turn.items() if key not in REASONING}


def _read_messages(raw: RawRecord, args: ReadArguments) -> Reading:
    """Turns, of which the last is the answer; where that is the user's, columns beside it may hold the answer."""
    reader = _Reader(raw, args)
    key = reader.columns.find(TURNS) or TURNS[0]
    reader.columns.take(key, "turns")
    turns = reader.with_system(required_messages(raw, key), add=False)
    if turns[-1]["role"] == "assistant":
        return reader.reading(_answered(reader, turns))
    thinking, solution = solution_of(reader.columns, args)
    if solution:
        return reader.reading(_solved(reader, turns, thinking, solution))
    truth = truth_of(reader.columns)
    if truth is None or turns[-1]["role"] != "user":
        raise Rejected(f"last turn is not the assistant's: {turns[-1]['role']}")
    return reader.reading(make_problem(turns, truth))


def _answered(reader: _Reader, turns: list[Message]) -> Record:
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
        return make_problem(turns, truth)
    if not steps:
        return _read_messages({key: value for key, value in raw.items() if key != "steps"}, args)
    if last["role"] != "assistant":
        raise Rejected(f"last turn is not the assistant's: {last['role']}")
    _check_steps(required_text(last, "content"), steps)
    record = make_record(context, Answer(last["content"], steps), truth)
    record["messages"] = turns
    if raw.get("tools") is not None:
        record["tools"] = _tools(raw["tools"])
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


def _read_stepwise(raw: RawRecord, args: ReadArguments) -> Reading:
    """Steps that are given as such, as TRL's stepwise supervision has them."""
    reader = _Reader(raw, args)
    key = reader.columns.find(("completions", "steps")) or "completions"
    texts = required_texts({key: reader.columns.take(key, "steps")}, key)
    if raw.get("labels") is not None:
        _refuse_wrong_steps(reader.columns.take("labels", "verdict"), len(texts))
    return _stepwise(reader, texts)


def _stepwise(reader: _Reader, texts: list[str]) -> Reading:
    answer = steps_as_given(texts)
    context, truth = reader.question(), truth_of(reader.columns)
    return reader.reading(make_record(context, answer, truth or stated_answer(answer.content)))


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


def _read_processbench(raw: RawRecord, args: ReadArguments) -> Reading:
    """Steps and the number of the first that is wrong, counted from 0; -1 for none."""
    first_error = raw.get("label")
    if first_error not in (None, -1):
        raise Rejected(f"first error at step {first_error} (counted from 0), so not to be learned")
    reading = _read_stepwise({key: value for key, value in raw.items() if key != "label"}, args)
    reading.roles |= {} if first_error is None else {"label": "verdict"}
    return reading


def _read_prm800k(raw: RawRecord, args: ReadArguments) -> Reading:
    """Of each step what was chosen, or written by a human."""
    question, label = raw["question"], raw["label"]
    if label.get("finish_reason") not in (None, "solution"):
        raise Rejected(f"no whole solution: its labelling ended with {label['finish_reason']}")
    if not isinstance(label["steps"], list):
        raise Rejected("label.steps is not a list")
    texts = [_chosen_completion(step, number) for number, step in enumerate(label["steps"])]
    flat = {key: value for key, value in raw.items() if key != "label"}
    reader = _Reader({**flat, **question, "question": question["problem"]}, args)
    reader.columns.used |= {"problem": "question", "question": "question"}
    *most, last = texts or [""]
    head, heading, answer = last.partition("\n# Answer\n")
    reading = _stepwise(reader, [*most, head, (heading + answer).strip()])
    reading.roles["label"] = "steps: the chosen completions"
    return reading


def _chosen_completion(step: Any, number: int) -> str:
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    completion = human if chosen is None else step["completions"][chosen]
    if isinstance(completion, dict) and (chosen is None or completion.get("rating") == 1):
        return required_text(completion, "text")
    rating = completion.get("rating") if isinstance(completion, dict) else None
    raise Rejected(
        f"a step that is not known to be right: step {number} (counted from 0) is rated {rating}; right is 1"
    )


_STEP_TAG = "\u043a\u0438"  # Math-Shepherd's, at the end of each step


def _read_math_shepherd(raw: RawRecord, args: ReadArguments) -> Reading:
    """`input` is the question and the steps; in `label` their tags are + and -."""
    text, label = required_text(raw, "input"), required_text(raw, "label")
    begin = re.search(r"\bStep 1\s*:", text)
    if begin is None or _STEP_TAG not in text:
        raise Rejected(f"input holds no steps, each from 'Step 1:' on and with the tag {_STEP_TAG} behind it")
    *steps, rest = [step.strip() for step in text[begin.start() :].split(_STEP_TAG)]
    if rest:
        raise Rejected(f"input: text follows the last tag {_STEP_TAG}")
    _refuse_wrong_steps(_tags_of(label, text[: begin.start()], steps), len(steps))
    reader = _Reader({**raw, "question": text[: begin.start()]}, args)
    reader.columns.used |= {"input": "question and steps", "label": "verdict"}
    context, truth = reader.question(), truth_of(reader.columns)
    answer = Answer("\n".join(steps), steps)
    return reader.reading(make_record(context, answer, truth or stated_answer(answer.content)))


def _tags_of(label: str, question: str, steps: list[str]) -> list[str]:
    """What stands behind each step in the text with the labels."""
    tags, end = [], len(question)
    for step in steps:
        start = label.find(step, end)
        end = start + len(step)
        tags.append(label[end:].lstrip()[:1] if start >= 0 else "")
    return tags


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
    reader = _Reader(raw, args)
    reader.columns.used |= {"metadata": "solution and truth", "answer": "truth"}
    reader.columns.used |= {"template": "template"}
    return reader.reading(make_record(reader.question(), reader.cut(without_annotations(solution, args)), answer))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


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
    RecordFormat("math_shepherd", frozenset({"input", "label"}), _read_math_shepherd),
    RecordFormat("processbench", frozenset({_ANY_QUESTION, "steps"}), _read_processbench),
    RecordFormat("stepwise", frozenset({_ANY_QUESTION, "completions"}), _read_stepwise),
    RecordFormat("messages", frozenset({_ANY_TURNS}), _read_messages),
    RecordFormat("prm800k", frozenset({"question.problem", "label.steps"}), _read_prm800k),
    RecordFormat("prepared", frozenset({"messages", "steps"}), _read_prepared),
):
    register_format(_format)
