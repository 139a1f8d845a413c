"""Generated problems whose steps are known: named quantities, each from the one before it and another number.

    question    a = 3            answer    b = 3 + 2 = 5
                b = a + 2                  c = 5 * 3 = 15
                c = b * a                  #### 15

No number exceeds LARGEST, and none is 0, which would make what came before it idle.
"""

import operator
from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

NAMES = "abcdef"
STEPS = (3, 4, 5)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
GIVEN = range(1, 10)
LARGEST = 99


class Term(NamedTuple):
    """An operand: how the question writes it, how a template does, and its value."""

    text: str
    shape: str
    value: int


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Endless raw records; number i follows from the seed and i alone.

    messages   the question, and its solution with "#### " and the last quantity as its last line
    template   int, common to problems that differ in given numbers alone: a checksum (CRC-32) of the question with #
               for each of them"""
    for index in count():
        yield _problem(Random(f"{seed} {index}"))


def _problem(draw: Random) -> dict[str, Any]:
    given = _given(draw)
    question, shape, solution = [f"{NAMES[0]} = {given.text}"], [f"{NAMES[0]} = {given.shape}"], []
    known: list[Term] = []
    last = Term(NAMES[0], NAMES[0], given.value)
    for name in NAMES[1 : draw.choice(STEPS) + 1]:
        left, sign, right, value = _operation(draw, last, known)
        question.append(f"{name} = {left.text} {sign} {right.text}")
        shape.append(f"{name} = {left.shape} {sign} {right.shape}")
        solution.append(f"{name} = {left.value} {sign} {right.value} = {value}")
        known.append(last)
        last = Term(name, name, value)
    turns = {"user": question, "assistant": [*solution, f"#### {last.value}"]}
    return {
        "messages": [{"role": role, "content": "\n".join(lines)} for role, lines in turns.items()],
        "template": crc32("\n".join(shape).encode()),
    }


def _given(draw: Random) -> Term:
    number = draw.choice(GIVEN)
    return Term(str(number), "#", number)


def _operation(draw: Random, last: Term, known: list[Term]) -> tuple[Term, str, Term, int]:
    """The last quantity and a given or known number, in either order, by an operation whose result is in range."""
    while True:
        other = draw.choice(known) if known and draw.random() < 0.5 else _given(draw)
        left, right = draw.sample([last, other], 2)
        sign = draw.choice(list(OPERATIONS))
        value = OPERATIONS[sign](left.value, right.value)
        if 0 < value <= LARGEST:
            return left, sign, right, value
