r"""Parts of a text that a cut must not fall into: displayed formulas and environments, code, figures, tables, items of
lists. Pure strings.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

_DELIMITER = re.compile(
    r"""\\\\ | \\\$                                                     # a line break and a dollar of LaTeX: text
      | ^[^\S\n]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})(?P<info>[^\n]*)
      | (?P<open>\\\[|\\\(|\[asy\]|<table\b|<(?:llm-code|llm-code-output|tool_call|tool_response)>)
      | (?P<close>\\\]|\\\)|\[/asy\]|</(?:table|llm-code|llm-code-output|tool_call|tool_response)>)
      | (?P<dollars>\$\$)
      | \\(?P<end>begin|end)[ \t]*\{(?P<name>[^{}\n]{1,40})\}""",
    re.VERBOSE | re.MULTILINE,
)
_IN_DELIMITERS = ("\\", "`", "~", "$$", "[", "<")  # one of them stands in each
_CLOSING = {r"\[": r"\]", r"\(": r"\)", "[asy]": "[/asy]", "<table": "</table>"}
_CLOSING |= {f"<{tag}>": f"</{tag}>" for tag in ("llm-code", "llm-code-output", "tool_call", "tool_response")}
_INLINE = re.compile(  # pandoc's rule: "$5 and $6" is money; what has spaces or line breaks must look like LaTeX, too
    r"""(?<![\\$]) \$ (?: (?=[^\s$]) (?:\\.|[^$\\\n])* (?<!\s)
          | (?=[a-zA-Z(|] | [^$]*[\\^_]) (?!\s*\n) (?:\\.|[^$\\\n]|\n(?!\s*\n))* ) \$ (?![0-9$])""",
    re.VERBOSE,
)
_LINE = re.compile(r"[^\n]*\n?")
_ITEM = re.compile(r"(?P<indent>[ \t]*)(?:[-*+\u2022]|[0-9]{1,3}[.)]|\([0-9a-z]{1,3}\))[ \t]+\S")
_TABLE_RULE = re.compile(r"[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?[ \t]*)?\s*")
_HASHES = re.compile(r"[ \t]*####(?!#)")
_SPOKEN = re.compile(r"[^\W_]")

Span = tuple[int, int]


class Whole:
    """Parts of a text that stay whole, as half-open spans of characters."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = _merged(spans)
        self._starts = [start for start, _ in self.spans]

    def around(self, place: int) -> Span | None:
        """The part that a cut at this place would divide."""
        index = bisect_left(self._starts, place) - 1
        return self.spans[index] if index >= 0 and place < self.spans[index][1] else None

    def outside(self, places: Iterable[int]) -> list[int]:
        """The places at which a cut divides none of them."""
        return [place for place in places if self.around(place) is None]


def displays(text: str) -> list[Span]:
    r"""`\[ \]`, `\( \)`, `$$ $$`, environments, `[asy]`, tables of HTML, and code between fences
    or tags. What is never closed
    is none of them, but code, which then ends with the text."""
    return list(_delimited(text))


def blocks(text: str) -> list[Span]:
    """Tables of Markdown, and items of lists with the lines that are indented under them."""
    lines = [match.span() for match in _LINE.finditer(text) if match[0]]
    return [*_tables(text, lines), *_items(text, lines)]


def inline_formulas(text: str) -> list[Span]:
    """What stands between single dollars of one paragraph."""
    return [match.span() for match in _INLINE.finditer(text)]


def says_something(text: str) -> bool:
    """Whether there is a letter or digit: other text, such as a rule or a closing bracket, is markup alone."""
    return _SPOKEN.search(text) is not None


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


class _Delimiter(NamedTuple):
    """opens, closes: the kind of part, which is written as what closes it; "" for none."""

    start: int
    stop: int
    opens: str
    closes: str

    def ends(self, opener: "_Delimiter") -> bool:
        """A fence may be longer than the one that it closes."""
        if opener.opens.startswith(("`", "~")):
            return self.closes.startswith(opener.opens)
        return self.closes == opener.opens


def _delimiters(text: str) -> Iterator[_Delimiter]:
    if not any(map(text.__contains__, _IN_DELIMITERS)):  # as in most texts: found faster than by the pattern
        return
    for match in _DELIMITER.finditer(text):
        start, stop = match.span()
        if fence := match["fence"]:
            yield _Delimiter(start, stop, fence, "" if match["info"].strip() else fence)
        elif match["dollars"]:
            yield _Delimiter(start, stop, "$$", "$$")
        elif match["end"]:
            name = f"\\end{{{match['name']}}}"
            yield _Delimiter(start, stop, *(("", name) if match["end"] == "end" else (name, "")))
        elif match["open"] or match["close"]:
            yield _Delimiter(start, stop, _CLOSING.get(match["open"], ""), match["close"] or "")


def _delimited(text: str) -> Iterator[Span]:
    delimiters = list(_delimiters(text))
    last_closing = {each.closes: index for index, each in enumerate(delimiters)}
    place = 0
    while place < len(delimiters):
        opener = delimiters[place]
        end = _end_of_part(delimiters, place, last_closing) if opener.opens else place
        if end is None:  # code that is never closed
            yield opener.start, len(text)
            return
        if end > place:
            yield opener.start, delimiters[end].stop
        place = end + 1


def _end_of_part(delimiters: list[_Delimiter], place: int, last_closing: dict[str, int]) -> int | None:
    """The index of what closes the part; `place` where nothing does, None for code that goes on to the end.

    A part may hold others of its kind; where their numbers do not match, the last closing one counts."""
    opener, depth = delimiters[place], 1
    is_code = opener.opens[0] in "`~"
    last = len(delimiters) if is_code else last_closing.get(opener.opens, place)
    for index in range(place + 1, min(last + 1, len(delimiters))):
        if delimiters[index].ends(opener):
            depth -= 1
            if not depth:
                return index
        elif delimiters[index].opens == opener.opens and not is_code:
            depth += 1
    return None if is_code else max(last, place)


def _tables(text: str, lines: list[Span]) -> Iterator[Span]:
    """Runs of lines with a bar, one of which, after the first, is such as |---|---|."""
    if "|" not in text:
        return
    by_bar = groupby(lines, key=lambda line: text.find("|", *line) >= 0)
    for rows in [list(run) for has_bar, run in by_bar if has_bar]:
        if any(_TABLE_RULE.fullmatch(text, *row) for row in rows[1:]):
            yield rows[0][0], _line_end(text, rows[-1])


def _items(text: str, lines: list[Span]) -> Iterator[Span]:
    """Each item of a list with the lines under it that are indented more; empty ones may stand between."""
    item: Span | None = None
    depth = 0
    for start, stop in lines:
        line = text[start:stop]
        if not line.strip():
            continue
        if item and _indent(line) > depth and not _HASHES.match(line):
            item = (item[0], _line_end(text, (start, stop)))
            continue
        if item:
            yield item
        item, depth = None, _indent(line)
        if _ITEM.match(line):
            item = (start, _line_end(text, (start, stop)))
    if item:
        yield item


def _indent(line: str) -> int:
    expanded = line.expandtabs(4)
    return len(expanded) - len(expanded.lstrip())


def _line_end(text: str, line: Span) -> int:
    """Where what the line says ends."""
    return line[0] + len(text[slice(*line)].rstrip())
