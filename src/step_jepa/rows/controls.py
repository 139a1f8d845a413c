"""Controls: what a run trains on in place of the next step, so that one can see whether the next step matters.

Held-out figures are always of the true pairs, so that runs can be compared.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from random import Random
from typing import Literal, NamedTuple

from step_jepa.data.example import Example
from step_jepa.rows.least_certain import StepEntropies

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
RANDOM_CONTROLS = ("shuffled_pairs", "shuffled_steps", "random_boundaries")  # --redraw chooses anew in each epoch
ROW_CONTROLS = (*RANDOM_CONTROLS, "past_target")  # they act when a row is planned
CONTROL_MEANINGS: dict[str, str] = {
    "shuffled_pairs": "the target is a step of another example, of the same index and kind and of similar length",
    "shuffled_steps": "the target is another step of the same example",
    "past_target": "the target is the step that was just read",
    "random_boundaries": "steps have the same number and lengths, but are cut in other places",
    "frozen_target": "the target view is the base model's",
    "random_target": "the target view is a fixed random vector per step",
    "no_loss": "the same forward pass, but the JEPA loss weighs nothing",
}
NEAREST = 8  # steps of similar length, among which one is drawn
MOST_DONORS = 50_000  # examples whose steps may be drawn


@dataclass(frozen=True)
class SamplingContext:
    """What an objective may ask for while it plans a row: random choices, and which step or answer is the target.

    rng               for the objective's own choices
    control           what stands in for the next step
    control_seed      what the choices of the control follow from
    negative_sampler  where mismatched targets come from; `shuffled_pairs` needs one
    entropies         of the base model where steps end, where they decide which pairs are planned
    """

    rng: Random
    control: Control = "none"
    control_seed: str = ""
    negative_sampler: "NegativeSampler | None" = None
    entropies: StepEntropies | None = None

    def target_step(self, example: Example, seen: int, wanted: int) -> tuple[Example, int]:
        """Which step is the target of a pair.

        Args:
            example: the one that is planned.
            seen: index of the last step that the predicted view has read.
            wanted: index of the true target.

        Returns:
            The example that has the step, and the step's index in it.
        """
        if self.control == "past_target":
            return example, seen
        if self.control == "shuffled_steps":
            return example, self._other_step(example, seen, wanted)
        if self.control == "shuffled_pairs":
            assert self.negative_sampler is not None
            return self.negative_sampler.mismatched_step(example, wanted, self._rng_of_control(wanted))
        return example, wanted

    def target_answer(self, example: Example) -> Example:
        """The example whose answer is the target: itself, or one that stands in for it."""
        if self.control != "shuffled_pairs":
            return example
        assert self.negative_sampler is not None
        return self.negative_sampler.mismatched_answer(example, self._rng_of_control())

    def _other_step(self, example: Example, seen: int, wanted: int) -> int:
        """The answer only where there is no other; where there is none at all, the step just read, as past_target."""
        filled = example.filled_steps
        others = [step for step in filled if step not in (seen, wanted)]
        unlike_answer = [step for step in others if step != example.answer]
        return self._rng_of_control(wanted).choice(unlike_answer or others or [seen])

    def _rng_of_control(self, wanted: int = 0) -> Random:
        """One for each target, so that what stands in for it does not depend on which others are planned."""
        return Random(f"{self.control_seed} {wanted}")


class Kind(NamedTuple):
    """What a mismatched target has in common with the true one: the index of a step and whether it is the answer step,
    or (None) that it is a whole answer."""

    step: int | None
    is_answer: bool


_WHOLE_ANSWER = Kind(None, True)


class Candidate(NamedTuple):
    """A step or a whole answer that may be drawn. Sorting is by length, at random among those of one length.

    length       in tokens
    tie_breaker  a random number
    place        of its example among those of the sampler
    step         its index in the example; 0 for a whole answer
    example      index of its example
    """

    length: int
    tie_breaker: float
    place: int
    step: int
    example: int


class NegativeSampler:
    """Draws mismatched targets: steps and answers of other examples, of the same kind and of similar length.

    Candidates of one length are in random order, so that each is drawn about as often as any other. Of more than
    MOST_DONORS examples, so many are taken, evenly spaced.
    """

    def __init__(self, examples: Sequence[Example], seed: int = 0) -> None:
        self.examples = examples = examples[:: max(1, -(-len(examples) // MOST_DONORS))]
        self._candidates: dict[Kind, list[Candidate]] = defaultdict(list)
        rng = Random(f"{seed} donors")
        for place, example in enumerate(examples):
            if example.turns is not None:
                length = len(example.turns.assistant.input_ids)
                self._candidates[_WHOLE_ANSWER].append(Candidate(length, rng.random(), place, 0, example.index))
            for step, (start, stop) in enumerate(example.steps):
                if start < stop:
                    kind = Kind(step, step == example.answer)
                    candidate = Candidate(stop - start, rng.random(), place, step, example.index)
                    self._candidates[kind].append(candidate)
        for candidates in self._candidates.values():
            candidates.sort()

    def mismatched_step(self, example: Example, step: int, rng: Random) -> tuple[Example, int]:
        """A step of another example, in place of one of this example's.

        Args:
            example: the one whose step is replaced.
            step: its index.
            rng: what the draw follows from.

        Returns:
            The other example, and the index of its step: the same one, of the same kind (answer step or not); where no
            other example has that, the nearest lower index of the kind; where there is none either, the true step.
        """
        start, stop = example.steps[step]
        for index in range(step, -1, -1):
            drawn = self._draw(Kind(index, step == example.answer), stop - start, example.index, rng)
            if drawn is not None:
                return self.examples[drawn.place], drawn.step
        return example, step

    def mismatched_answer(self, example: Example, rng: Random) -> Example:
        """Another example, whose answer is in place of this one's; itself in a data set of one."""
        assert example.turns is not None
        drawn = self._draw(_WHOLE_ANSWER, len(example.turns.assistant.input_ids), example.index, rng)
        return example if drawn is None else self.examples[drawn.place]

    def _draw(self, kind: Kind, length: int, not_of: int, rng: Random) -> Candidate | None:
        """One of the nearest in length that is not of the example with that index."""
        candidates = self._candidates.get(kind, [])
        # A random place among those of the same length, or else the first of them would always be the nearest.
        place = bisect_left(candidates, (length, rng.random()))
        around = candidates[max(0, place - NEAREST - 1) : place + NEAREST + 1]
        others = [candidate for candidate in around if candidate.example != not_of]
        if not others:
            return None
        shuffled = rng.sample(others, len(others))  # sorting is stable: ties stay in random order
        nearest = sorted(shuffled, key=lambda candidate: abs(candidate.length - length))[:NEAREST]
        return rng.choice(nearest)


def with_random_boundaries(example: Example, rng: Random) -> Example:
    """The same number of steps of the same lengths, in another order, so that they are cut in other places. A final
    answer step stays. Steps that all have one length stay as they are."""
    movable = len(example.steps) if example.answer is None else example.answer
    lengths = [stop - start for start, stop in example.steps[:movable]]
    if len(set(lengths)) < 2:
        return example
    shuffled = lengths
    while shuffled == lengths:
        shuffled = rng.sample(lengths, movable)
    moved = list(pairwise(accumulate(shuffled, initial=example.steps[0][0])))
    # Where words are cut apart nothing is a separator: the content of a moved step ends where the step does.
    contents = [stop for _, stop in moved]
    return replace(
        example,
        steps=[*moved, *example.steps[movable:]],
        contents=[*contents, *example.contents[movable:]],
    )
