"""Where steps lie: characters of the content, then tokens of the row, by the character offsets of the tokens.

All spans are half-open. A token belongs to the step that holds its first character that is no whitespace; whitespace
alone belongs to the step that it closes; the steps tile the trained content without gap or overlap.
"""

import re
from itertools import pairwise
from typing import NamedTuple

from step_jepa.data.offsets import Span, Tokens
from step_jepa.data.raw_record import Rejected
from step_jepa.data.rendering import Rendered

_WHITESPACE = re.compile(r"\s*")


class TokenisedText(NamedTuple):
    """A conversation as the template writes it, and its tokens."""

    rendered: Rendered
    tokens: Tokens


def step_characters(content: str, steps: list[str]) -> list[Span]:
    """Where each step begins and ends in the content, its closing separator included. The spans tile the content.

    Raises Rejected where the steps are not the content, in order, with only whitespace between."""
    starts, position = [], 0
    for number, step in enumerate(steps):
        position = _skip_whitespace(content, position)
        if not step.strip() or not content.startswith(step.strip(), position):
            raise Rejected(
                f"step {number} is not in the assistant's content at character {position}: "
                "`steps` must be the content in order; run step-jepa prepare"
            )
        starts.append(position if number else 0)
        position += len(step.strip())
    if not steps or content[position:].strip():
        raise Rejected("the assistant's content holds more than its steps: run step-jepa prepare")
    return list(pairwise([*starts, len(content)]))


def _skip_whitespace(text: str, position: int) -> int:
    space = _WHITESPACE.match(text, position)
    assert space is not None
    return space.end()


def shifted(spans: list[Span], by: int) -> list[Span]:
    return [(start + by, stop + by) for start, stop in spans]


def content_tokens(text: TokenisedText, content: Span) -> range:
    """The tokens that begin inside the content; the first may bring along the space that the header ends with. Raises
    Rejected where one straddles the start otherwise."""
    (rendered, tokens), (start, stop) = text, content
    spaced = tokens.first_from(start - 1)
    if rendered.text[:start].endswith(" ") and tokens.stops[spaced] > start:
        start -= 1
    first = tokens.first_from(start)
    begins_there = first < len(tokens.ids) and tokens.starts[first] == start
    if not begins_there or (first and tokens.stops[first - 1] > start):
        raise Rejected(
            "a token straddles the start of the assistant's content: strip the content, or end the template's header "
            "with a special token or a line break"
        )
    return range(first, tokens.first_from(stop))


def step_tokens(text: TokenisedText, content: range, chars: list[Span]) -> list[Span]:
    """The token span of each step."""
    inner_edges = [_first_of_step(text, start) for start, _ in chars[1:]]
    return list(pairwise([content.start, *inner_edges, content.stop]))


def _first_of_step(text: TokenisedText, start: int) -> int:
    """Index of the first token of the step that begins at this character. One that brings the whitespace before it
    along, as " She" does, spells the step; with the step before, it would tell what is to be predicted."""
    (rendered, tokens), first = text, text.tokens.first_from(start)
    begin, end = tokens.starts[first - 1], tokens.stops[first - 1]
    return first - 1 if end > start and rendered.text[begin:start].isspace() else first


def content_stops(text: str, tokens: Tokens, chars: list[Span], spans: list[Span]) -> list[int]:
    """Example.contents. A step whose content lies in its neighbour's token has a separator only: its first token."""
    stops = []
    for (start, end), (first, stop) in zip(chars, spans, strict=True):
        content_end = start + len(text[start:end].rstrip())
        stops.append(max(tokens.first_from(content_end), min(first + 1, stop)))
    return stops
