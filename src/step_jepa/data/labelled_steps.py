"""Formats whose steps are given as such, with what their labels say: a wrong step must not be learned."""

import re
from typing import Any

from step_jepa.data.columns import Reader, truth_of
from step_jepa.data.raw_record import RawRecord, Rejected, required_text, required_texts
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import Answer, Reading, make_record, steps_as_given
from step_jepa.data.steps import stated_answer

STEP_TAG = "\u043a\u0438"  # Math-Shepherd's, at the end of each step


def read_stepwise(raw: RawRecord, args: ReadArguments) -> Reading:
    """Steps that are given as such, as TRL's stepwise supervision has them."""
    reader = Reader(raw, args)
    key = reader.columns.find("completions", "steps") or "completions"
    texts = required_texts({key: reader.columns.take(key, "steps")}, key)
    if raw.get("labels") is not None:
        _refuse_wrong_steps(reader.columns.take("labels", "verdict"), len(texts))
    return _stepwise(reader, texts)


def _stepwise(reader: Reader, texts: list[str]) -> Reading:
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
        if not is_right(label):
            which = f"step {number} has {label!r}; right are 1, true, + and good"
            raise Rejected(f"labels mark a step as wrong, or not as we know it: {which}")


def is_right(label: Any) -> bool:
    """Whether a step's label says that the step is right."""
    return label.lower() in ("+", "good") if isinstance(label, str) else bool(label == 1)


def read_processbench(raw: RawRecord, args: ReadArguments) -> Reading:
    """Steps and the number of the first that is wrong, counted from 0; -1 for none."""
    first_error = raw.get("label")
    if first_error not in (None, -1):
        raise Rejected(f"first error at step {first_error} (counted from 0), so not to be learned")
    reading = read_stepwise({key: value for key, value in raw.items() if key != "label"}, args)
    reading.roles |= {} if first_error is None else {"label": "verdict"}
    return reading


def read_prm800k(raw: RawRecord, args: ReadArguments) -> Reading:
    """Of each step what was chosen, or written by a human."""
    question, label = raw.get("question"), raw.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict) or not isinstance(label.get("steps"), list):
        raise Rejected("question and label are not as in PRM800K: label.steps is a list of steps")
    if label.get("finish_reason") not in (None, "solution"):
        raise Rejected(f"no whole solution: its labelling ended with {label['finish_reason']}")
    texts = [_chosen_completion(step, number) for number, step in enumerate(label["steps"])]
    flat = {key: value for key, value in raw.items() if key != "label"}
    reader = Reader({**flat, **question, "question": question["problem"]}, args)
    reader.columns.used |= {"problem": "question", "question": "question"}
    *most, last = texts or [""]
    head, heading, answer = last.partition("\n# Answer\n")
    reading = _stepwise(reader, [*most, head, (heading + answer).strip()])
    reading.roles["label"] = "steps: the chosen completions"
    return reading


def _chosen_completion(step: Any, number: int) -> str:
    """What was written by a human, or rated 1. Raises Rejected."""
    fields = step if isinstance(step, dict) else {}
    completions, chosen = fields.get("completions"), fields.get("chosen_completion")
    completion = fields.get("human_completion")
    if isinstance(completions, list) and isinstance(chosen, int) and 0 <= chosen < len(completions):
        completion = completions[chosen]
    rating = completion.get("rating") if isinstance(completion, dict) else None
    if isinstance(completion, dict) and (rating == 1 or chosen is None):
        return required_text(completion, "text")
    raise Rejected(f"a step is not known to be right: step {number} (counted from 0) is rated {rating}; right is 1")


def read_math_shepherd(raw: RawRecord, args: ReadArguments) -> Reading:
    """`input` is the question and the steps; in `label` their tags are + and -."""
    question, steps, tags = tagged_steps(required_text(raw, "input"), required_text(raw, "label"))
    _refuse_wrong_steps(tags, len(steps))
    reader = Reader({**raw, "question": question}, args)
    reader.columns.used |= {"input": "question and steps", "label": "verdict"}
    context, truth = reader.question(), truth_of(reader.columns)
    answer = Answer("\n".join(steps), steps)
    return reader.reading(make_record(context, answer, truth or stated_answer(answer.content)))


def tagged_steps(text: str, label: str) -> tuple[str, list[str], list[str]]:
    """The question, the steps and their tags in the label. Raises Rejected."""
    begin = re.search(r"\bStep 1\s*:", text)
    if begin is None or STEP_TAG not in text:
        raise Rejected(f"input holds no steps, each from 'Step 1:' on and with the tag {STEP_TAG} behind it")
    *steps, rest = [step.strip() for step in text[begin.start() :].split(STEP_TAG)]
    if rest:
        raise Rejected(f"input: text follows the last tag {STEP_TAG}")
    question = text[: begin.start()]
    return question, steps, _tags_of(label, question, steps)


def _tags_of(label: str, question: str, steps: list[str]) -> list[str]:
    """What stands behind each step in the text with the labels."""
    tags, end = [], len(question)
    for step in steps:
        start = label.find(step, end)
        end = start + len(step)
        tags.append(label[end:].lstrip()[:1] if start >= 0 else "")
    return tags
