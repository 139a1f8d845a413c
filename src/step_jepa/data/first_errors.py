"""The first wrong step that a record's labels tell, and the record without these labels, so that it can be read."""

from collections.abc import Callable
from typing import Any

from step_jepa.data.conversion import format_of, parsed_record, to_reading
from step_jepa.data.labelled_steps import STEP_TAG, is_right, tagged_steps
from step_jepa.data.raw_record import RawRecord, Rejected
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import Reading

NO_ERROR = -1
Found = tuple[RawRecord, int | None]


def read_with_first_error(raw: Any, args: ReadArguments) -> tuple[Reading, int | None]:
    """A record whose steps may be wrong, for measuring and not for training, and which of them is the first wrong one,
    from 0; -1 for none, None where no label tells. Raises Rejected."""
    parsed = parsed_record(raw, args)
    labelled = _FORMATS.get(args.format or format_of(parsed))
    if labelled is None:
        return to_reading(parsed, args), None
    unlabelled, error = labelled(parsed)
    return to_reading(unlabelled, args), error


def _of_processbench(raw: RawRecord) -> Found:
    error = raw.get("label")
    if not isinstance(error, int | None):
        raise Rejected(f"label = {error!r} is no number of a step: count from 0, -1 for none")
    return {key: value for key, value in raw.items() if key != "label"}, error


def _of_stepwise(raw: RawRecord) -> Found:
    labels = raw.get("labels")
    if labels is not None and not isinstance(labels, list):
        raise Rejected("labels is not a list")
    error = None if labels is None else _first_wrong(map(is_right, labels))
    return {key: value for key, value in raw.items() if key != "labels"}, error


def _of_math_shepherd(raw: RawRecord) -> Found:
    text = str(raw.get("input"))
    if STEP_TAG not in text:
        return raw, None
    _, _, tags = tagged_steps(text, str(raw.get("label")))
    return {**raw, "label": text.replace(STEP_TAG, "+")}, _first_wrong(tag == "+" for tag in tags)


def _of_prm800k(raw: RawRecord) -> Found:
    """A step without a chosen completion is where its labelling ended: at completions that are wrong."""
    steps = raw["label"]["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise Rejected("label.steps is not as in PRM800K: a list of steps")
    completions = [_completion(step, number) for number, step in enumerate(steps)]
    error = _first_wrong(completion.get("rating") in (None, 0, 1) for completion in completions)
    rewritten = [{"human_completion": {"text": completion.get("text")}} for completion in completions]
    return {**raw, "label": {"steps": rewritten}}, error


def _completion(step: dict[str, Any], number: int) -> dict[str, Any]:
    chosen, completions = step.get("chosen_completion"), step.get("completions")
    found = step.get("human_completion") if chosen is None else None
    if found is None and isinstance(completions, list) and len(completions) > (chosen or 0):
        found = completions[chosen or 0]
    if not isinstance(found, dict):
        raise Rejected(f"step {number} (counted from 0) has no completion")
    return found


def _first_wrong(right: Any) -> int:
    return next((number for number, each in enumerate(right) if not each), NO_ERROR)


_FORMATS: dict[str, Callable[[RawRecord], Found]] = {
    "processbench": _of_processbench,
    "stepwise": _of_stepwise,
    "math_shepherd": _of_math_shepherd,
    "prm800k": _of_prm800k,
}
