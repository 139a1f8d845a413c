"""Conversation -> ids, labels and step spans, by the character offsets of the tokens in the rendered text.

All spans are half-open. A token belongs to the step that holds its first character; a separator belongs to the step
that it closes; the steps tile the trained content without gap or overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation, Refused
from step_jepa.data.offsets import Span as Span  # the type of this module's spans
from step_jepa.data.offsets import Tokens, tokenised
from step_jepa.data.records import Message
from step_jepa.data.steps import answer_step
from step_jepa.data.template import RenderedTurn, alone, last_user_turn, locate, refuse_special_tokens, step_characters
from step_jepa.errors import UserError

IGNORED = -100


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

    @property
    def filled_steps(self) -> list[int]:
        """Indices of the steps that have tokens of their own; a step may share its only token with its neighbour."""
        return [step for step, (start, stop) in enumerate(self.steps) if start < stop]

    def __post_init__(self) -> None:
        if not self.contents:
            object.__setattr__(self, "contents", [stop for _, stop in self.steps])


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation | Refused],
    options: Encoding = Encoding(),
) -> list[Example | Refused]:
    """Tokens, labels and step spans of conversations whose last turns, the assistant's, are trained.

    Args:
        tokenizer: a fast one, with a chat template.
        rows: as `to_conversation` makes them; what it refuses stays as it is.
        options: what else is encoded, and how.

    Returns:
        For each row its example, or why there is none: no boundary is ever guessed.

    Raises:
        UserError: the tokenizer has no chat template, or gives no offsets.
    """
    encoded: list[Example | Refused] = []
    for row in rows:
        if isinstance(row, Refused):
            encoded.append(row)
            continue
        try:
            encoded.append(encode(tokenizer, row.messages, row.steps, "", options))
        except UserError as error:
            encoded.append(Refused(str(error).removeprefix(": ")))
    return encoded


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    steps: list[str],
    where: str = "example",
    options: Encoding = Encoding(),
) -> Example:
    """Tokens, labels and step spans of a conversation whose last turn, the assistant's, is trained.

    Args:
        tokenizer: a fast one, with a chat template.
        messages: all turns.
        steps: the content of the last turn, cut.
        where: what the conversation is called in messages to the user.
        options: what else is encoded, and how.

    Raises:
        UserError: the boundaries could only be guessed.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last turn is not the assistant's: there is nothing to train on")
    refuse_special_tokens(tokenizer, messages, where)
    answer = locate(tokenizer, messages, len(messages) - 1, where)
    tokens = tokenised(tokenizer, answer.text, double_bos=options.double_bos)
    content = _content_tokens(tokens, answer, where)
    chars = _step_characters(answer, steps, where)
    spans = _step_tokens(tokens, content, chars)
    trained = range(content.start, _end_of_turn(tokenizer, tokens.ids, content.stop, where) + 1)
    return Example(
        text=answer.text,
        input_ids=tokens.ids,
        labels=_labels(tokenizer, tokens.ids, trained, options),
        steps=spans,
        chars=chars,
        user=_user_span(tokenizer, messages, tokens, where),
        contents=_content_stops(answer.text, tokens, chars, spans),
        answer=answer_step([step.strip() for step in steps]),
        turns=_turns(tokenizer, messages, options.double_bos) if options.turns else None,
    )


def _step_characters(answer: RenderedTurn, steps: list[str], where: str) -> list[Span]:
    """As `step_characters`, counted in the rendered text."""
    spans = step_characters(answer.text[answer.start : answer.stop], steps, where)
    return [(answer.start + start, answer.start + stop) for start, stop in spans]


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


def _content_tokens(tokens: Tokens, turn: RenderedTurn, where: str) -> range:
    """The tokens that begin inside the content. Raises UserError where one straddles its start."""
    first, stop = tokens.first_from(turn.start), tokens.first_from(turn.stop)
    begins_there = first < len(tokens.ids) and tokens.offsets[first][0] == turn.start
    if not begins_there or (first and tokens.offsets[first - 1][1] > turn.start):
        raise UserError(
            f"{where}: a token straddles the start of the assistant's content: strip the content, or end the "
            "template's header with a special token or a line break"
        )
    return range(first, stop)


def _step_tokens(tokens: Tokens, content: range, chars: list[Span]) -> list[Span]:
    """The token span of each step: a token belongs to the step that holds its first character."""
    inner_edges = [tokens.first_from(start) for start, _ in chars[1:]]
    return list(pairwise([content.start, *inner_edges, content.stop]))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], content_stop: int, where: str) -> int:
    """Index of the token that ends the turn: the first special token after the content."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for place in range(content_stop, len(ids)):
        if ids[place] in special:
            return place
    raise UserError(
        f"{where}: the chat template writes no end-of-turn token after the answer: let it end with eos_token"
    )


def _labels(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: range, options: Encoding) -> list[int]:
    places = range(len(ids)) if options.train_all else trained
    unlabelled = tokenizer.pad_token_id if options.unlabelled_end else None
    return [token if place in places and token != unlabelled else IGNORED for place, token in enumerate(ids)]


def _content_stops(text: str, tokens: Tokens, chars: list[Span], spans: list[Span]) -> list[int]:
    """Example.contents. A step whose content lies in its neighbour's token has a separator only: its first token."""
    stops = []
    for (start, end), (first, stop) in zip(chars, spans, strict=True):
        content_end = start + len(text[start:end].rstrip())
        stops.append(max(tokens.first_from(content_end), min(first + 1, stop)))
    return stops


def _user_span(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tokens: Tokens, where: str) -> Span | None:
    """Tokens that lie wholly inside the last user turn's content."""
    turn = last_user_turn(messages)
    if turn is None:
        return None
    try:
        user = locate(tokenizer, messages, turn, where)
    except UserError:
        return None
    return tokens.inside(user.start, user.stop)


def _turns(tokenizer: PreTrainedTokenizerBase, messages: list[Message], double_bos: bool) -> Turns | None:
    """The last user turn and the answer alone; None where there is no user turn, or either cannot be had."""
    place = last_user_turn(messages)
    user = None if place is None else _turn(tokenizer, messages[place], double_bos)
    assistant = _turn(tokenizer, messages[-1], double_bos)
    return Turns(user, assistant) if user and assistant else None


def _turn(tokenizer: PreTrainedTokenizerBase, message: Message, double_bos: bool) -> Turn | None:
    """The message as a conversation of its own; None where the template rewrites it, and where it has no token."""
    try:
        content = locate(tokenizer, [alone(tokenizer, message)], 0)
    except UserError:
        return None
    tokens = tokenised(tokenizer, content.text, double_bos=double_bos)
    span = tokens.holding(content.start, content.stop)
    return Turn(tokens.ids, span) if span else None


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
