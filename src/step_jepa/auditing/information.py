"""What the past tells about each step, in nats, read from one forward pass: the row holds every way of reading a step.

Each token of a step but its first (a step that is read alone has nothing to predict it from) is scored three times:

    in context   log p(token | its problem up to there)                                 on the trunk
    mismatched   log p(token | another problem's past, this step up to there)           on a branch of the other's trunk
    isolated     log p(token | this step up to there)                                   on an isolated branch

Axes: T scored tokens.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from step_jepa.batches.collate import Batch, BranchCollator
from step_jepa.data.tokens import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.models.forward import model_inputs, token_nll
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
    model: Any, examples: Sequence[Example], *, pad_id: int, batch_size: int = 4, seed: int = 0, name: str = "reading"
) -> Information:
    """The scored tokens of all examples, in order. Needs scored steps in two examples.

    Args:
        model: takes the masks of branches (`attention.check`) and is in evaluation mode.
        examples: each the example of its own problem.
        pad_id: the token that fills rows up.
        batch_size: rows read at once.
        seed: of other problems' pasts.
        name: shown by the progress bar.

    Raises:
        UserError: for log-probabilities that are not finite.
    """
    mismatches = draw_mismatches(examples, seed)
    plan = _plan_reading(examples, mismatches)
    scores = np.empty(sum(map(len, plan.slots)))
    read = [row for row in range(len(plan.rows)) if plan.slots[row]]
    by_length = sorted(read, key=lambda row: len(plan.rows[row].input_ids))  # little padding
    collate = BranchCollator(pad_id)
    with tqdm(total=len(read), desc=name, unit="row", leave=False) as bar:
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            log_probabilities = _log_probabilities(model, collate([plan.rows[row] for row in chosen]))
            slots = list(chain.from_iterable(plan.slots[row] for row in chosen))
            scores[slots] = log_probabilities.cpu().numpy()
            bar.update(len(chosen))
    if not np.isfinite(scores).all():
        raise UserError("log-probabilities of steps are not finite: the model has diverged, or needs --dtype float32")
    problem, step, token = np.array(_scored_tokens(examples, sorted(mismatches))).T
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


class _ReadingPlan(NamedTuple):
    """How all tokens are read.

    rows    one for each example, labelled where tokens are scored
    slots   for each row, in the order of its labels, where their scores go in (3 * T,): the readings of all tokens in
            context, then mismatched, then isolated
    """

    rows: list[Row]
    slots: list[list[int]]

    def read(self, row: int, tokens: range, slot: int) -> None:
        """Have all tokens but the first of these places of a row scored, into the slots from this one on."""
        row_read = self.rows[row]
        for token in tokens[1:]:
            row_read.labels[token] = row_read.input_ids[token]
        self.slots[row].extend(range(slot, slot + len(tokens) - 1))


def _plan_reading(examples: Sequence[Example], mismatches: Mapping[StepPlace, StepPlace]) -> _ReadingPlan:
    rows = [Row(list(each.input_ids), [IGNORED] * len(each.input_ids), index) for index, each in enumerate(examples)]
    plan = _ReadingPlan(rows, [[] for _ in rows])
    places = sorted(mismatches)
    *slots, scored = accumulate((len(_span(examples, place)) - 1 for place in places), initial=0)
    # The trunks first, all of them: a row's labels stand in the order of its tokens, and branches come after the trunk.
    for place, slot in zip(places, slots, strict=True):
        plan.read(place.problem, _span(examples, place), slot)
    for place, slot in zip(places, slots, strict=True):
        span, lender = _span(examples, place), mismatches[place]
        step = examples[place.problem].input_ids[span.start : span.stop]
        past = _span(examples, lender).start  # as many tokens of the lender's trunk are seen
        branch = rows[lender.problem].append_branch(step, position_offset=past, visible_length=past)
        plan.read(lender.problem, branch, slot + scored)
        branch = rows[place.problem].append_branch(step, position_offset=span.start, visible_length=0)
        plan.read(place.problem, branch, slot + 2 * scored)
    return plan


def _log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """(labels,) in the batch's order, over the base model's vocabulary."""
    names = ("input_ids", "labels", "branch", "visible_length", "position_ids")
    batch = {name: batch[name].to(model.device) for name in names}
    nll, _, _ = token_nll(model, batch, model_inputs(model, batch))
    return -nll
