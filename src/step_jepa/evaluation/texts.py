"""Is a whole text right, by several criteria, and what is wrong with one that is not. Pure strings."""

from collections.abc import Callable
from operator import eq
from typing import Literal

from step_jepa.evaluation.regex_syntax import equivalent

Error = Literal["goes_on", "stops_early", "other"]
ERRORS: tuple[Error, ...] = ("goes_on", "stops_early", "other")
FIRST_CHARACTERS = 10


def same_expression(text: str, truth: str) -> bool:
    """Whether both are regular expressions that match the same strings, so far as that can be told in time."""
    try:
        return text == truth or equivalent(text, truth) is True
    except ValueError:
        return False


def same_beginning(text: str, truth: str) -> bool:
    """Whether the first characters agree, all of a truth that is shorter."""
    return text[:FIRST_CHARACTERS].startswith(truth[:FIRST_CHARACTERS])


# Each of (text, truth)
CRITERIA: dict[str, Callable[[str, str], bool]] = {
    "exact": eq,
    "starts_with": str.startswith,
    "first_characters": same_beginning,
    "regex": same_expression,
}


def error_of(text: str, truth: str) -> Error | None:
    """Of a text that is not the truth: it goes on behind it, it is only its beginning, or it is another text."""
    if text == truth:
        return None
    if text.startswith(truth):
        return "goes_on"
    return "stops_early" if truth.startswith(text) else "other"
