"""A record as the conversation that is encoded: its turns as text, the steps of the last one, and its tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from step_jepa.data.raw_record import Rejected, plain, required_texts
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.records import Message, Reading
from step_jepa.data.steps import split
from step_jepa.data.turns import REASONING, required_messages, tools_of


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


def to_conversation(record: Mapping[str, Any], reading: ReadingOptions = ReadingOptions()) -> Conversation:  # noqa: B008
    """The conversation of a record with `messages`, and with `steps` and `tools` where it has them; without `steps` it
    is cut as `reading` says. Raises Rejected."""
    raw = record if isinstance(record, Reading) else plain(record)
    messages = required_messages(raw, "messages")
    last = messages[-1]
    if last["role"] != "assistant" or not last["content"].strip():
        raise Rejected("`messages` must end with an assistant turn that says something")
    for key in REASONING:
        if last.get(key):
            raise Rejected(f"{key} would be read but not trained: run step-jepa prepare")
    steps = required_texts(raw, "steps") if raw.get("steps") else _steps(last["content"], reading)
    return Conversation(messages, steps, (raw.get("tools") and tools_of(raw["tools"])) or None)


def _steps(text: str, reading: ReadingOptions) -> list[str]:
    return split(text, reading.split_by, reading.min_step_tokens)


def last_user_turn(messages: Sequence[Message]) -> int | None:
    """Its index; None where there is none."""
    turns = (turn for turn in range(len(messages) - 1, -1, -1) if messages[turn]["role"] == "user")
    return next(turns, None)
