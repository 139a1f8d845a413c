"""Generated problems whose steps are known: named quantities, each from the one before it and another number.

    question    a = 3            answer    b = 3 + 2 = 5
                b = a + 2
                c = b * a                  c = 5 * 3 = 15

                                           #### 15

No number exceeds LARGEST, and none is 0, which would make what came before it idle.
"""

import operator
import re
from collections.abc import Iterator, Mapping
from itertools import count
from random import Random
from typing import Any, Literal, NamedTuple
from zlib import crc32

ChainNames = Literal["ordered", "random"]
NAMES = "abcdef"
STEPS = (3, 4, 5)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
GIVEN = range(1, 10)
LARGEST = 99
_LINE = re.compile(r"(\w+) = (\w+) ([-+*]) (\w+)")
_STEP = re.compile(r"(\w+) = (\d+) ([-+*]) (\d+) = (-?\d+)")


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


def problems(seed: int, names: ChainNames = "ordered") -> Iterator[dict[str, Any]]:
    """Endless raw records; number i follows from the seed and i alone. With random names it is the same but for these.

    messages   the question, and its solution, a paragraph for each step, "#### " and the last quantity at its end
    template   int, common to problems that differ in given numbers and names alone: a checksum (CRC-32) of the question
               with # for each number, the names in order"""
    for index in count():
        renamed = Random(f"{seed} {index} names").sample(NAMES, len(NAMES)) if names == "random" else NAMES
        yield _problem(Random(f"{seed} {index}"), str.maketrans(NAMES, "".join(renamed)))


def _problem(rng: Random, renamed: dict[int, int]) -> dict[str, Any]:
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
            {"role": "user", "content": "\n".join(question).translate(renamed)},
            {"role": "assistant", "content": "\n\n".join(solution).translate(renamed)},
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


# Which step is wrong


def solved(question: str, wrong: Mapping[int, int] | None = None) -> list[str] | None:
    """The steps of a question's solution.

    Args:
        question: as `problems` writes it.
        wrong: step -> another result, with which later steps go on.

    Returns:
        None for a text that is no such question.
    """
    given, *lines = question.strip().split("\n")
    name, _, number = given.partition(" = ")
    matches = [match for line in lines if (match := _LINE.fullmatch(line))]
    if not number.isdigit() or len(matches) < len(lines):
        return None
    values, steps = {name: int(number)}, []
    for place, (name, left, sign, right) in enumerate(match.groups() for match in matches):
        if not all(text in values or text.isdigit() for text in (left, right)):
            return None
        operands = [values[text] if text in values else int(text) for text in (left, right)]
        values[name] = (wrong or {}).get(place, OPERATIONS[sign](*operands))
        steps.append(f"{name} = {operands[0]} {sign} {operands[1]} = {values[name]}")
    return [*steps, f"#### {values[name]}"]


def first_error(question: str, steps: list[str]) -> int | None:
    """The first step of an answer that is not as it ought to be, -1 where all are right; None where that is not known:
    a question that is none of ours, or an answer that ends too early without an error. Operands of + and * may change
    places."""
    right = solved(question)
    if right is None:
        return None
    for number, (step, wanted) in enumerate(zip(steps, right, strict=False)):
        if _meaning(step) != _meaning(wanted):
            return number
    if len(steps) == len(right):
        return -1
    return len(right) if len(steps) > len(right) else None


def _meaning(step: str) -> tuple[str, ...]:
    match = _STEP.fullmatch(step.strip())
    if match is None:
        return (step.strip(),)
    name, left, sign, right, value = match.groups()
    operands = (left, right) if sign == "-" else sorted((left, right))
    return (name, sign, *operands, value)
