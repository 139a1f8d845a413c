"""Text to steps: where a chain of thought is cut. Pure strings; no tokenizer is known here.

Every cut is an offset into the text, so nothing but the whitespace around a cut can be lost.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

SplitBy = Literal["auto", "markers", "paragraphs", "lines"]

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_MARKER = re.compile(
    r"""^(?P<indent>[ \t]*) (?P<dress>(?:\#{1,6}[ \t]*)?(?:\*\*|__)?)
        (?: Step[ \t]+(?P<step>[0-9]{1,3})(?=[^\S\n]*(?:[:*_\u2013\u2014]|[-.)](?![0-9])|$))
          | (?P<number>[0-9]{1,3})(?P<point>[.)])(?=\s|\*|_|$) )""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_TITLE = re.compile(r"\s*(?:\#.*|.*:(?:\*\*|__)?|(?:[0-9]+[.)]\s*)?\*\*[^*\n]+\*\*)\s*")
_INDENTED_OR_NUMBERED = re.compile(r"\s|[0-9]+[.)]")
_BRACE = re.compile(r"(?P<boxed>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_AFTER_BOXED = re.compile(r"[^\n]*+(?:\s|\\\]|\$\$|\*\*|\.)*+")
_HASHES = re.compile(r"^[^\S\n]*####(?!#)", re.MULTILINE)
_AFTER_HASHES = re.compile(r"(?<!#)####(?!#)[^\S\n]*(\S[^\n]*)")
_NUMBER = re.compile(r"[-+]?(?:\\?\$)?[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?")
_ANNOTATION = re.compile(  # a calculation, "=", a number: what else stands between such brackets may be code
    r"<<[-+*/%(). \t]*[0-9][-+*/%().,0-9 \t]*=[ \t]*[-+]?(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)%?[ \t]*>>"
)


def split(text: str, how: SplitBy = "auto", min_words: int = 0) -> list[str]:
    r"""Cut a text into its stripped steps, in order; joined, they hold every non-whitespace character of it.

    `markers` cuts at "Step 1:" or "1." at the start of a line, numbered 1, 2, 3, ..., and before a closing paragraph;
    `paragraphs` at blank lines; `lines` at newlines; `auto` takes the first of these that finds two steps.
    The final answer ("#### N", or a last line with a `\boxed{}`) is always a step of its own. Other steps of fewer than
    `min_words` whitespace-separated words join the step after them, or the one before if they are the last.
    """
    answer = _answer_start(text)
    body = text[:answer].rstrip()
    find_cuts = _CUTTERS[_usual_cut(text, body, answer) if how == "auto" else how]
    cuts = _keep_long(body, find_cuts(body), min_words)
    pieces = [body[start:stop] for start, stop in pairwise([0, *cuts, len(body)])]
    steps = [piece.strip() for piece in [*pieces, text[answer:]]]
    return [step for step in steps if step]


def answer_step(steps: list[str]) -> int | None:
    r"""The index of the answer step: the last one, if it is a "#### ..." line or has a `\boxed{}`; else None."""
    if steps and (_HASHES.match(steps[-1]) or r"\boxed{" in steps[-1]):
        return len(steps) - 1
    return None


def final_answer(text: str) -> str | None:
    r"""The short answer: what the last balanced `\boxed{}` holds, else what follows the last "####" on its line.

    A number loses its thousands separators and its dollar sign: "$1,200" is "1200".
    """
    boxed = _last_boxed(text)
    if boxed is None:
        after_hashes = _AFTER_HASHES.findall(text)
        answer = after_hashes[-1] if after_hashes else ""
    else:
        start, stop = boxed
        answer = text[text.index("{", start) + 1 : stop - 1]
    answer = answer.strip()
    if _NUMBER.fullmatch(answer):
        answer = re.sub(r"[\\$,]", "", answer)
    return answer or None


def part_thinking(text: str, reasoning: str = "") -> tuple[str, str]:
    """Part a response into (thinking, answer), without the `<think>` wrapper; no or empty thinking is "".

    Thinking is what comes before `</think>` (the opening tag may be missing: some chat templates write it into the
    prompt), or it is given apart from the text, as `reasoning`. Raises ValueError where the two cannot be told apart.
    """
    closed = "</think>" in text
    before, _, after = text.partition("</think>") if closed else ("", "", text)
    preamble, _, inside = before.rpartition("<think>")
    if "<think>" in after and not closed:
        raise ValueError("<think> is never closed (cut off?)")
    if preamble.strip() or "<think>" in after or "</think>" in after:
        raise ValueError("the response is not one <think> block followed by an answer")
    if inside.strip() and reasoning.strip():
        raise ValueError("thinking is given twice, inside the response and apart from it")
    if not after.strip():
        raise ValueError("the response holds no answer (cut off?)")
    return inside.strip() or reasoning.strip(), after.strip()


def wrap_thinking(steps: list[str]) -> list[str]:
    r"""Put the wrapper around thinking steps: joined by blank lines they are "<think>\n...\n</think>"."""
    if not steps:
        return []
    wrapped = list(steps)
    wrapped[0] = "<think>\n" + wrapped[0]
    wrapped[-1] += "\n</think>"
    return wrapped


def strip_annotations(text: str) -> str:
    """Remove GSM8K's calculator annotations, such as <<48/2=24>>: a calculation in digits, "=" and a number."""
    return _ANNOTATION.sub("", text)


def _paragraph_cuts(text: str) -> list[int]:
    return [match.end() for match in _BLANK_LINES.finditer(text)]


def _line_cuts(text: str) -> list[int]:
    return [match.end() for match in re.finditer("\n", text)]


def _marker_cuts(text: str) -> list[int]:
    """Where steps begin, after the first (a preamble joins it), and where a closing paragraph does."""
    markers = _markers(text)
    return [*markers[1:], *_closing_cut(text, markers[-1])] if markers else []


def _usual_cut(text: str, body: str, answer: int) -> SplitBy:
    """How a text is cut that does not say. GSM8K's "#### N", right under a line, says that lines are the steps."""
    if len(_markers(body)) > 1:
        return "markers"
    right_under_a_line = _HASHES.match(text, answer) and text.count("\n", len(body), answer) == 1
    return "paragraphs" if _paragraph_cuts(body.lstrip()) and not right_under_a_line else "lines"


_CUTTERS: dict[SplitBy, Callable[[str], list[int]]] = {
    "markers": _marker_cuts,
    "paragraphs": _paragraph_cuts,
    "lines": _line_cuts,
}


def _keep_long(text: str, cuts: Iterable[int], min_words: int) -> list[int]:
    """The cuts that leave no step with fewer than `min_words` words, and none empty."""
    kept, start, least = [], 0, max(min_words, 1)
    for cut in cuts:
        if len(text[start:cut].split()) >= least:
            kept.append(cut)
            start = cut
    return kept[:-1] if len(text[start:].split()) < least else kept


class _Style(NamedTuple):
    """How a marker is written: the word "Step", or else a bare number with what stands around it."""

    has_word: bool
    indent: str = ""
    dress: str = ""
    point: str = ""


class _Marker(NamedTuple):
    offset: int
    number: int


def _markers(text: str) -> list[int]:
    """Where the markers of one style begin: the word "Step" before bare numbers, two before one, early before late."""
    by_style: dict[_Style, list[_Marker]] = defaultdict(list)
    for match in _MARKER.finditer(text):
        by_style[_style(match)].append(_Marker(match.start(), int(match["step"] or match["number"])))
    chains = {style: _ascending(markers) for style, markers in by_style.items()}
    numbered = [style for style, chain in chains.items() if chain]

    def rank(style: _Style) -> tuple[bool, bool, int]:
        chain = chains[style]
        return len(chain) > 1, style.has_word, -chain[0]

    return chains[max(numbered, key=rank)] if numbered else []


def _style(match: re.Match[str]) -> _Style:
    return _Style(True) if match["step"] else _Style(False, match["indent"], match["dress"], match["point"])


def _ascending(markers: list[_Marker]) -> list[int]:
    """Offsets of those numbered 1, 2, 3, ...; a list that restarts at 1 inside a step is skipped."""
    chain: list[int] = []
    nested = 0  # the last number of such a list
    for offset, number in markers:
        if chain and (number == 1 or (nested and number == nested + 1)):
            nested = number
        elif number == len(chain) + 1:
            chain.append(offset)
            nested = 0
    return chain


def _closing_cut(text: str, marker: int) -> list[int]:
    """Where the last paragraph begins, if it is not part of the last marker's own; a title owns what it stands over."""
    cuts = [cut for cut in _paragraph_cuts(text) if cut > marker]
    if cuts and _TITLE.fullmatch(text[marker : cuts[0]]):
        cuts = cuts[1:]
    return [cut for cut in cuts[-1:] if not _INDENTED_OR_NUMBERED.match(text, cut)]


def _answer_start(text: str) -> int:
    """Where the final answer's first line begins; the text's length if it has none."""
    last_line = text.rfind("\n", 0, len(text.rstrip())) + 1
    if _HASHES.match(text, last_line):
        return last_line
    boxed = _last_boxed(text)
    if boxed is None or not _AFTER_BOXED.fullmatch(text, boxed[1]):
        return len(text)
    start, stop = boxed
    for opening, closing in ((r"\[", r"\]"), ("$$", "$$")):
        # A displayed formula stays whole: its opening may be lines above the box.
        if closing in text[stop:] and opening in text[:start]:
            start = text.rindex(opening, 0, start)
    return text.rfind("\n", 0, start) + 1


def _last_boxed(text: str) -> tuple[int, int] | None:
    found = list(boxes(text))
    return found[-1] if found else None


def boxes(text: str) -> Iterator[tuple[int, int]]:
    r"""Start and end of every `\boxed{...}` whose braces balance, as they close; escaped braces are text."""
    opened: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace["boxed"] or brace[0] == "{":
            opened.append(brace)
        elif brace[0] == "}" and opened:
            opener = opened.pop()
            if opener["boxed"]:
                yield opener.start(), brace.end()
