"""Controls: what a run trains on in place of the next step, so that one can see whether the next step matters.

Held-out figures are always of the true pairs, so that arms can be compared.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from random import Random
from typing import Literal

from step_jepa.data.tokens import Example

Control = Literal[
    "none",
    "shuffled_pairs",
    "shuffled_steps",
    "past_target",
    "random_boundaries",
    "frozen_target",
    "random_target",
    "no_loss",
]
DRAWN = ("shuffled_pairs", "shuffled_steps", "random_boundaries")  # by random choices, which --redraw draws anew
CONTROLS_OF_ROWS = (*DRAWN, "past_target")  # they act when a row is planned
MEANING: dict[str, str] = {
    "shuffled_pairs": "the target is a step of another example, of the same index and kind and of similar length",
    "shuffled_steps": "the target is another step of the same example",
    "past_target": "the target is the step that was just read",
    "random_boundaries": "steps have the same number and lengths, but are cut in other places",
    "frozen_target": "the target view is the base model's",
    "random_target": "the target view is a fixed random vector per step",
    "no_loss": "the same forward pass, but the JEPA loss weighs nothing",
}
Member = tuple[int, float, int, int]  # length, random number, place of the example, step
NEAREST = 8  # steps of similar length, among which one is drawn


@dataclass(frozen=True)
class SamplingContext:
    """What an objective may ask for while it plans a row: random choices, and who is the target."""

    rng: Random
    control: Control = "none"
    control_seed: str = ""
    negative_sampler: "NegativeSampler | None" = None

    def target_step(self, example: Example, seen: int, wanted: int) -> tuple[Example, int]:
        """The example and the index of the step that stands in for step `wanted`, after step `seen` was read."""
        if self.control == "past_target":
            return example, seen
        if self.control == "shuffled_steps":
            return example, self._another_step(example, seen, wanted)
        if self.control == "shuffled_pairs":
            assert self.negative_sampler is not None
            return self.negative_sampler.step(example, wanted, self._stand_in(wanted))
        return example, wanted

    def target_answer(self, example: Example) -> Example:
        """The example whose answer stands in for this one's."""
        if self.control != "shuffled_pairs":
            return example
        assert self.negative_sampler is not None
        return self.negative_sampler.answer(example, self._stand_in())

    def _another_step(self, example: Example, seen: int, wanted: int) -> int:
        """The answer only where there is no other; where there is none at all, the step just read, as past_target."""
        filled = [step for step, (start, stop) in enumerate(example.steps) if start < stop]
        others = [step for step in filled if step not in (seen, wanted)]
        unlike_answer = [step for step in others if step != example.answer]
        return self._stand_in(wanted).choice(unlike_answer or others or [seen])

    def _stand_in(self, wanted: int = 0) -> Random:
        """Of each target its own, so that it does not depend on which others are planned."""
        return Random(f"{self.control_seed} {wanted}")


class NegativeSampler:
    """Steps and answers of a data set, by index and kind, sorted by length; those of one length in random order, so
    that each is drawn about as often as any other."""

    def __init__(self, examples: Sequence[Example], seed: int = 0) -> None:
        self.examples, rng = examples, Random(f"{seed} donors")
        self.by_kind: dict[tuple, list[Member]] = defaultdict(list)
        for place, example in enumerate(examples):
            if example.turns is not None:
                self.by_kind[("turn",)].append((len(example.turns.assistant.input_ids), rng.random(), place, 0))
            for step, (start, stop) in enumerate(example.steps):
                if start < stop:
                    self.by_kind[(step, step == example.answer)].append((stop - start, rng.random(), place, step))
        for members in self.by_kind.values():
            members.sort()

    def step(self, example: Example, wanted: int, rng: Random) -> tuple[Example, int]:
        """Where no other example has a step of that index and kind, one of the nearest lower index; else its own."""
        start, stop = example.steps[wanted]
        for index in range(wanted, -1, -1):
            if found := self._draw((index, wanted == example.answer), stop - start, example.index, rng):
                return self.examples[found[2]], found[3]
        return example, wanted

    def answer(self, example: Example, rng: Random) -> Example:
        """Its own in a data set of one."""
        assert example.turns is not None
        found = self._draw(("turn",), len(example.turns.assistant.input_ids), example.index, rng)
        return self.examples[found[2]] if found else example

    def _draw(self, kind: tuple, length: int, own: int, rng: Random) -> Member | None:
        """One of the nearest in length, from a random place among those of the same length."""
        members = self.by_kind.get(kind, [])
        place = bisect_left(members, (length, rng.random()))
        around = members[max(0, place - NEAREST - 1) : place + NEAREST + 1]
        others = [member for member in around if self.examples[member[2]].index != own]
        shuffled = rng.sample(others, len(others))
        nearest = sorted(shuffled, key=lambda member: abs(member[0] - length))[:NEAREST]
        return rng.choice(nearest) if nearest else None


def with_random_boundaries(example: Example, rng: Random) -> Example:
    """The same number of steps of the same lengths, in another order, so that they are cut in other places. A final
    answer step stays. Steps that all have one length stay as they are."""
    moved = len(example.steps) if example.answer is None else example.answer
    lengths = [stop - start for start, stop in example.steps[:moved]]
    if len(set(lengths)) < 2:
        return example
    shuffled = lengths
    while shuffled == lengths:
        shuffled = rng.sample(lengths, moved)
    edges = accumulate(shuffled, initial=example.steps[0][0])
    kept, contents = example.steps[moved:], example.contents[moved:]
    steps = list(pairwise(edges))
    return replace(example, steps=[*steps, *kept], contents=[*(stop for _, stop in steps), *contents])
