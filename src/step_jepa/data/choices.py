"""What a question offers to choose from, in whatever shape -> lines, each with its letter where there is one."""

import re
from typing import Any

from step_jepa.data.raw_record import required_texts
from step_jepa.data.turns import is_turns

LETTERS = "ABCDEFGHIJ"
_LETTERED = re.compile(r"\W*[A-Ja-j]\s*[).:]")


def options_of(options: Any, key: str) -> list[str]:
    """A line for each: texts as they are, with the letters that stand beside or over them. Raises Rejected."""
    if isinstance(options, str):
        return [options.strip()]
    if isinstance(options, list) and is_turns(options):
        options = {name: [option.get(name) for option in options] for name in ("label", "text")}
    if isinstance(options, dict) and {"label", "text"} <= options.keys():
        return _labelled(required_texts(options, "label"), required_texts(options, "text"))
    if isinstance(options, dict):
        return _labelled(list(options), required_texts({key: list(options.values())}, key))
    return [text.strip() for text in required_texts({key: options}, key)]


def _labelled(labels: list[str], texts: list[str]) -> list[str]:
    return [f"{label}) {text.strip()}" for label, text in zip(labels, texts, strict=True)]


def lettered(options: list[str]) -> list[str]:
    """With the letters A, B, ... before them."""
    return _labelled(list(LETTERS[: len(options)]), options[: len(LETTERS)])


def names_one(answer: Any, options: list[str]) -> bool:
    """Whether an answer is the number or the letter of one of the options, which have no letters themselves."""
    is_letter = isinstance(answer, str) and answer in LETTERS[: len(options)] and len(answer) == 1
    return is_index(answer, options) or (is_letter and len(options) > 1 and not any(map(_LETTERED.match, options)))


def is_index(answer: Any, options: list[str]) -> bool:
    """Whether an answer is the number of an option, counted from 0, as MMLU has it: a number beside texts."""
    return (
        isinstance(answer, int) and not isinstance(answer, bool) and len(options) > 1 and answer in range(len(options))
    )
