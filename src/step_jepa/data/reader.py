"""One raw record on its way: its columns, the turns before the answer, and what is said of it in the end."""

from typing import Any

from step_jepa.data.columns import CONTEXT, OPTIONS, QUESTION, SYSTEM, Columns, refuse_wrong
from step_jepa.data.records import (
    NOT_USED,
    Answer,
    Message,
    RawRecord,
    ReadArguments,
    Reading,
    Record,
    cut_into_steps,
    required_text,
    required_texts,
)
from step_jepa.data.turns import is_turns, required_messages, tools_of

EARLIER_TURNS = "with earlier assistant turns: steps are those of the last"
SYSTEM_ADDED = "system turn added (--system_prompt)"
TAGS = "tags of thinking or answer left out, a blank line between the two"
BESIDE = "thinking that stands apart put before the answer, a blank line between the two"
WHITESPACE = "whitespace around the answer left out"


class Reader:
    """One record on its way: its columns, and what is said of it in the end."""

    def __init__(self, raw: RawRecord, args: ReadArguments) -> None:
        self.columns, self.args = Columns(raw), args
        self.notes: list[str] = []
        refuse_wrong(self.columns)

    def reading(self, record: Record) -> Reading:
        """The record, with what became of the columns."""
        if isinstance(self.columns.raw.get("template"), int):
            self.columns.take("template", "template")
        if tools := self.columns.find(["tools"]):
            record["tools"] = tools_of(self.columns.take(tools, "tools"))
        turns = [message["role"] for message in record["messages"][:-1]]
        notes = [*self.notes, *([EARLIER_TURNS] if "assistant" in turns else [])]
        return Reading(record, self.columns.used, [*notes, *[NOT_USED + key for key in self.columns.ignored()]])

    def question(self) -> list[Message]:
        """The turns before the answer."""
        key = self.columns.find(QUESTION) or QUESTION[0]
        value = self.columns.take(key, "question")
        if is_turns(value):
            return self.with_system(required_messages(self.columns.raw, key), add=False)
        parts = [required_text(self.columns.raw, key).strip(), *self._beside(key)]
        for name in CONTEXT:
            if found := self.columns.find([name]):
                parts.insert(0, self.columns.take_text(found, "question, before it").strip())
        return self.with_system([{"role": "user", "content": "\n\n".join(parts)}], add=True)

    def _beside(self, key: str) -> list[str]:
        """Alpaca's input, and the options of a question."""
        parts = []
        beside = self.columns.find(["input"])
        if beside and key.lower() == "instruction":
            parts.append(self.columns.take_text(beside, "question, after it").strip())
        if options := self.columns.find(OPTIONS):
            parts.append(_options(self.columns.take(options, "question, after it"), options))
        return parts

    def with_system(self, turns: list[Message], *, add: bool) -> list[Message]:
        """The turns behind the record's system text, or the one that is asked for where `add`."""
        if turns[0]["role"] in ("system", "developer"):
            return turns
        key = self.columns.find(SYSTEM)
        given = self.columns.take_text(key, "system turn") if key else ""
        if add and not given and self.args.system_prompt:
            self.notes.append(SYSTEM_ADDED)
            given = self.args.system_prompt
        return [{"role": "system", "content": given}, *turns] if given else turns

    def cut(self, text: str, thinking: str = "") -> Answer:
        """The answer, with a note of what is left out around it."""
        answer = cut_into_steps(text, self.args, thinking)
        if thinking.strip():
            self.notes.append(BESIDE)
        elif answer.content != text:
            self.notes.append(WHITESPACE if answer.content == text.strip() else TAGS)
        return answer


def _options(options: Any, key: str) -> str:
    texts = [options] if isinstance(options, str) else required_texts({key: options}, key)
    return "\n".join(text.strip() for text in texts)
