"""Ways of cutting the same rows into steps: the text and its tokens stay, only the places of the cuts differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from step_jepa.auditing.information import scored_steps
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.steps import SplitBy, split
from step_jepa.data.tokens import Example
from step_jepa.rows.controls import with_random_boundaries

Record = Mapping[str, Any]

SPLITS: tuple[SplitBy, ...] = ("markers", "paragraphs", "lines")
WAYS = {
    "record": "as the records have them",
    "markers": "at markers",
    "paragraphs": "at paragraphs",
    "lines": "at lines",
    "random": "at random places, in the records' lengths",
}
FEW = 0.1  # a way that finds two steps in no more of the rows is not scored


@dataclass
class Cut:
    """One way of cutting steps: the examples that it gives two steps beside the answer, or why it is not scored."""

    examples: list[Example]
    unscored: str | None = None


def cuts(records: Sequence[Record], tokenizer: Any, *, max_length: int, seed: int) -> dict[str, Cut]:
    """The records cut in each of WAYS. Raises UserError for records that cannot be read."""

    def examples(records: Sequence[Record]) -> list[Example]:
        return load_and_prepare_dataset(records, tokenizer, max_length=max_length).examples

    ways = {"record": examples(records)}
    for how in SPLITS:
        ways[how] = examples([{**each, "steps": split(each["messages"][-1]["content"], how)} for each in records])
    rngs = (Random(f"{seed} {each.index} boundaries") for each in ways["record"])
    ways["random"] = [with_random_boundaries(each, rng) for each, rng in zip(ways["record"], rngs, strict=False)]
    return {way: Cut(_usable(cut), _unscored(way, ways)) for way, cut in ways.items()}


def _usable(examples: Sequence[Example]) -> list[Example]:
    kept = [each for each in examples if any(step != each.answer for step in scored_steps(each))]
    return [replace(each, index=place) for place, each in enumerate(kept)]


def _unscored(way: str, ways: Mapping[str, Sequence[Example]]) -> str | None:
    rows, usable = len(ways[way]), len(_usable(ways[way]))
    if way != "record" and (usable < 2 or usable <= FEW * rows):
        return f"two steps in {usable} of {rows} rows"
    places = {name: [each.steps for each in examples] for name, examples in ways.items()}
    first = next(name for name in WAYS if places[name] == places[way])
    return None if first == way else f"the same cuts as {first}"
