"""The short answer in a text, and whether it is the right one. Pure strings; no model is known here."""

import re
import threading
import unicodedata
from typing import Literal

import math_verify

from step_jepa.data.steps import boxes, final_answer

Rule = Literal["boxed", "hashes", "number", "text", "none"]

_SIZE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FRACTION = rf"\\[dt]?frac\{{\d+\}}\{{\d+\}}|(?:{_SIZE})(?:(?:/| / )\d+)?"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-+])?(?:\\?\$)?(?:{_FRACTION})(?:\\?%)?")
_NUMBER_IN_PROSE = re.compile(  # one number amid prose: "72 dollars", "The answer is: 72"
    rf"(?:[a-z][a-z\s.,:']*[\s:])?(?P<number>[-+]?(?:{_FRACTION})(?:\\?%)?)(?:(?:\s+|(?=[a-z]{{2}}))[a-z][a-z\s.,'/]*)?",
    re.I,
)
_COMMAND = re.compile(r"\\[a-zA-Z]+(?:\{[a-zA-Z\s.]*\})?")
_WRAPPED = re.compile(r"\\(?:text|math)[a-z]*\{([^{}]*)\}")
_WORD = re.compile(r"[a-zA-Z]{2,}")
_ASIDE = re.compile(r"(?<=\S)\s+\([^()]*\)$|(?<=[\w)%}])[.;!]\s.*", re.DOTALL)  # " (five)", ". Check: 2 + 3 = 5"
_AFTER_HASHES = re.compile(r"####[^\S\n]*[^\s#]\S*")
_WORDS = re.compile(r"\S*\w\S*")
REMARK = 30  # words that may follow an answer


def extract(text: str) -> tuple[str | None, Rule]:
    r"""The answer that a text gives, and the rule that found it.

    boxed    what the last `\boxed{}` holds, if its braces balance and it is not empty
    hashes   else what follows the last "####" on its line
    number   else the last number
    none     else None
    The first two are `steps.final_answer`, the function that finds the ground truth in a reference solution."""
    if boxed := final_answer(text.replace("####", "")):
        return boxed, "boxed"
    if after_hashes := final_answer(text.replace(r"\boxed", "")):
        return after_hashes, "hashes"
    numbers = _NUMBER.findall(text)
    return (numbers[-1], "number") if numbers else (None, "none")


def is_correct(answer: str | None, truth: str) -> bool:
    """Whether the answer is the same text as the truth, or the same mathematics (math-verify).

    Units are not compared: of an answer in words its only number counts. A truth in other words, such as a name or a
    regular expression, must be met letter by letter. Never raises: what cannot be judged is wrong."""
    if answer is None:
        return False
    if _unwrapped(answer) == _unwrapped(truth):
        return True
    given, wanted = _mathematics(answer), _mathematics(truth)
    return given is not None and wanted is not None and _same(given, wanted)


def over_generated(text: str) -> bool:
    r"""Whether a text goes on after its first answer, a "####" line or a closed `\boxed{}`: a later line gives one,
    or more than 30 words follow.

    A closing remark, such as "So he pays $5.", belongs to an answer. Another problem does not, nor the answer over and
    over."""
    end = _end_of_first_answer(text)
    if end is None:
        return False
    rest = text[end:]
    on_a_later_line = final_answer(rest.partition("\n")[2])
    return on_a_later_line is not None or len(_WORDS.findall(rest)) > REMARK


def _end_of_first_answer(text: str) -> int | None:
    boxed = next((end for start, end in boxes(text) if final_answer(text[start:end])), None)
    after_hashes = _AFTER_HASHES.search(text)
    ends = [] if boxed is None else [boxed]
    if after_hashes:
        ends.append(after_hashes.end())
    return min(ends, default=None)


def _unwrapped(text: str) -> str:
    r"""An answer without `\text{}` and emphasis."""
    return _WRAPPED.sub(r"\1", text).strip().removeprefix("**").removesuffix("**")


def _mathematics(text: str) -> str | None:
    """The formula in a short answer, without currency signs; None where there are words that it cannot be told from."""
    text = text.replace(r"\$", "$").replace(r"\,", "").replace("\u2212", "-").strip().rstrip(".")
    text = _ASIDE.sub("", "".join(letter for letter in text if unicodedata.category(letter) != "Sc"))
    if in_prose := _NUMBER_IN_PROSE.fullmatch(_unwrapped(text)):
        return in_prose["number"]
    # Read as a formula, a word is the product of its letters, and equal to its anagrams.
    return None if not text or _WORD.search(_COMMAND.sub(" ", text)) else text


def _same(given: str, wanted: str) -> bool:
    # math-verify keeps its time with SIGALRM, which only the main thread may set.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    try:
        # Between dollars the text is one formula; bare, math-verify would pick whatever number it likes.
        gold = math_verify.parse(f"${wanted}$", parsing_timeout=seconds)
        target = math_verify.parse(f"${given}$", parsing_timeout=seconds)
        return math_verify.verify(gold, target, timeout_seconds=seconds)
    except Exception:  # sympy raises all sorts of things at what a model writes
        return False
