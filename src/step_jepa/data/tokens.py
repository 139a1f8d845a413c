"""Conversation -> ids, labels and step spans, through the tokenizer's own chat template and character offsets.

All spans are half-open. A token belongs to the step that holds its first character; a separator belongs to the step
that it closes; the steps tile the trained content without gap or overlap.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from jinja2.exceptions import TemplateError

from step_jepa.data.steps import answer_step
from step_jepa.errors import UserError

IGNORED = -100
Span = tuple[int, int]
Messages = list[dict[str, Any]]

# A chat template without any framing, for base models: the contents of the turns, one to a line, and eos at the end.
PLAIN_TEMPLATE = (
    "{{ messages | map(attribute='content') | join('\n') }}{{ '\n' if add_generation_prompt else eos_token }}"
)

# Two words that no real conversation holds: rendered in place of a turn, they show where its content lies.
_PLACEHOLDER, _THOUGHT = "c0ntent9b1f7e5d", "th0ught9b1f7e5d"
_THINKING = re.compile(r"<think>\n.*\n</think>\n\n", re.DOTALL)


@dataclass(frozen=True)
class Encoding:
    """Options of `encode`. The last two repeat what the published code of LLM-JEPA does.

    turns           the two turns are rendered alone as well (Example.turns)
    train_all       every token of the trunk is labelled, the prompt's too
    unlabelled_end  no token that is the tokenizer's pad is labelled: where pad = eos, the end of turn is never learned
    double_bos      the tokenizer's own leading special tokens go before what the template wrote, which can have its BOS
    """

    turns: bool = False
    train_all: bool = False
    unlabelled_end: bool = False
    double_bos: bool = False


@dataclass(frozen=True)
class Turn:
    """One message rendered as a conversation of its own.

    input_ids  its tokens
    content    token span of the content: from the first to the last token that holds a character of it
    """

    input_ids: list[int]
    content: Span


@dataclass(frozen=True)
class Turns:
    """The last user turn and the answer, each alone: the two views of LLM-JEPA (arXiv 2509.14252)."""

    user: Turn
    assistant: Turn


@dataclass(frozen=True)
class Example:
    """One conversation as the model reads it: the trunk of a training row.

    text       the rendered conversation
    input_ids  its tokens
    labels     the same ids on the content and the end-of-turn token, IGNORED elsewhere
    steps      token span of each step of the last assistant turn
    chars      character span of each step in `text`
    user       token span of the last user turn's content; None where the template rewrites it or there is none
    contents   per step, the index after its last token that holds non-whitespace of it; by default its stop.
               steps[k][0] < contents[k] <= steps[k][1], unless the step has no token
    answer     index of the step that is the final answer; None where the last step is not, or was cut away
    turns      the last user turn and the answer alone; None unless asked for, where the template rewrites either, and
               where either is longer than max_length
    index      place in its data set
    """

    text: str
    input_ids: list[int]
    labels: list[int]
    steps: list[Span]
    chars: list[Span]
    user: Span | None
    contents: list[int] = field(default_factory=list)
    answer: int | None = None
    turns: Turns | None = None
    index: int = 0

    def __post_init__(self) -> None:
        if not self.contents:
            object.__setattr__(self, "contents", [stop for _, stop in self.steps])


def render(tokenizer: Any, messages: Messages, where: str = "example") -> str:
    """The conversation as one string, by the tokenizer's chat template.

    Raises UserError where there is no template, or where it refuses the conversation."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template: use an instruct model, or --plain, "
            "or save a chat_template with the tokenizer"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise UserError(f"{where}: the chat template refuses this conversation ({error}): change its turns") from None


def locate(tokenizer: Any, messages: Messages, turn: int, where: str = "example") -> tuple[str, Span]:
    """The rendered conversation and the character span of one turn's content in it.

    The place is found with a placeholder, never by looking for the content's own words, which also occur in prompts
    and headers. Raises UserError where the template writes something else than the content."""
    content = messages[turn]["content"]
    thinking = _THINKING.match(content)
    marker = f"<think>\n{_THOUGHT}\n</think>\n\n{_PLACEHOLDER}" if thinking else _PLACEHOLDER
    shown = list(messages)
    shown[turn] = {**messages[turn], "content": marker}
    text, frame = render(tokenizer, messages, where), render(tokenizer, shown, where)
    head, found, tail = frame.partition(marker)
    if not found or text != head + content + tail:
        remedy = "prepare the data without --keep_thinking" if thinking else "strip the content, or change the template"
        raise UserError(
            f"{where}: the chat template rewrites the content of the {messages[turn]['role']} turn: {remedy}"
        )
    return text, (len(head), len(head) + len(content))


def step_characters(content: str, steps: list[str], where: str = "example") -> list[Span]:
    """Where each step begins and ends in the content, its closing separator included. The spans tile the content.

    Raises UserError where the steps are not the content, in order, with only whitespace between."""
    starts, position = [], 0
    for number, step in enumerate(steps):
        position += len(content[position:]) - len(content[position:].lstrip())
        if not step.strip() or not content.startswith(step.strip(), position):
            raise UserError(
                f"{where}: step {number} is not in the assistant's content at character {position}: "
                "`steps` must be the content in order; run step-jepa prepare"
            )
        starts.append(position if number else 0)
        position += len(step.strip())
    if not steps or content[position:].strip():
        raise UserError(f"{where}: the assistant's content holds more than its steps: run step-jepa prepare")
    return list(pairwise([*starts, len(content)]))


def _encode(tokenizer: Any, text: str, double_bos: bool) -> tuple[list[int], list[Span]]:
    """Ids of the rendered string as it is, and the characters of each token, whitespace included."""
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path or 'the tokenizer'} gives no character offsets: use its fast version")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, end = encoding["input_ids"], [], 0
    for token, (start, stop) in zip(ids, encoding["offset_mapping"], strict=True):
        if (
            start > end
        ):  # the tokenizer trims whitespace from its offsets: give a token back the part that it begins with
            piece = tokenizer.decode([token])
            start = max(end, start - (len(piece) - len(piece.lstrip())))
        offsets.append((start, stop))
        end = max(end, stop)
    lead = _leading_special(tokenizer, text) if double_bos else []
    return lead + ids, [(-1, -1)] * len(lead) + offsets  # before the text, so that no span takes them in


def pieces(tokenizer: Any, ids: Sequence[int], names: Mapping[int, str] = {}) -> list[str]:
    """The text of each token. It is decoded behind another, as SentencePiece drops the space that a text begins with.

    names   texts of tokens that the tokenizer does not know"""
    before = tokenizer.encode("a", add_special_tokens=False)
    start = len(tokenizer.decode(before))
    return [names[token] if token in names else tokenizer.decode([*before, token])[start:] for token in ids]


def _leading_special(tokenizer: Any, text: str) -> list[int]:
    """The special tokens that the tokenizer by itself puts before a text."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    return encoding["input_ids"][: encoding["special_tokens_mask"].index(0)]


def encode(
    tokenizer: Any,
    messages: Messages,
    steps: list[str],
    where: str = "example",
    options: Encoding = Encoding(),
) -> Example:
    """Tokens, labels and step spans of a conversation whose last turn, the assistant's, is trained.

    Raises UserError, naming `where`, wherever the boundaries could only be guessed."""
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last turn is not the assistant's: there is nothing to train on")
    _refuse_special_tokens(tokenizer, messages, where)
    text, (begin, end) = locate(tokenizer, messages, len(messages) - 1, where)
    ids, offsets = _encode(tokenizer, text, options.double_bos)
    starts = [start for start, _ in offsets]
    first, last = bisect_left(starts, begin), bisect_left(starts, end)
    if first == len(ids) or starts[first] != begin or (first and offsets[first - 1][1] > begin):
        raise UserError(
            f"{where}: a token straddles the start of the assistant's content: strip the content, or end the "
            "template's header with a special token or a line break"
        )
    chars = [(begin + a, begin + b) for a, b in step_characters(messages[-1]["content"], steps, where)]
    spans = list(pairwise([first, *(bisect_left(starts, start) for start, _ in chars[1:]), last]))
    trained = range(first, _end_of_turn(tokenizer, ids, last, where) + 1)
    return Example(
        text=text,
        input_ids=ids,
        labels=_labels(tokenizer, ids, trained, options),
        steps=spans,
        chars=chars,
        user=_user_span(tokenizer, messages, offsets, where),
        contents=_content_stops(text, chars, spans, starts),
        answer=answer_step([step.strip() for step in steps]),
        turns=_turns(tokenizer, messages, options.double_bos) if options.turns else None,
    )


def _refuse_special_tokens(tokenizer: Any, messages: Messages, where: str) -> None:
    """A turn that spells a special token would end there, or forge another turn."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for message in messages:
        if found := next((token for token in special if token in message["content"]), None):
            raise UserError(f"{where}: the {message['role']} turn holds the special token {found}: take it out")


def _end_of_turn(tokenizer: Any, ids: list[int], last: int, where: str) -> int:
    """Index of the token that ends the turn: the first special token after the content."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for place in range(last, len(ids)):
        if ids[place] in special:
            return place
    raise UserError(
        f"{where}: the chat template writes no end-of-turn token after the answer: let it end with eos_token"
    )


def _labels(tokenizer: Any, ids: list[int], trained: range, options: Encoding) -> list[int]:
    places = range(len(ids)) if options.train_all else trained
    unlabelled = tokenizer.pad_token_id if options.unlabelled_end else None
    return [token if place in places and token != unlabelled else IGNORED for place, token in enumerate(ids)]


def _content_stops(text: str, chars: list[Span], spans: list[Span], starts: list[int]) -> list[int]:
    """Example.contents. A step whose content lies in its neighbour's token has a separator only: its first token."""
    stops = []
    for (begin, end), (first, stop) in zip(chars, spans, strict=True):
        content_end = begin + len(text[begin:end].rstrip())
        stops.append(max(bisect_left(starts, content_end), min(first + 1, stop)))
    return stops


def _last_user(messages: Messages) -> int | None:
    return next((turn for turn in reversed(range(len(messages))) if messages[turn]["role"] == "user"), None)


def _user_span(tokenizer: Any, messages: Messages, offsets: list[Span], where: str) -> Span | None:
    """Tokens that lie wholly inside the last user turn's content."""
    turn = _last_user(messages)
    if turn is None:
        return None
    try:
        _, (begin, end) = locate(tokenizer, messages, turn, where)
    except UserError:
        return None
    inside = [place for place, (start, stop) in enumerate(offsets) if begin <= start and stop <= end and start < end]
    return (inside[0], inside[-1] + 1) if inside else None


def _turns(tokenizer: Any, messages: Messages, double_bos: bool) -> Turns | None:
    """The last user turn and the answer alone; None where there is no user turn, or either cannot be had."""
    turn = _last_user(messages)
    user = None if turn is None else _turn(tokenizer, messages[turn], double_bos)
    assistant = _turn(tokenizer, messages[-1], double_bos)
    return Turns(user, assistant) if user and assistant else None


def _turn(tokenizer: Any, message: dict[str, Any], double_bos: bool) -> Turn | None:
    """The message as a conversation of its own; None where the template rewrites it, and where it has no token."""
    try:
        text, (begin, end) = locate(tokenizer, [_alone(tokenizer, message)], 0)
    except UserError:
        return None
    ids, offsets = _encode(tokenizer, text, double_bos)
    held = [place for place, (start, stop) in enumerate(offsets) if max(start, begin) < min(stop, end)]
    return Turn(ids, (held[0], held[-1] + 1)) if held else None


def _alone(tokenizer: Any, message: dict[str, Any]) -> dict[str, Any]:
    """The message, as the user's where the template refuses a conversation of nothing else (Gemma's does)."""
    try:
        render(tokenizer, [message])
    except UserError:
        return {**message, "role": "user"}
    return message


def truncate(example: Example, max_length: int | None) -> Example:
    """The example with as many whole steps as fit into `max_length` tokens, possibly none.

    A row that was cut carries no end-of-turn label: the model must not learn to stop there. The turns, which make sense
    as wholes only, go where either is longer."""
    if max_length is None:
        return example
    turns = example.turns
    if turns and max(len(turns.user.input_ids), len(turns.assistant.input_ids)) > max_length:
        example = replace(example, turns=None)
    return example if len(example.input_ids) <= max_length else _cut(example, max_length)


def _cut(example: Example, max_length: int) -> Example:
    kept = [span for span in example.steps if span[1] <= max_length]
    length = kept[-1][1] if kept else 0
    return replace(
        example,
        input_ids=example.input_ids[:length],
        labels=example.labels[:length],
        steps=kept,
        chars=example.chars[: len(kept)],
        contents=example.contents[: len(kept)],
        answer=example.answer if example.answer in range(len(kept)) else None,
    )
