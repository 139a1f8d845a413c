"""Conversation -> text, by the tokenizer's chat template; and where in the text the content of a turn lies."""

import re
from itertools import pairwise
from typing import NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from step_jepa.data.offsets import Span
from step_jepa.data.records import Message
from step_jepa.errors import UserError

# A chat template without any framing, for base models: the contents of the turns, one to a line, and eos at the end.
PLAIN_TEMPLATE = (
    "{{ messages | map(attribute='content') | join('\n') }}{{ '\n' if add_generation_prompt else eos_token }}"
)

# Two words that no real conversation holds: rendered in place of a turn, they show where its content lies.
_PLACEHOLDER, _THOUGHT = "c0ntent9b1f7e5d", "th0ught9b1f7e5d"
_THINKING = re.compile(r"<think>\n.*\n</think>\n\n", re.DOTALL)


class RenderedTurn(NamedTuple):
    """A rendered conversation, and the characters `start` to `stop` (half-open) that are the content of one turn."""

    text: str
    start: int
    stop: int


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], where: str = "example") -> str:
    """The conversation as one string, by the tokenizer's chat template.

    Args:
        tokenizer: any with a chat template.
        messages: all turns.
        where: what the conversation is called in messages to the user.

    Raises:
        UserError: there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template: use an instruct model, or --plain, "
            "or save a chat_template with the tokenizer"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        raise UserError(f"{where}: the chat template refuses this conversation ({error}): change its turns") from error


def locate(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], turn: int, where: str = "example"
) -> RenderedTurn:
    """The rendered conversation, and where the content of one of its turns lies.

    The place is found with a placeholder, never by looking for the content's own words, which also occur in prompts
    and headers.

    Args:
        tokenizer: any with a chat template.
        messages: all turns.
        turn: the index of the one that is looked for.
        where: what the conversation is called in messages to the user.

    Raises:
        UserError: the template writes something else than the content, or `render` fails.
    """
    message = messages[turn]
    placeholder, remedy = _PLACEHOLDER, "strip the content, or change the template"
    if _THINKING.match(message["content"]):
        # Templates treat a think block in their own way, so the placeholder must have one, too.
        placeholder = f"<think>\n{_THOUGHT}\n</think>\n\n{_PLACEHOLDER}"
        remedy = "prepare the data without --keep_thinking"
    frame_messages = list(messages)
    frame_messages[turn] = {**message, "content": placeholder}
    text, frame = render(tokenizer, messages, where), render(tokenizer, frame_messages, where)
    head, placed, tail = frame.partition(placeholder)
    if not placed or text != head + message["content"] + tail:
        raise UserError(f"{where}: the chat template rewrites the content of the {message['role']} turn: {remedy}")
    return RenderedTurn(text, len(head), len(head) + len(message["content"]))


def step_characters(content: str, steps: list[str], where: str = "example") -> list[Span]:
    """Where each step begins and ends in the content, its closing separator included. The spans tile the content.

    Raises UserError where the steps are not the content, in order, with only whitespace between."""
    starts, position = [], 0
    for number, step in enumerate(steps):
        position = _skip_whitespace(content, position)
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


def _skip_whitespace(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())


def refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[Message], where: str) -> None:
    """A turn that spells a special token would end there, or forge another turn. Raises UserError."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for message in messages:
        spelt = next((token for token in special if token in message["content"]), None)
        if spelt:
            raise UserError(f"{where}: the {message['role']} turn holds the special token {spelt}: take it out")


def last_user_turn(messages: list[Message]) -> int | None:
    """Its index; None where there is none."""
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "user"]
    return turns[-1] if turns else None


def alone(tokenizer: PreTrainedTokenizerBase, message: Message) -> Message:
    """The message, as the user's where the template refuses a conversation of nothing else (Gemma's does)."""
    try:
        render(tokenizer, [message])
    except UserError:
        return {**message, "role": "user"}
    return message
