"""Answers with one error that was put there, so that its place is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from step_jepa.data.chains import LARGEST, solved
from step_jepa.data.records import with_answer

TRIES = 50


@dataclass(frozen=True)
class Planted:
    """A conversation, and which of its steps is wrong."""

    record: dict[str, Any]
    error: int


def foreign_step(records: Sequence[Mapping[str, Any]], place: int, seed: int) -> Planted | None:
    """A record's answer with one step, neither the first nor the last, out of another record's answer. None where it
    has none, or nothing else is found."""
    rng, steps = Random(f"{seed} {place} foreign"), list(records[place]["steps"])
    for _ in range(TRIES if len(steps) > 2 else 0):
        foreign = rng.choice(rng.choice(records)["steps"][:-1] or [""])
        if foreign and foreign not in steps:
            error = rng.randrange(1, len(steps) - 1)
            return Planted(_with_steps(records[place], [*steps[:error], foreign, *steps[error + 1 :]]), error)
    return None


def wrong_value(records: Sequence[Mapping[str, Any]], place: int, seed: int) -> Planted | None:
    """The answer to a generated chain with another result in one step, neither the first nor the last, with which the
    later steps go on. None where it has none, or no other result keeps all numbers in range."""
    rng, record = Random(f"{seed} {place} value"), records[place]
    right = solved(record["question"]) or []
    for _ in range(TRIES if len(right) > 2 else 0):
        error, value = rng.randrange(1, len(right) - 1), rng.randint(1, LARGEST)
        steps = solved(record["question"], {error: value}) or []
        if steps != right and all(0 < _result(step) <= LARGEST for step in steps):
            return Planted(_with_steps(record, steps), error)
    return None


def _result(step: str) -> int:
    return int(step.split()[-1])


def _with_steps(record: Mapping[str, Any], steps: list[str]) -> dict[str, Any]:
    return {**with_answer(record, "\n\n".join(steps)), "steps": steps}
