"""What the past tells about each step, in nats, read from one forward pass: the row holds every way of reading a step.

Each token of a step but its first (a step that is read alone has nothing to predict it from) is scored three times:

    in context   log p(token | its problem up to there)                                 on the trunk
    mismatched   log p(token | another problem's past, this step up to there)           on a branch of the other's trunk
    isolated     log p(token | this step up to there)                                   on an isolated branch

Axes: T scored tokens.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, chain
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from step_jepa import terminal
from step_jepa.batches import attention
from step_jepa.batches.batch import Batch, to_device
from step_jepa.batches.collate import BranchCollator, FlatCollator
from step_jepa.data.example import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.models.forward import model_inputs, token_scores
from step_jepa.rows.branches import Row

Array = NDArray[Any]


READINGS = 3  # of each scored token


class StepPlace(NamedTuple):
    """A step of a problem; both are counted from 0."""

    problem: int
    step: int


@dataclass
class Information:
    """Log-probabilities of the scored tokens, in nats.

    problem, step, token               (T,) int: place of the example, of the step in it, of the token in its input_ids
    in_context, mismatched, isolated   (T,) float64
    """

    problem: Array
    step: Array
    token: Array
    in_context: Array
    mismatched: Array
    isolated: Array


def scored_steps(example: Example) -> list[int]:
    """All steps but step 0 that have a token after their first."""
    return [step for step, (start, stop) in enumerate(example.steps) if step and stop - start > 1]


def draw_mismatches(examples: Sequence[Example], seed: int = 0) -> dict[StepPlace, StepPlace]:
    """For each scored step a step of another problem, whose past it is read after.

    In random order, each step of an index lends its past to the one before it. Answer steps are paired among
    themselves. Where no other problem has such a step, it is one of the nearest index. Needs scored steps in two
    problems."""
    rng = Random(f"{seed} partners")
    shuffled = [rng.sample(places, len(places)) for places in _alike(examples)]
    everywhere = list(chain.from_iterable(shuffled))
    mismatches: dict[StepPlace, StepPlace] = {}
    for places in shuffled:
        mismatches |= zip(places, [*places[1:], places[0]], strict=True)
        if len(places) == 1:
            mismatches[places[0]] = _nearest_elsewhere(places[0], everywhere)
    return mismatches


def _alike(examples: Sequence[Example]) -> Collection[list[StepPlace]]:
    """The scored steps, those of one index together, answers apart from other steps."""
    places: dict[tuple[int, bool], list[StepPlace]] = defaultdict(list)
    for problem, example in enumerate(examples):
        for step in scored_steps(example):
            places[step, step == example.answer].append(StepPlace(problem, step))
    return places.values()


def _nearest_elsewhere(wanted: StepPlace, places: Sequence[StepPlace]) -> StepPlace:
    others = [place for place in places if place.problem != wanted.problem]
    return min(others, key=lambda place: abs(place.step - wanted.step))


@torch.no_grad()
def measure_information(
    model: Any,
    examples: Sequence[Example],
    *,
    pad_id: int,
    flat: bool = False,
    batch_size: int = 4,
    seed: int = 0,
    name: str = "reading",
) -> Information:
    """The scored tokens of all examples, in order. Needs scored steps in two examples.

    Args:
        model: takes the masks of branches (`attention.check`) and is in evaluation mode.
        examples: each the example of its own problem.
        pad_id: the token that fills rows up.
        flat: read flat batches, which the model takes (`attention.obstacle`), without padding.
        batch_size: rows read at once.
        seed: of other problems' pasts.
        name: shown by the progress bar.

    Raises:
        UserError: for log-probabilities that are not finite.
    """
    mismatches = draw_mismatches(examples, seed)
    scored = _scored_tokens(examples, sorted(mismatches))
    scores = np.empty(READINGS * len(scored))
    read = [
        planned for planned in _plan_reading(examples, mismatches) if any(slot != IGNORED for slot in planned.slots)
    ]
    by_length = sorted(read, key=lambda planned: len(planned.row.input_ids))  # little padding
    collate = FlatCollator(views=False) if flat else BranchCollator(pad_id)
    with terminal.bar(label=name, unit="row", total=len(read)) as bar:
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            slots = collate([planned.row_of_slots() for planned in chosen])["labels"]  # in the order of the batch
            log_probabilities = _log_probabilities(model, collate([planned.row for planned in chosen]))
            scores[slots[slots != IGNORED].numpy()] = log_probabilities.cpu().numpy()
            bar.update(len(chosen))
    if not np.isfinite(scores).all():
        raise UserError("log-probabilities of steps are not finite: the model has diverged, or needs --dtype float32")
    problem, step, token = np.array(scored).T
    return Information(problem, step, token, *scores.reshape(READINGS, -1))


def _scored_tokens(examples: Sequence[Example], places: Sequence[StepPlace]) -> list[tuple[int, int, int]]:
    """(problem, step, token) of each."""
    tokens = []
    for place in places:
        span = _span(examples, place)
        tokens += [(place.problem, place.step, token) for token in span[1:]]
    return tokens


def _span(examples: Sequence[Example], place: StepPlace) -> range:
    """The tokens of a step in its example's input_ids."""
    return range(*examples[place.problem].steps[place.step])


@dataclass
class _PlannedReading:
    """A row, labelled where tokens are scored.

    slots   for each token of the row, where its score goes in (3 * T,), the readings of all tokens in context, then
            mismatched, then isolated; IGNORED where it has none
    """

    row: Row
    slots: list[int]

    def read(self, tokens: range, slot: int) -> None:
        """Have all tokens but the first of these places scored, into the slots from this one on."""
        self.slots += [IGNORED] * (len(self.row.input_ids) - len(self.slots))
        for place, token in enumerate(tokens[1:]):
            self.row.labels[token] = self.row.input_ids[token]
            self.slots[token] = slot + place

    def row_of_slots(self) -> Row:
        """The row with slots for labels, to see where a collator puts them."""
        row = copy(self.row)
        row.labels = self.slots + [IGNORED] * (len(row.input_ids) - len(self.slots))
        return row


def _plan_reading(examples: Sequence[Example], mismatches: Mapping[StepPlace, StepPlace]) -> list[_PlannedReading]:
    """One for each example."""
    plan = []
    for index, example in enumerate(examples):
        row = Row(list(example.input_ids), [IGNORED] * len(example.input_ids), index)
        plan.append(_PlannedReading(row, []))
    places = sorted(mismatches)
    *slots, scored = accumulate((len(_span(examples, place)) - 1 for place in places), initial=0)
    for place, slot in zip(places, slots, strict=True):
        span, lender = _span(examples, place), mismatches[place]
        own, others = plan[place.problem], plan[lender.problem]
        own.read(span, slot)
        step = examples[place.problem].input_ids[span.start : span.stop]
        past = _span(examples, lender).start  # as many tokens of the lender's trunk are seen
        others.read(others.row.append_branch(step, position_offset=past, visible_length=past), slot + scored)
        own.read(own.row.append_branch(step, position_offset=span.start, visible_length=0), slot + 2 * scored)
    return plan


def _log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """(labels,) in the batch's order, over the base model's vocabulary."""
    batch = to_device(batch, model.device)
    with attention.reading(model, batch):
        nll = token_scores(model, batch, model_inputs(model, batch)).nll
    return -nll
