"""What the past tells about each step, in nats, read from one forward pass: the row holds every way of reading a step.

Each token of a step but its first (a step that is read alone has nothing to predict it from) is scored three times:

    own     log p(token | its problem up to there)                                 on the trunk
    other   log p(token | another problem's past, this step up to there)           on a branch of the other's trunk
    alone   log p(token | this step up to there)                                   on an isolated branch

Axes: T scored tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
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
from step_jepa.models.predictors import base_rows
from step_jepa.rows.branches import Row

Array = NDArray[Any]


class Place(NamedTuple):
    """A step of a problem; both are counted from 0."""

    problem: int
    step: int


@dataclass
class Information:
    """Log-probabilities of the scored tokens, in nats.

    problem, step, token   (T,) int: place of the example, of the step in it, of the token in its input_ids
    own, other, alone      (T,) float64
    """

    problem: Array
    step: Array
    token: Array
    own: Array
    other: Array
    alone: Array


def scored_steps(example: Example) -> list[int]:
    """All steps but step 0 that have a token after their first."""
    return [step for step, (start, stop) in enumerate(example.steps) if step and stop - start > 1]


def partners(examples: Sequence[Example], seed: int = 0) -> dict[Place, Place]:
    """For each scored step a step of another problem, whose past it is read after: in random order, each step of an
    index lends its past to the one before it. Answer steps are paired among themselves.

    Where no other problem has such a step, it is one of the nearest index. Needs scored steps in two problems."""
    alike: dict[tuple[int, bool], list[Place]] = defaultdict(list)
    for problem, example in enumerate(examples):
        for step in scored_steps(example):
            alike[step, step == example.answer].append(Place(problem, step))
    rng = Random(f"{seed} partners")
    turned = [rng.sample(places, len(places)) for places in alike.values()]
    everywhere = [place for places in turned for place in places]
    found: dict[Place, Place] = {}
    for places in turned:
        found |= zip(places, [*places[1:], places[0]], strict=True)
        if len(places) == 1:
            found[places[0]] = _nearest(places[0], everywhere)
    return found


def _nearest(own: Place, places: Sequence[Place]) -> Place:
    others = [place for place in places if place.problem != own.problem]
    return min(others, key=lambda place: abs(place.step - own.step))


@torch.no_grad()
def measure(
    model: Any, examples: Sequence[Example], *, pad_id: int, batch_size: int = 4, seed: int = 0, name: str = "reading"
) -> Information:
    """The scored tokens of all examples, in order.

    model    takes the masks of branches (`attention.check`) and is in evaluation mode
    name     said by the progress bar
    Needs scored steps in two examples. Raises UserError for log-probabilities that are not finite."""
    pairs = partners(examples, seed)
    rows, slots = _planned(examples, pairs)
    scores = np.empty(sum(map(len, slots)))
    order = sorted((place for place in range(len(rows)) if slots[place]), key=lambda place: len(rows[place].input_ids))
    collate = BranchCollator(pad_id)
    with tqdm(total=len(order), desc=name, unit="row", leave=False) as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]  # of similar length: little padding
            found = _log_probabilities(model, collate([rows[place] for place in places]))
            scores[[slot for place in places for slot in slots[place]]] = found.cpu().numpy()
            bar.update(len(places))
    if not np.isfinite(scores).all():
        raise UserError("log-probabilities of steps are not finite: the model has diverged, or needs --dtype float32")
    own, other, alone = scores.reshape(3, -1)
    tokens = [
        (place.problem, place.step, token) for place in sorted(pairs) for token in _scored_tokens(examples, place)
    ]
    problem, step, token = np.array(tokens).T
    return Information(problem, step, token, own, other, alone)


def _scored_tokens(examples: Sequence[Example], place: Place) -> range:
    start, stop = examples[place.problem].steps[place.step]
    return range(start + 1, stop)


def _planned(examples: Sequence[Example], pairs: dict[Place, Place]) -> tuple[list[Row], list[list[int]]]:
    """One row for each example, labelled where tokens are scored; and for each row, in the order of its labels, where
    their scores go: three readings of all tokens, one after the other."""
    rows = [Row(list(each.input_ids), [IGNORED] * len(each.input_ids), place) for place, each in enumerate(examples)]
    slots: list[list[int]] = [[] for _ in rows]
    steps = sorted(pairs)
    *firsts, total = accumulate((len(_scored_tokens(examples, place)) for place in steps), initial=0)

    def read(problem: int, places: range, slot: int) -> None:
        row = rows[problem]
        for index in places[1:]:
            row.labels[index] = row.input_ids[index]
        slots[problem] += range(slot, slot + len(places) - 1)

    for place, first in zip(steps, firsts, strict=True):
        read(place.problem, range(*examples[place.problem].steps[place.step]), first)
    for place, first in zip(steps, firsts, strict=True):
        start, stop = examples[place.problem].steps[place.step]
        ids, (other, step) = examples[place.problem].input_ids[start:stop], pairs[place]
        past, _ = examples[other].steps[step]
        read(other, rows[other].append_branch(ids, position_offset=past, visible_length=past), total + first)
        read(
            place.problem,
            rows[place.problem].append_branch(ids, position_offset=start, visible_length=0),
            2 * total + first,
        )
    return rows, slots


def _log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """(labels,) in the batch's order, over the base model's vocabulary."""
    names = ("input_ids", "labels", "branch", "visible_length", "position_ids")
    batch = {name: batch[name].to(model.device) for name in names}
    nll, _, _ = token_nll(model, batch, base_rows(model), model_inputs(model, batch))
    return -nll
