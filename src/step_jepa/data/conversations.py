"""A record as the conversation that is encoded: its turns as text, the steps of the last one, and its tools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from step_jepa.data.records import Message
from step_jepa.data.steps import split

# What chat templates read as the chain of thought of a turn
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """What is encoded.

    messages  the turns, whose contents are text; the last is the assistant's
    steps     its content, cut
    tools     what the chat template is given as `tools`; None where there are none
    """

    messages: list[Message]
    steps: list[str]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Refused:
    """Why there is no example of a record."""

    reason: str


def to_conversation(record: Mapping[str, Any]) -> Conversation | Refused:
    """The conversation of a record with `messages`, and with `steps` and `tools` where it has them.

    Parts of text are joined; the content of a turn with nothing but tool calls is empty."""
    turns = record.get("messages")
    if turns is None or not len(turns):
        return Refused("`messages` must be turns whose `content` is text")
    messages = [_without_null(turn) for turn in turns]
    if not all(map(_is_turn, messages)):
        return Refused("`messages` must be turns whose `content` is text")
    last = messages[-1]
    if last["role"] != "assistant" or not last["content"].strip():
        return Refused("`messages` must end with an assistant turn that says something")
    unread = next((key for key in REASONING_KEYS if last.get(key)), None)
    if unread:
        return Refused(f"{unread} would be read but not trained: run step-jepa prepare")
    steps = record.get("steps")
    try:
        tools = _tools(record.get("tools"))
    except ValueError:
        return Refused("`tools` is not a list, or JSON of one")
    return Conversation(messages, list(steps) if steps else split(last["content"]), tools)


def _is_turn(message: Message) -> bool:
    return isinstance(message.get("role"), str) and isinstance(message["content"], str)


def _without_null(turn: Mapping[str, Any]) -> Message:
    """The turn without keys that hold nothing, as a table has them for turns of another kind; its content as text."""
    message = {key: value for key, value in turn.items() if value is not None}
    if not isinstance(message.get("content"), str):
        message["content"] = _joined(message.get("content", "" if message.get("tool_calls") else None))
    return message


def _joined(content: Any) -> Any:
    """Parts of text as one text; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else content


def _tools(tools: Any) -> list[Any] | None:
    """Tools as a list; many data sets have them as JSON. Raises ValueError."""
    parsed = json.loads(tools) if isinstance(tools, str) and tools else tools
    if parsed is None or not len(parsed):
        return None
    if isinstance(parsed, str | Mapping):
        raise ValueError(parsed)
    return list(parsed)
