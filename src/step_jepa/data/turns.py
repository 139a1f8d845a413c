"""Turns and tools, as data sets write them -> as chat templates read them: turns with `role` and `content`, a text."""

import json
from typing import Any

from step_jepa.data.raw_record import RawRecord, Rejected, column
from step_jepa.data.records import Message

TURNS = ("messages", "conversations", "conversation")
REASONING = ("reasoning_content", "reasoning", "thinking")  # what templates read as the thinking of a turn
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"} | {
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
_WANTED = "give turns, each with role and content, both text"
_NAMES = {"from": "role", "value": "content"}  # ShareGPT's


def required_messages(raw: RawRecord, key: str) -> list[Message]:
    """The turns under a key. Raises Rejected where there are none."""
    turns = column(raw, key)
    if not isinstance(turns, list) or not turns:
        raise Rejected(f"{key} is not a list of turns: {_WANTED}")
    return [_message(turn, f"{key}, turn {number}") for number, turn in enumerate(turns, 1)]


def answered(turns: list[Message]) -> list[Message]:
    """The turns, whose last is the assistant's. Raises Rejected."""
    if turns[-1]["role"] != "assistant":
        raise Rejected(f"last turn is not the assistant's: {turns[-1]['role']}")
    return turns


def is_turns(value: Any) -> bool:
    """Whether a column holds turns, and not a text."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def thinking_beside(message: Message) -> str:
    """What the turn thinks apart from what it says, under whatever key. Raises Rejected."""
    thoughts = {key: message[key] for key in REASONING if message.get(key)}
    if not all(isinstance(thought, str) for thought in thoughts.values()):
        raise Rejected(f"{' and '.join(thoughts)} is not text")
    if len({thought.strip() for thought in thoughts.values()}) > 1:
        raise Rejected(f"thinking is given twice: {' and '.join(thoughts)}")
    return next(iter(thoughts.values()), "")


def tools_of(tools: Any) -> list[Any]:
    """Those that the conversation may call; data sets write them as JSON, too. Raises Rejected."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise Rejected(f"tools is neither a list nor the JSON of one: {error}") from error
    if not isinstance(tools, list):
        raise Rejected("tools is not a list")
    return tools


def _message(turn: Any, where: str) -> Message:
    """One turn. A table of turns holds null where a turn lacks a key that another has."""
    if not isinstance(turn, dict):
        raise Rejected(f"{where}: {_WANTED}")
    names = _NAMES if "role" not in turn and "from" in turn else {}
    message: Message = {str(names.get(key, key)): value for key, value in turn.items() if value is not None}
    content = message.get("content", "" if message.get("tool_calls") else None)
    message["content"] = _joined(content, where) if isinstance(content, list) else content
    if not isinstance(message.get("role"), str) or not isinstance(message["content"], str):
        raise Rejected(f"{where}: {_WANTED}")
    role = message["role"].lower()
    return {**message, "role": _ROLES.get(role, message["role"])}


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content that is given in parts. Raises Rejected for a picture or a sound."""
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Rejected(f"{where}, holds a part that is not text: {_WANTED}")
    return "".join(texts)
