"""Conversation -> ids, labels and step spans, by the character offsets of the tokens in the rendered text."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation, last_user_turn
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import Example, Turn, Turns
from step_jepa.data.labels import labels_of, trained_tokens
from step_jepa.data.offsets import Span, Tokens, tokenised
from step_jepa.data.raw_record import Rejected
from step_jepa.data.records import Message
from step_jepa.data.rendering import ChatFormat, Rendered, render_rows
from step_jepa.data.step_spans import (
    TokenisedText,
    content_stops,
    content_tokens,
    shifted,
    step_characters,
    step_tokens,
)
from step_jepa.data.steps import answer_step
from step_jepa.errors import UserError


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    options: Encoding = Encoding(),  # noqa: B008 - it is frozen
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
    options: Encoding = Encoding(),  # noqa: B008 - it is frozen
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


def _texts(
    chat: ChatFormat, conversations: Collection[Conversation], options: Encoding
) -> Iterator[TokenisedText | Rejected]:
    """Each conversation as text and tokens, or why the template refuses it."""
    rows = render_rows(chat, [(row.messages, row.tools) for row in conversations])
    texts = [row.text for row in rows if isinstance(row, Rendered)]
    tokens = tokenised(chat.tokenizer, texts, double_bos=options.double_bos)
    for row in rows:
        yield TokenisedText(row, next(tokens)) if isinstance(row, Rendered) else row


def _example_or_rejected(
    chat: ChatFormat, row: Conversation, text: TokenisedText | Rejected, turns: Turns | None, options: Encoding
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
    text: TokenisedText,
    turns: Turns | None,
    options: Encoding,
) -> Example:
    """Raises Rejected."""
    messages, (rendered, tokens) = conversation.messages, text
    if messages[-1]["role"] != "assistant":
        raise Rejected("the last turn is not the assistant's: there is nothing to train on")
    chat.refuse_special_tokens(messages, conversation.tools)
    answer = rendered.content(len(messages) - 1)
    content = content_tokens(text, answer)
    chars = shifted(step_characters(rendered.text[slice(*answer)], conversation.steps), answer[0])
    spans = step_tokens(text, content, chars)
    return Example(
        text=rendered.text,
        input_ids=tokens.ids,
        labels=labels_of(chat.tokenizer, tokens.ids, trained_tokens(chat, text, content, options), options),
        steps=spans,
        chars=chars,
        user=_user_span(rendered, tokens),
        contents=content_stops(rendered.text, tokens, chars, spans),
        answer=answer_step([step.strip() for step in conversation.steps]),
        turns=turns,
    )


def _user_span(rendered: Rendered, tokens: Tokens) -> Span | None:
    """Tokens that lie wholly inside the last user turn's content."""
    turn = last_user_turn(rendered.messages)
    content = None if turn is None else rendered.span(turn)
    return tokens.inside(*content) if content else None


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
    turns = {place: _turn(text) for place, text in texts if isinstance(text, TokenisedText)}
    return {place: turn for place, turn in turns.items() if turn}


def _turn(text: TokenisedText) -> Turn | None:
    content = text.rendered.span(0)
    span = text.tokens.holding(*content) if content else None
    return Turn(text.tokens.ids, span) if span else None
