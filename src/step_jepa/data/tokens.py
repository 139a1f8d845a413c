"""Conversation -> ids, labels and step spans, by the character offsets of the tokens in the rendered text.

All spans are half-open. A token belongs to the step that holds its first character that is no whitespace; whitespace
alone belongs to the step that it closes; the steps tile the trained content without gap or overlap.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation
from step_jepa.data.offsets import Span as Span  # the type of this module's spans
from step_jepa.data.offsets import Tokens, tokenised
from step_jepa.data.raw_record import Rejected
from step_jepa.data.records import Message
from step_jepa.data.rendering import ChatFormat, Rendered, render_rows
from step_jepa.data.steps import answer_step
from step_jepa.errors import UserError

IGNORED = -100
TrainTurns = Literal["last", "all"]
_WHITESPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Encoding:
    """Options of `encode`. The last two repeat what the published code of LLM-JEPA does.

    turns           the two turns are rendered alone as well (Example.turns)
    train_turns     which turns of the assistant are labelled: the last, or all; steps are of the last
    train_all       every token of the trunk is labelled, the prompt's too
    unlabelled_end  no token that is the tokenizer's pad is labelled: where pad = eos, the end of turn is never learned
    double_bos      the tokenizer's own leading special tokens go before what the template wrote, which can have its BOS
    """

    turns: bool = False
    train_turns: TrainTurns = "last"
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
    labels     the same ids on trained contents and their end-of-turn tokens, IGNORED elsewhere
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

    @property
    def filled_steps(self) -> list[int]:
        """Indices of the steps that have tokens of their own; a step may share its only token with its neighbour."""
        return [step for step, (start, stop) in enumerate(self.steps) if start < stop]

    def __post_init__(self) -> None:
        if not self.contents:
            object.__setattr__(self, "contents", [stop for _, stop in self.steps])


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    options: Encoding = Encoding(),
) -> list[Example | Rejected]:
    """Tokens, labels and step spans of conversations whose last turns, the assistant's, are trained.

    Args:
        tokenizer: a fast one, with a chat template.
        rows: as `to_conversation` makes them.
        options: what else is encoded, and how.

    Returns:
        For each row its example, or why there is none: no boundary is ever guessed.

    Raises:
        UserError: the tokenizer has no chat template, or gives no offsets.
    """
    chat = ChatFormat.of(tokenizer)
    turns = _turns(chat, rows, options) if options.turns else {}
    return [
        _example_or_rejected(chat, row, text, turns.get(place), options)
        for place, (row, text) in enumerate(zip(rows, _texts(chat, rows, options), strict=True))
    ]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    steps: list[str],
    where: str = "example",
    options: Encoding = Encoding(),
) -> Example:
    """The same of one conversation.

    Args:
        tokenizer: a fast one, with a chat template.
        messages: all turns.
        steps: the content of the last turn, cut.
        where: what the conversation is called in messages to the user.
        options: what else is encoded, and how.

    Raises:
        UserError: the boundaries could only be guessed.
    """
    (example,) = encode_rows(tokenizer, [Conversation(messages, steps)], options)
    if isinstance(example, Rejected):
        raise UserError(f"{where}: {example}")
    return example


class _Text(NamedTuple):
    rendered: Rendered
    tokens: Tokens


def _texts(chat: ChatFormat, conversations: Collection[Conversation], options: Encoding) -> Iterator[_Text | Rejected]:
    """Each conversation as text and tokens, or why the template refuses it."""
    rows = render_rows(chat, [(row.messages, row.tools) for row in conversations])
    texts = [row.text for row in rows if isinstance(row, Rendered)]
    tokens = tokenised(chat.tokenizer, texts, double_bos=options.double_bos)
    for row in rows:
        yield _Text(row, next(tokens)) if isinstance(row, Rendered) else row


def _example_or_rejected(
    chat: ChatFormat, row: Conversation, text: _Text | Rejected, turns: Turns | None, options: Encoding
) -> Example | Rejected:
    if isinstance(text, Rejected):
        return text
    try:
        return _example(chat, row, text, turns, options)
    except Rejected as reason:
        return reason


def _example(
    chat: ChatFormat,
    conversation: Conversation,
    text: _Text,
    turns: Turns | None,
    options: Encoding,
) -> Example:
    """Raises Rejected."""
    messages, (rendered, tokens) = conversation.messages, text
    if messages[-1]["role"] != "assistant":
        raise Rejected("the last turn is not the assistant's: there is nothing to train on")
    chat.refuse_special_tokens(messages, conversation.tools)
    answer = rendered.content(len(messages) - 1)
    content = _content_tokens(text, answer)
    chars = _shifted(step_characters(rendered.text[slice(*answer)], conversation.steps), answer[0])
    spans = _step_tokens(text, content, chars)
    return Example(
        text=rendered.text,
        input_ids=tokens.ids,
        labels=_labels(chat.tokenizer, tokens.ids, _trained(chat, text, content, options), options),
        steps=spans,
        chars=chars,
        user=_user_span(rendered, tokens),
        contents=_content_stops(rendered.text, tokens, chars, spans),
        answer=answer_step([step.strip() for step in conversation.steps]),
        turns=turns,
    )


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


def _shifted(spans: list[Span], by: int) -> list[Span]:
    return [(start + by, stop + by) for start, stop in spans]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], names: Mapping[int, str] = {}) -> list[str]:
    """The text of each token. It is decoded behind another, as SentencePiece drops the space that a text begins with.

    Args:
        tokenizer: the one that made them.
        ids: of the tokens.
        names: texts of tokens that the tokenizer does not know.
    """
    before = tokenizer.encode("a", add_special_tokens=False)
    start = len(str(tokenizer.decode(before)))
    return [names[token] if token in names else str(tokenizer.decode([*before, token]))[start:] for token in ids]


def _content_tokens(text: _Text, content: Span) -> range:
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


def _step_tokens(text: _Text, content: range, chars: list[Span]) -> list[Span]:
    """The token span of each step."""
    inner_edges = [_first_of_step(text, start) for start, _ in chars[1:]]
    return list(pairwise([content.start, *inner_edges, content.stop]))


def _first_of_step(text: _Text, start: int) -> int:
    """Index of the first token of the step that begins at this character. One that brings the whitespace before it
    along, as " She" does, spells the step; with the step before, it would tell what is to be predicted."""
    (rendered, tokens), first = text, text.tokens.first_from(start)
    begin, end = tokens.starts[first - 1], tokens.stops[first - 1]
    return first - 1 if end > start and rendered.text[begin:start].isspace() else first


def _trained(chat: ChatFormat, text: _Text, content: range, options: Encoding) -> list[range]:
    """The tokens that are labelled, turn by turn, `content` being those of the last turn. Raises Rejected."""
    (rendered, tokens), last = text, len(text.rendered.messages) - 1
    ends = _ends_of_turn(chat, tokens.ids, content.stop, len(tokens.ids))
    whole = rendered.messages[last].get("tool_calls")  # these follow the content, perhaps between special tokens
    if whole and not rendered.writes_calls(last):
        raise Rejected(
            "the chat template leaves out the tool calls of the last turn: give another --chat_template, or take "
            "them out"
        )
    ranges = [range(content.start, ends[-1 if whole else 0] + 1)]
    if options.train_turns == "all":
        earlier = [turn for turn in range(last) if _speaks(rendered, turn)]
        end = tokens.ids[ranges[0].stop - 1]
        ranges += [_earlier_turn(chat, text, turn, end) for turn in earlier]
    return ranges


def _speaks(rendered: Rendered, turn: int) -> bool:
    """Whether a turn is the assistant's and there is something in it to learn: text, or calls that the template
    writes."""
    message = rendered.messages[turn]
    calls = message.get("tool_calls") and not message["content"].strip()
    return message["role"] == "assistant" and bool(
        message["content"].strip() or (calls and rendered.writes_calls(turn))
    )


def _earlier_turn(chat: ChatFormat, text: _Text, turn: int, end: int) -> range:
    """From its content to its end of turn; behind calls, which special tokens may part, that is the last turn's."""
    content, following = _content_tokens(text, text.rendered.content(turn)), text.rendered.span(turn + 1)
    limit = text.tokens.first_from(following[0]) if following else len(text.tokens.ids)
    places = _ends_of_turn(chat, text.tokens.ids, content.stop, limit)
    calls = text.rendered.messages[turn].get("tool_calls")
    ends = [place for place in places if text.tokens.ids[place] == end] if calls else []
    return range(content.start, (ends or places)[0] + 1)


def _ends_of_turn(chat: ChatFormat, ids: list[int], start: int, stop: int) -> list[int]:
    """Places of special tokens after a content: the first ends its turn. Raises Rejected where there is none."""
    places = [place for place in range(start, stop) if ids[place] in chat.stop_ids]
    if not places:
        token = chat.likely_end_of_turn(ids[start:stop])
        raise Rejected(f"the chat template writes no end-of-turn token after the answer: give --end_of_turn '{token}'")
    return places


def _labels(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: list[range], options: Encoding) -> list[int]:
    labels = list(ids) if options.train_all else [IGNORED] * len(ids)
    for turn in trained:
        labels[turn.start : turn.stop] = ids[turn.start : turn.stop]
    if options.unlabelled_end:
        labels = [IGNORED if label == tokenizer.pad_token_id else label for label in labels]
    return labels


def _content_stops(text: str, tokens: Tokens, chars: list[Span], spans: list[Span]) -> list[int]:
    """Example.contents. A step whose content lies in its neighbour's token has a separator only: its first token."""
    stops = []
    for (start, end), (first, stop) in zip(chars, spans, strict=True):
        content_end = start + len(text[start:end].rstrip())
        stops.append(max(tokens.first_from(content_end), min(first + 1, stop)))
    return stops


def _user_span(rendered: Rendered, tokens: Tokens) -> Span | None:
    """Tokens that lie wholly inside the last user turn's content."""
    turn = last_user_turn(rendered.messages)
    content = None if turn is None else rendered.span(turn)
    return tokens.inside(*content) if content else None


def last_user_turn(messages: Sequence[Message]) -> int | None:
    """Its index; None where there is none."""
    turns = (turn for turn in range(len(messages) - 1, -1, -1) if messages[turn]["role"] == "user")
    return next(turns, None)


def _turns(chat: ChatFormat, conversations: Sequence[Conversation], options: Encoding) -> dict[int, Turns]:
    """The last user turn and the answer alone, of each conversation that has them."""
    questions = enumerate(last_user_turn(row.messages) for row in conversations)
    asked = {place: conversations[place].messages[turn] for place, turn in questions if turn is not None}
    users = _alone(chat, asked, options)
    answers = _alone(chat, {place: conversations[place].messages[-1] for place in users}, options)
    return {place: Turns(users[place], answer) for place, answer in answers.items()}


def _alone(chat: ChatFormat, messages: Mapping[int, Message], options: Encoding) -> dict[int, Turn]:
    """Each message as a conversation of its own; without empty ones and those that the template rewrites."""
    lone = {place: Conversation([chat.accepted_alone(message)], []) for place, message in messages.items()}
    texts = zip(lone, _texts(chat, lone.values(), options), strict=True)
    turns = {place: _turn(text) for place, text in texts if isinstance(text, _Text)}
    return {place: turn for place, turn in turns.items() if turn}


def _turn(text: _Text) -> Turn | None:
    content = text.rendered.span(0)
    span = text.tokens.holding(*content) if content else None
    return Turn(text.tokens.ids, span) if span else None


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
