"""Conversations -> text, by the tokenizer's chat template; and where in the text the content of each turn lies.

The place of a content is found with placeholders, never by looking for the content's own words, which also occur in
prompts and headers. A template frames all conversations of one shape alike, as a rule: so placeholders are rendered
once for each shape, and a row has been located where its text is that frame filled with its contents, character by
character. Where it is not, placeholders are rendered for the row itself.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from step_jepa.data.offsets import Span
from step_jepa.data.raw_record import Rejected
from step_jepa.data.records import Message
from step_jepa.errors import UserError

# Words that no real conversation holds: rendered in place of contents, they show where these lie.
_THOUGHT = "<think>\nth0ught9b1f7e5d\n</think>\n\n"
_PLACEHOLDER = re.compile(f"(?:{_THOUGHT})?c0ntent([0-9]+)x9b1f7e5d")
_THINKING = re.compile(r"<think>\n.*\n</think>\n\n", re.DOTALL)
_NAMED = {"role", "content"}
_MOST_SHAPES = 256  # that are remembered: tools can be others in each row

Shape = tuple[str, tuple[tuple[str, bool], ...]]  # the tools, and the role of each turn and whether it thinks


@dataclass(frozen=True)
class Frame:
    """A rendered conversation without its contents.

    literals  what the template writes before, between and behind them, one more than there are places
    turns     whose content each place holds
    """

    literals: list[str]
    turns: list[int]

    @classmethod
    def of(cls, text: str) -> "Frame":
        """The frame in which placeholders were rendered."""
        parts = _PLACEHOLDER.split(text)
        return cls(parts[::2], [int(turn) for turn in parts[1::2]])

    def places(self, text: str, contents: Sequence[str]) -> dict[int, Span] | None:
        """Where the content of each turn lies; None where the text is anything but the frame filled with them. Turns
        that have no place, or several, are left out."""
        spans: dict[int, Span] = {}
        parts, position = [self.literals[0]], len(self.literals[0])
        for turn, literal in zip(self.turns, self.literals[1:], strict=True):
            content = contents[turn]
            spans[turn] = (position, position + len(content))
            parts += (content, literal)
            position += len(content) + len(literal)
        if "".join(parts) != text:
            return None
        return {turn: spans[turn] for turn in self._once}

    @cached_property
    def _once(self) -> list[int]:
        return [turn for turn, places in Counter(self.turns).items() if places == 1]


class ChatFormat:
    """What of a tokenizer and its chat template is the same for all conversations; worked out once.

    special    finds special tokens in a text
    stop_ids   the tokens that can end a turn: the special ones
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = ref(tokenizer)  # which this is remembered for, as long as it lives
        added = tokenizer.added_tokens_decoder  # made anew at each access
        special = {token.content: id for id, token in added.items() if token.special}
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.stop_ids = {*special.values(), *tokenizer.all_special_ids}
        self._added = {id: token.content for id, token in added.items()}
        self._frames: dict[Shape, Frame | None] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "ChatFormat":
        """That of a tokenizer, as it is now. Raises UserError where it has no chat template."""
        if not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template: use an instruct model, or "
                "--plain, or give one by --chat_template"
            )
        state = (tokenizer.chat_template, tokenizer.all_special_tokens, len(tokenizer))
        known = _FORMATS.get(tokenizer)
        if known is None or known[0] != state:
            known = _FORMATS[tokenizer] = (state, cls(tokenizer))
        return known[1]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Whose this is."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None
        return tokenizer

    def render(self, messages: list[Message], tools: list[Any] | None = None, **arguments: Any) -> str:
        """The conversation as one string. Raises Rejected where the template refuses it."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **arguments)
        except TemplateSyntaxError as error:
            place = f"line {error.lineno} of the chat template"
            raise UserError(f"{place}: {error.message}: mend it, or give another --chat_template") from error
        except (TemplateError, TypeError) as error:
            remedy = "change its turns, or give another --chat_template"
            raise Rejected(f"the chat template refuses this conversation ({error}): {remedy}") from error
        return str(text)

    def accepted_alone(self, message: Message) -> Message:
        """The message, as the user's where the template refuses a conversation of nothing else (Gemma's does)."""
        shape = _shape([message], None)
        refused = shape and self.frame(shape) is None
        return {**message, "role": "user"} if refused else message

    def likely_end_of_turn(self, ids: Sequence[int]) -> str | None:
        """What may end turns, where these tokens follow an answer and none of them is special: one that the template
        writes there, else the tokenizer's end of text."""
        written = (self._added[id] for id in ids if self._added.get(id, "").strip())
        return next(written, self.tokenizer.eos_token)

    def frame(self, shape: Shape) -> Frame | None:
        """That of all conversations of a shape; None where the template refuses them."""
        if shape not in self._frames:
            if len(self._frames) == _MOST_SHAPES:
                self._frames.clear()
            self._frames[shape] = self._new_frame(shape)
        return self._frames[shape]

    def _new_frame(self, shape: Shape) -> Frame | None:
        tools, turns = shape
        messages = [
            {"role": role, "content": placeholder(turn, thinks=thinks)} for turn, (role, thinks) in enumerate(turns)
        ]
        try:
            return Frame.of(self.render(messages, json.loads(tools)))
        except Rejected:
            return None

    def refuse_special_tokens(self, messages: Sequence[Message], tools: list[Any] | None = None) -> None:
        """A turn that spells a special token would end there, or forge another turn. Raises Rejected."""
        for message in messages:
            self._refuse_special_tokens(message["content"], f"the {message['role']} turn")
            if message.keys() != _NAMED:
                others = {key: value for key, value in message.items() if key not in _NAMED}
                self._refuse_special_tokens(_as_json(others), f"the {message['role']} turn")
        if tools:
            self._refuse_special_tokens(_as_json(tools), "`tools`")

    def _refuse_special_tokens(self, text: str, name: str) -> None:
        spelt = self.special.search(text)
        if spelt:
            raise Rejected(f"{name} holds the special token {spelt[0]}: take it out")


_FORMATS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ChatFormat]] = WeakKeyDictionary()


class Rendered:
    """A rendered conversation.

    text      all of it
    messages  its turns
    """

    def __init__(self, chat: ChatFormat, messages: list[Message], tools: list[Any] | None, text: str) -> None:
        self.text, self.messages = text, messages
        self._chat, self._tools = chat, tools

    def span(self, turn: int) -> Span | None:
        """The characters that are the content of a turn; None where the template writes something else, or elsewhere
        once more."""
        return self._located(turn) if self._places is None else self._places.get(turn)

    def content(self, turn: int) -> Span:
        """The same. Raises Rejected where there is no such place."""
        span = self.span(turn)
        if span is None:
            message = self.messages[turn]
            thinks = _thinks(message["content"])
            remedy = (
                "prepare the data without --keep_thinking"
                if thinks
                else "strip the content, or give another --chat_template"
            )
            raise Rejected(f"the chat template rewrites the content of the {message['role']} turn: {remedy}")
        return span

    def writes_calls(self, turn: int) -> bool:
        """Whether the template writes the tool calls of a turn that has some."""
        bare = {key: value for key, value in self.messages[turn].items() if key != "tool_calls"}
        try:
            without = self._chat.render([*self.messages[:turn], bare, *self.messages[turn + 1 :]], self._tools)
        except Rejected:  # as when a tool answers nobody
            return True
        return without != self.text

    @cached_property
    def _places(self) -> dict[int, Span] | None:
        """By the frame of the conversation's shape; None where that does not fit."""
        shape = _shape(self.messages, self._tools)
        frame = shape and self._chat.frame(shape)
        return frame.places(self.text, [message["content"] for message in self.messages]) if frame else None

    def _located(self, turn: int) -> Span | None:
        """By a frame of the conversation's own, in which this turn alone is a placeholder."""
        content = self.messages[turn]["content"]
        other = placeholder(turn, thinks=_thinks(content))
        messages = list(self.messages)
        messages[turn] = {**messages[turn], "content": other}
        try:
            head, placed, tail = self._chat.render(messages, self._tools).partition(other)
        except Rejected:
            return None
        found = placed and self.text == head + content + tail
        return (len(head), len(head) + len(content)) if found else None


def render_rows(chat: ChatFormat, rows: Sequence[tuple[list[Message], list[Any] | None]]) -> list[Rendered | Rejected]:
    """Each conversation, given as its turns and tools, rendered; or why the template refuses it."""
    texts = _texts(chat, rows)
    return [
        text if isinstance(text, Rejected) else Rendered(chat, messages, tools, text)
        for (messages, tools), text in zip(rows, texts, strict=True)
    ]


def _texts(chat: ChatFormat, rows: Sequence[tuple[list[Message], list[Any] | None]]) -> Sequence[str | Rejected]:
    """All in one call, where no row has tools and the template refuses none."""
    if rows and not any(tools for _, tools in rows):
        try:
            return list(chat.tokenizer.apply_chat_template([messages for messages, _ in rows], tokenize=False))
        except (TemplateError, TypeError):
            pass
    return [_text(chat, messages, tools) for messages, tools in rows]


def _text(chat: ChatFormat, messages: list[Message], tools: list[Any] | None) -> str | Rejected:
    try:
        return chat.render(messages, tools)
    except Rejected as reason:
        return reason


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **arguments: Any) -> str | None:
    """A conversation as one string; None where the template refuses it. Raises UserError where there is none."""
    try:
        return ChatFormat.of(tokenizer).render(messages, **arguments)
    except Rejected:
        return None


def placeholder(turn: int, *, thinks: bool) -> str:
    """What stands for the content of a turn. Templates treat a think block in their own way: it has one, too."""
    return f"{_THOUGHT if thinks else ''}c0ntent{turn}x9b1f7e5d"


def _thinks(content: str) -> bool:
    return content.startswith("<think>") and _THINKING.match(content) is not None


def _shape(messages: list[Message], tools: list[Any] | None) -> Shape | None:
    """What the frame of a conversation depends on; None where its turns hold more than role and content."""
    if not all(message.keys() == _NAMED for message in messages):
        return None
    return _as_json(tools), tuple((message["role"], _thinks(message["content"])) for message in messages)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
