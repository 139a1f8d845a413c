"""Ways of cutting the same rows into steps: the text and its tokens stay, only the places of the cuts differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from step_jepa.auditing.information import scored_steps
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.example import Example
from step_jepa.data.steps import SplitBy, split
from step_jepa.errors import UserError
from step_jepa.rows.controls import with_random_boundaries

Record = Mapping[str, Any]

SPLITS: tuple[SplitBy, ...] = ("markers", "paragraphs", "lines")
SEGMENTATIONS = {  # name -> where steps are cut, in words
    "record": "as the records have them",
    "markers": "at markers",
    "paragraphs": "at paragraphs",
    "lines": "at lines",
    "random": "at random places, in the records' lengths",
}
FEW = 0.1  # a segmentation that finds two steps in no more of the rows is not scored


@dataclass
class Segmentation:
    """One way of cutting steps.

    examples   those to which it gives two steps beside the answer
    unscored   why its figures are not worth having; None where it is scored
    """

    examples: list[Example]
    unscored: str | None = None


def segment(records: Sequence[Record], tokenizer: Any, *, max_length: int, seed: int) -> dict[str, Segmentation]:
    """The records cut in each of SEGMENTATIONS.

    Raises:
        UserError: for records that cannot be read, or whose own steps do not fit into max_length.
    """
    examples = {"record": list(load_and_prepare_dataset(records, tokenizer, max_length=max_length).examples)}
    for how in SPLITS:
        examples[how] = _split_examples(records, how, tokenizer, max_length)
    examples["random"] = [_cut_at_random(example, seed) for example in examples["record"]]
    unscored = {name: _unscored(name, examples, max_length) for name in examples}
    return {name: Segmentation(_usable(cut), unscored[name]) for name, cut in examples.items()}


def _split_examples(records: Sequence[Record], how: SplitBy, tokenizer: Any, max_length: int) -> list[Example]:
    """Empty where no first step fits into max_length."""
    split_records = [_split(record, how) for record in records]
    try:
        return list(load_and_prepare_dataset(split_records, tokenizer, max_length=max_length).examples)
    except UserError:  # the same messages were read as the records have them, so it can only be their length
        return []


def _split(record: Record, how: SplitBy) -> Record:
    return {**record, "steps": split(record["messages"][-1]["content"], how)}


def _cut_at_random(example: Example, seed: int) -> Example:
    return with_random_boundaries(example, Random(f"{seed} {example.index} boundaries"))


def _usable(examples: Sequence[Example]) -> list[Example]:
    """Those with a scored step beside the answer, numbered anew."""
    kept = [example for example in examples if set(scored_steps(example)) - {example.answer}]
    return [replace(example, index=index) for index, example in enumerate(kept)]


def _unscored(name: str, examples: Mapping[str, Sequence[Example]], max_length: int) -> str | None:
    if not examples[name]:
        return f"no whole step fits into max_length = {max_length}"
    rows, usable = len(examples[name]), len(_usable(examples[name]))
    if name != "record" and (usable < 2 or usable <= FEW * rows):
        return f"two steps in {usable} of {rows} rows"
    first = next(other for other in SEGMENTATIONS if _spans(examples[other]) == _spans(examples[name]))
    return None if first == name else f"the same cuts as {first}"


def _spans(examples: Sequence[Example]) -> list[list[tuple[int, int]]]:
    return [example.steps for example in examples]
