"""What a step of arithmetic computes, read from its text: the ground truth of the probes. Pure strings."""

import re
from decimal import Decimal
from typing import NamedTuple

from step_jepa.data.steps import strip_annotations

_NUMERAL = r"(?:\d+(?:\.\d+)?|\.\d+)"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SYMBOLS = str.maketrans(
    {"\u00d7": "*", "\u00f7": " / ", "\u2212": "-", "\u2013": "-"}
    | dict.fromkeys("()[]", " ")
    | dict.fromkeys("$\u20ac\u00a3\\")
)
_TIMES = re.compile(rf"(?<![^\W\d_])[xX](?=\s*{_NUMERAL})|(?<=%)\s+of\b")
# Units and prose. Other single letters stay, and no equation reaches over them: 5x + 3 = 18 is not about 5 + 3.
_WORDS = re.compile(r"(?:[/-]\s?)?(?:[^\W\d_]{2}|\ba\b)['\u2019\w]*")
_NUMBER = rf"-?{_NUMERAL}(?:\s?%)?"
_EXPRESSION = rf"{_NUMBER}(?:\s*[-+*/]\s*{_NUMBER})+"
_CHAIN = rf"(?P<left>{_EXPRESSION})(?:\s*=\s*{_EXPRESSION})*"
_RESULT = rf"(?P<result>{_NUMBER}(?:/[1-9]\d*)?)(?!\d|\s*[-+*/]\s*\d)"
# A chain without a result is taken as a whole: what begins inside has no result either, and trying it all anew would
# take time quadratic in the length of an answer that repeats itself.
_EQUATION = re.compile(rf"(?<![\w.])(?:{_CHAIN}\s*=\s*{_RESULT}|{_EXPRESSION}(?:\s*=\s*{_EXPRESSION})*)")
_OPERATION = re.compile(rf"({_NUMBER})\s*([-+*/])\s*({_NUMBER})")
_FRACTION = re.compile(r"(?<![\d.])(\d+)/(\d+)(?![\d.])")


class Equation(NamedTuple):
    """`first operator second = result`; the operator is one of + - * /, and 25 % is 0.25."""

    first: float
    operator: str
    second: float
    result: float


def equation(text: str) -> Equation | None:
    """The first equation in a step's text that says what numbers make what number; None if there is none.

    Currency signs, units, thousands commas and parentheses are looked through. Of a chain, 2 * 3 + 4 = 10, it is the
    first operation as written with the result that the step states, (2, *, 3, 10). A proper fraction in a chain is one
    number: 1/2 * 20 = 10 is (0.5, *, 20, 10)."""
    chains = _EQUATION.finditer(_bare(text))
    match = next((chain for chain in chains if chain["result"]), None)
    if match is None:
        return None
    left = match["left"]
    if len(re.findall(_NUMERAL, left)) > 2:
        left = _FRACTION.sub(_proper, left)
    operation = _OPERATION.match(left)
    assert operation is not None  # a fraction that became a number leaves an operation behind
    first, operator, second = operation.groups()
    return Equation(_value(first), operator, _value(second), _value(match["result"]))


def numbers(text: str) -> list[float]:
    """The numerals of a text in order, without signs: 1,000 is one, 1/2 is two."""
    return [float(numeral) for numeral in re.findall(_NUMERAL, _THOUSANDS.sub("", text))]


def _bare(text: str) -> str:
    """The text with ASCII operators, and without words of two letters or more."""
    text = _THOUSANDS.sub("", strip_annotations(text).replace(r"\times", "*").replace(r"\div", "/"))
    return _WORDS.sub(" ", _TIMES.sub(" * ", text.translate(_SYMBOLS)))


def _proper(match: re.Match[str]) -> str:
    over, under = int(match[1]), int(match[2])
    if over >= under:
        return match[0]
    return format(Decimal(repr(over / under)), "f")  # all digits, and no exponent, which is no numeral here


def _value(number: str) -> float:
    over, _, under = number.replace(" ", "").replace("%", "").partition("/")
    value = float(over) / float(under or 1)
    return value / 100 if "%" in number else value
