"""Text to steps: where a chain of thought is cut. Pure strings; no tokenizer is known here.

Every cut is an offset into the text, so nothing but the whitespace around a cut can be lost.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from sentencex import get_sentence_boundaries

from step_jepa.data.markup import Whole, blocks, displays, inline_formulas, says_something

SplitBy = Literal["auto", "markers", "paragraphs", "lines", "sentences"]

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
_ANSWER_IS = r"(?:(?:so|thus|hence|therefore),?[ ])?(?:the[ ])?(?:final[ ])?answer[ ]is:?[ ]*(?P<answer>[^\s:][^\n]*)"
_LAST_WORDS = re.compile(rf"(?:^|(?<=[\s.])){_ANSWER_IS}\s*\Z", re.IGNORECASE | re.MULTILINE)
_REST = re.compile(rf"[^\n]*+(?:\s*\n[^\S\n]*{_ANSWER_IS})?[\W_]*+", re.IGNORECASE)  # of an answer, from its first line
_HEADED = re.compile(r"^\# Answer[^\S\n]*\n\s*(?P<answer>\S[^\n]*)\s*\Z", re.MULTILINE)
_TITLED = re.compile(  # "**Final Answer**" over it, "Answer: 7", and the same in Chinese
    r"^[\W_]*(?:the[ ])?(?:final[ ])?(?:answer|(?:\u6700\u7ec8)?\u7b54\u6848)[*_]*"
    r"(?:[ ]*[:\uff1a][*_]*\s*|[ ]*\n\s*|[\u662f\u4e3a][:\uff1a]?[ ]*)(?P<answer>\S[^\n]*)\s*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_MOST_WORDS = 8  # of a short answer under a title
_HEADING = re.compile(r"\# Answer[^\S\n]*\n")
_LONE_MARKER = re.compile(r"\s*\(?[0-9]{1,3}[.)]\s*")
_POINTS = re.compile(r"[.,;:]*")
_OPENING = re.compile(r"\s*(?:\\\[|\\\(|#+|[-+*])\s*")  # markup that belongs to what follows
_HASHES = re.compile(r"^[^\S\n]*####(?!#)", re.MULTILINE)
_AFTER_HASHES = re.compile(r"(?<!#)####(?!#)[^\S\n]*(\S[^\n]*)")
_NUMBER = re.compile(r"[-+]?(?:\\?\$)?[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?")
_ANNOTATION = re.compile(  # a calculation, "=", a number: what else stands between such brackets may be code
    r"<<[-+*/%(). \t]*[0-9][-+*/%().,0-9 \t]*=[ \t]*[-+]?(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)%?[ \t]*>>"
)


def split(text: str, how: SplitBy = "auto", min_words: int = 0) -> list[str]:
    r"""Cut a text into its stripped steps, in order; joined, they hold every non-whitespace character of it.

    `markers` cuts at "Step 1:" or "1." at the start of a line, numbered 1, 2, 3, ..., and before a closing paragraph;
    `paragraphs` at blank lines; `lines` at newlines; `sentences` behind sentences and at blank lines; `auto` takes the
    first of markers, paragraphs and lines that finds two steps. Formulas, environments, code, tables and items of lists
    stay whole, and markup alone, such as a rule, joins its neighbour.
    The final answer ("#### N", "# Answer" over it, or a last line with a `\boxed{}`) is always a step of its own, with
    the "The answer is: N" under it. Other steps of fewer than `min_words` whitespace-separated words join the step
    after them, or the one before if they are the last.
    """
    displayed, inline = Whole(displays(text)), Whole(inline_formulas(text))
    formulas = Whole([*displayed.spans, *inline.spans])
    whole = Whole([*formulas.spans, *blocks(text)])
    answer = _answer_start(text, displayed, inline)
    if how == "sentences":
        answer = _answer_sentence(_Body(text, formulas, whole), answer)
    body = _Body(text[:answer].rstrip(), formulas, whole)
    if answer < len(text) and not says_something(body.text):
        return [text.strip()]
    find_cuts = _CUTTERS[_usual_cut(text, body, answer) if how == "auto" else how]
    cuts = _keep_long(body.text, _join_markup(body.text, find_cuts(body)), min_words)
    pieces = [body.text[start:stop] for start, stop in pairwise([0, *cuts, len(body.text)])]
    steps = [piece.strip() for piece in [*pieces, text[answer:]]]
    return [step for step in steps if step]


def answer_step(steps: list[str]) -> int | None:
    r"""The index of the answer step: the last one, if it is a "#### ..." line, stands under "# Answer" or has a
    `\boxed{}`; else None."""
    if steps and (_HASHES.match(steps[-1]) or _HEADING.match(steps[-1]) or r"\boxed{" in steps[-1]):
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
    return _bare_number(answer.strip()) or None


def stated_answer(text: str) -> str | None:
    """The short answer that a solution ends with: its `final_answer`, what stands under "# Answer", or else what its
    last words, "The answer is: 66.", say."""
    found = final_answer(text)
    stated = None if found else _HEADED.search(text) or _LAST_WORDS.search(text) or _TITLED.search(text)
    if stated is None:
        return found
    answer = stated["answer"].rstrip("*_ .\u3002").lstrip("*_ ")
    if stated.re is _TITLED and len(answer.split()) > _MOST_WORDS:
        return None
    return _bare_number(answer[1:-1] if answer[0] == answer[-1] == "$" and len(answer) > 2 else answer)


def _bare_number(answer: str) -> str:
    """A number without its thousands separators and its dollar sign."""
    return re.sub(r"[\\$,]", "", answer) if _NUMBER.fullmatch(answer) else answer


def strip_annotations(text: str) -> str:
    """Remove GSM8K's calculator annotations, such as <<48/2=24>>: a calculation in digits, "=" and a number."""
    return _ANNOTATION.sub("", text)


class _Body(NamedTuple):
    """A text without its final answer. No cut divides what is whole; markers are looked for outside of formulas."""

    text: str
    formulas: Whole
    whole: Whole


def _paragraph_cuts(body: _Body) -> list[int]:
    return body.whole.outside(match.end() for match in _BLANK_LINES.finditer(body.text))


def _line_cuts(body: _Body) -> list[int]:
    return body.whole.outside(match.end() for match in re.finditer("\n", body.text))


def _sentence_cuts(body: _Body) -> list[int]:
    ends = {sentence["end_index"] for sentence in get_sentence_boundaries("en", body.text)}
    cuts = sorted({*_paragraph_cuts(body), *body.whole.outside(ends)} - {len(body.text)})
    return [cut for start, cut in pairwise([0, *cuts]) if not _LONE_MARKER.fullmatch(body.text, start, cut)]


def _marker_cuts(body: _Body) -> list[int]:
    """Where steps begin, after the first (a preamble joins it), and where a closing paragraph does."""
    markers = _markers(body)
    return [*markers[1:], *_closing_cut(body, markers[-1])] if markers else []


def _usual_cut(text: str, body: _Body, answer: int) -> SplitBy:
    """How a text is cut that does not say. GSM8K's "#### N", right under a line, says that lines are the steps."""
    if len(_markers(body)) > 1:
        return "markers"
    right_under_a_line = _HASHES.match(text, answer) and text.count("\n", len(body.text), answer) == 1
    indent = len(body.text) - len(body.text.lstrip())
    has_paragraphs = any(cut > indent for cut in _paragraph_cuts(body))
    return "paragraphs" if has_paragraphs and not right_under_a_line else "lines"


_CUTTERS: dict[SplitBy, Callable[[_Body], list[int]]] = {
    "markers": _marker_cuts,
    "paragraphs": _paragraph_cuts,
    "lines": _line_cuts,
    "sentences": _sentence_cuts,
}


def _join_markup(text: str, cuts: list[int]) -> list[int]:
    """The cuts that leave no piece which is markup alone: it joins what stands before it, or after if it opens that."""
    kept: list[int] = []
    start, says = 0, False
    for cut, stop in pairwise([*cuts, len(text)]):
        says = says or says_something(text[start:cut])
        after = text[cut:stop]
        if says and (says_something(after) or _OPENING.fullmatch(after)):
            kept.append(cut)
            says = False
        start = cut
    return kept if says or says_something(text[start:]) else kept[:-1]


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


def _markers(body: _Body) -> list[int]:
    """Where the markers of one style begin: the word "Step" before bare numbers, two before one, early before late."""
    by_style: dict[_Style, list[_Marker]] = defaultdict(list)
    for match in _MARKER.finditer(body.text):
        if body.formulas.around(match.start()):
            continue
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


def _closing_cut(body: _Body, marker: int) -> list[int]:
    """Where the last paragraph begins, if it is not part of the last marker's own; a title owns what it stands over."""
    cuts = [cut for cut in _paragraph_cuts(body) if cut > marker]
    if cuts and _TITLE.fullmatch(body.text[marker : cuts[0]]):
        cuts = cuts[1:]
    return [cut for cut in cuts[-1:] if not _INDENTED_OR_NUMBERED.match(body.text, cut)]


def _answer_start(text: str, displayed: Whole, inline: Whole) -> int:
    """Where the final answer's first line begins; the text's length if it has none."""
    hashes = list(_HASHES.finditer(text))
    for start in [match.start() for match in hashes[-1:]]:
        if _REST.fullmatch(text, start) and not displayed.around(start) and not inline.around(start):
            return start
    if headed := _HEADED.search(text):
        return headed.start()
    boxed = _last_boxed(text)
    if boxed is None:
        return len(text)
    inside = boxed[0] + 1
    start, stop = displayed.around(inside) or inline.around(inside) or boxed  # a formula stays whole
    return _line_start(text, start, displayed, inline) if _REST.fullmatch(text, stop) else len(text)


def _line_start(text: str, place: int, displayed: Whole, inline: Whole) -> int:
    """Where the line begins: behind what is displayed and ends in it; a formula takes the line before along."""
    start = text.rfind("\n", 0, place) + 1
    if display := displayed.around(start):
        points = _POINTS.match(text, display[1])
        assert points is not None
        return points.end()
    formula = inline.around(start)
    return _line_start(text, formula[0], displayed, inline) if formula else start


def _answer_sentence(body: _Body, answer: int) -> int:
    """Where the sentence with the box begins, in a last line of several."""
    boxed = _last_boxed(body.text)
    if boxed is None or _HASHES.match(body.text, answer) or _HEADING.match(body.text, answer):
        return answer
    return max((cut for cut in _sentence_cuts(body) if answer < cut <= boxed[0]), default=answer)


def _last_boxed(text: str) -> tuple[int, int] | None:
    found = list(boxes(text)) if r"\boxed" in text else []
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
