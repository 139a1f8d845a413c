"""Generated problems whose steps are known: named quantities, each from the one before it and another number.

    question    a = 3            answer    b = 3 + 2 = 5
                b = a + 2
                c = b * a                  c = 5 * 3 = 15

                                           #### 15

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


class Operand(NamedTuple):
    """How the question writes it, how the template of the question does, and its value."""

    text: str
    shape: str
    value: int


class Operation(NamedTuple):
    """`left sign right`, and the value that it has."""

    left: Operand
    sign: str
    right: Operand
    value: int


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Endless raw records; number i follows from the seed and i alone.

    messages   the question, and its solution, a paragraph for each step, "#### " and the last quantity at its end
    template   int, common to problems that differ in given numbers alone: a checksum (CRC-32) of the question with #
               for each of them"""
    for index in count():
        yield _problem(Random(f"{seed} {index}"))


def _problem(rng: Random) -> dict[str, Any]:
    given = _given_number(rng)
    question = [f"{NAMES[0]} = {given.text}"]
    shape = [f"{NAMES[0]} = {given.shape}"]
    solution: list[str] = []
    earlier: list[Operand] = []
    last = Operand(NAMES[0], NAMES[0], given.value)
    for name in NAMES[1 : rng.choice(STEPS) + 1]:
        left, sign, right, value = _operation(rng, last, earlier)
        question.append(f"{name} = {left.text} {sign} {right.text}")
        shape.append(f"{name} = {left.shape} {sign} {right.shape}")
        solution.append(f"{name} = {left.value} {sign} {right.value} = {value}")
        earlier.append(last)
        last = Operand(name, name, value)
    solution.append(f"#### {last.value}")
    return {
        "messages": [
            {"role": "user", "content": "\n".join(question)},
            {"role": "assistant", "content": "\n\n".join(solution)},
        ],
        "template": crc32("\n".join(shape).encode()),
    }


def _given_number(rng: Random) -> Operand:
    number = rng.choice(GIVEN)
    return Operand(str(number), "#", number)


def _operation(rng: Random, last: Operand, earlier: list[Operand]) -> Operation:
    """The last quantity and a given or earlier one, in either order, by an operation whose result is in range."""
    while True:
        other = rng.choice(earlier) if earlier and rng.random() < 0.5 else _given_number(rng)
        left, right = rng.sample([last, other], 2)
        sign = rng.choice(list(OPERATIONS))
        value = OPERATIONS[sign](left.value, right.value)
        if 0 < value <= LARGEST:
            return Operation(left, sign, right, value)
