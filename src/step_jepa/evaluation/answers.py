"""The short answer in a text, and whether it is the right one. Pure strings; no model is known here."""

import re
import unicodedata
from decimal import Decimal
from typing import Literal

from step_jepa.data.steps import boxes, final_answer
from step_jepa.evaluation.mathematics import same

Rule = Literal["boxed", "hashes", "stated", "number", "text", "none"]

# Spaces that a number may have between its digits: LaTeX's, and those of Unicode
_SPACE = re.compile(r"(?<!\\)\\[,;:!~ ]|(?<!\\)~|\\(?:thin|med|thick)?space\b|[^\S\n]")
_GROUPED = r"[1-9]\d{0,2}(?: \d{3})+(?!\d)"  # 12 345
_SIZE = rf"(?:{_GROUPED}|\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{{1,3}}(?!\w))?|\.\d+"
_QUOTIENT = r"\\[dt]?frac(?:\{\d+\}\{\d+\}|\d\d)"
_MIXED = rf"\d+(?: ?{_QUOTIENT}| \d+/\d+)"  # 3 1/2
_FRACTION = rf"{_MIXED}|{_QUOTIENT}|(?:{_SIZE})(?:(?:/| / )\d+)?"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-+])?(?:\\?\$)?(?:{_FRACTION})(?:\\?%)?")
_NUMBER_IN_PROSE = re.compile(  # one number amid prose: "72 dollars", "The answer is: 72"
    rf"(?:[a-z][a-z\s.,:']*[\s:])?(?P<number>[-+]?(?:{_FRACTION})(?:\\?%)?)(?:(?:\s+|(?=[a-z]{{2}}))[a-z][a-z\s.,'/]*)?",
    re.I,
)
_COMMAND = re.compile(r"\\[a-zA-Z]+(?:\{[a-zA-Z\s.]*\})?")
_WRAPPED = re.compile(r"\\(?:text|math)[a-z]*\{([^{}]*)\}")
_WORD = re.compile(r"[a-zA-Z]{2,}")
_ASIDE = re.compile(  # " (five)", ". Check: 2 + 3 = 5"
    r"(?<=[\w)%}])\s+\([^()\\]*[a-zA-Z]{2}[^()\\]*\)$|(?<=[\w)%}])[.;!]\s.*", re.DOTALL
)
_SPACED = re.compile(rf"(?<![\w.,]){_GROUPED}")
_POWER_OF_TEN = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][-+]?\d{1,3}(?!\w)")  # 1e3
_BARE_QUOTIENT = re.compile(r"\\(?:[dt]?frac|binom) \d ?\d")
_WHOLE_AND_QUOTIENT = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])")
_ROOT = re.compile(r"\\sqrt ?\(([^()]*)\)")
_TWO_NUMBERS = re.compile(r"(?<![_^])\d +\.?\d")  # a subscript and what follows it are none
_AFTER_HASHES = re.compile(r"####[^\S\n]*[^\s#]\S*")
_WORDS = re.compile(r"\S*\w\S*")
_CHOICE = re.compile(r"\W*([a-zA-Z])(?:\W*|\).*)", re.DOTALL)  # A, (A), A) 21
_IS = r"(?:\s+is\b\s*:?|\**\s*:)[\s:*_\"'$(\[]*"
# A lower-case letter before another word is an article
_STATED_CHOICE = re.compile(
    rf"\b(?i:(?:answer|option|choice){_IS}(?:(?:option|choice)\s+)?)\(?([A-Z]|[a-z](?!\s+[a-z]))(?![\w'])"
)
_STATED_WORD = re.compile(rf"\banswer{_IS}([^\W\d_]{{2,}})", re.IGNORECASE)
_ONE_WORD = re.compile(r"\W*([^\W\d_]+)\W*")
_VERDICTS = {"true", "false", "yes", "no"}
REMARK = 30  # words that may follow an answer


def extract(text: str, truth: str | None = None) -> tuple[str | None, Rule]:
    r"""The answer that a text gives, and the rule that found it.

    boxed    what the last `\boxed{}` holds, if its braces balance and it is not empty
    hashes   else what follows the last "####" on its line
    stated   else, where the truth is a letter or a word, what follows the last "answer is" or "Answer:",
             or the only word there is
    number   else the last number
    none     else None
    The first two are `steps.final_answer`, the function that finds the ground truth in a reference solution."""
    if boxed := final_answer(text.replace("####", "")):
        return boxed, "boxed"
    if after_hashes := final_answer(text.replace(r"\boxed", "")):
        return after_hashes, "hashes"
    if stated := _stated(text, (truth or "").strip()):
        return stated, "stated"
    numbers = _NUMBER.findall(_SPACE.sub(" ", text))
    return (numbers[-1], "number") if numbers else (None, "none")


def _stated(text: str, truth: str) -> str | None:
    """The letter or word that a text says its answer is; None where the truth is neither."""
    if not truth.isalpha():
        return None
    if alone := _ONE_WORD.fullmatch(text):
        return alone[1]
    found = (_STATED_CHOICE if len(truth) == 1 else _STATED_WORD).findall(text)
    return found[-1] if found else None


def is_correct(answer: str | None, truth: str) -> bool:
    """Whether the answer is the same text as the truth, or the same mathematics (math-verify).

    What is understood in part is no other's equal, nor are two numbers with only a space between: 4@5, 3 4. One number
    each are 12 345, 3 1/2 and 1e3. Units are not compared: of an answer in words its only number counts. One letter is
    a choice, which (a) names as well as A, and true, false, yes and no are the same in capitals. A truth in other
    words, such as a name or a regular expression, must be met letter by letter. Never raises: what cannot be judged is
    wrong."""
    if answer is None:
        return False
    if _unwrapped(answer) == _unwrapped(truth) or _same_word(_unwrapped(answer), _unwrapped(truth)):
        return True
    given, wanted = _mathematics(answer), _mathematics(truth)
    return given is not None and wanted is not None and same(given, wanted)


def _same_word(answer: str, truth: str) -> bool:
    """Whether both are the same choice, or the same of true, false, yes and no."""
    if len(truth) == 1 and truth.isalpha():
        choice = _CHOICE.fullmatch(answer)
        return choice is not None and choice[1].lower() == truth.lower()
    return truth.lower() in _VERDICTS and answer.rstrip(".").lower() == truth.lower()


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
    """The formula in a short answer, without currency signs; None where there are words that it cannot be told from, or
    two numbers with nothing between them."""
    text = " ".join(_SPACE.sub(" ", text.replace(r"\$", "$").replace("\u2212", "-")).split()).rstrip(".")
    text = _ASIDE.sub("", "".join(letter for letter in text if unicodedata.category(letter) != "Sc"))
    if in_prose := _NUMBER_IN_PROSE.fullmatch(_unwrapped(text)):
        return _with_plain_numbers(in_prose["number"])
    # Read as a formula, a word is the product of its letters, and equal to its anagrams; two numbers would be added.
    formula = _with_plain_numbers(text)
    return None if not text or _WORD.search(_COMMAND.sub(" ", text)) or _TWO_NUMBERS.search(formula) else formula


def _with_plain_numbers(formula: str) -> str:
    r"""12 345 as 12345, 1e3 as 1000, 3 1/2 as a mixed number, and \sqrt(2) as LaTeX has it."""
    formula = _SPACED.sub(lambda number: number[0].replace(" ", ""), formula)
    formula = _POWER_OF_TEN.sub(lambda number: format(Decimal(number[0]), "f"), formula)
    formula = _ROOT.sub(r"\\sqrt{\1}", formula)
    formula = _BARE_QUOTIENT.sub(lambda quotient: quotient[0].replace(" ", ""), formula)
    return _WHOLE_AND_QUOTIENT.sub(r"\1\\frac{\2}{\3}", formula)
