"""What a chat template does with conversations that their owner may not expect."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from step_jepa.data.conversations import Conversation
from step_jepa.data.records import Message
from step_jepa.data.rendering import placeholder, rendered
from step_jepa.data.template import SYSTEM_TO_USER
from step_jepa.errors import say_once

# What templates call the switches that change how an answer begins
_SWITCHES = [{name: value} for name in ("enable_thinking", "thinking") for value in (False, True)]


def say_what_is_special(tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Conversation]) -> None:
    """What the template does with conversations like these that their owner may not expect, each said once. Looked at
    is the first of each succession of roles, with and without tools and calls."""
    seen: set[tuple[Any, ...]] = set()
    for conversation in conversations:
        turns = [(message["role"], bool(message.get("tool_calls"))) for message in conversation.messages]
        kind = (*turns, bool(conversation.tools))
        if kind not in seen:
            seen.add(kind)
            _say_what_is_special(tokenizer, conversation)


def _say_what_is_special(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> None:
    messages = conversation.messages
    system = messages[0]["role"] == "system"
    if system and SYSTEM_TO_USER in str(tokenizer.chat_template):
        say_once("the chat template takes no system turn: its text is put before the first user turn's")
    elif system and _leaves_out_system(tokenizer, messages):
        say_once("the chat template leaves out the system turn: give another --chat_template, or take it out")
    if sum(message["role"] == "assistant" for message in messages) > 1:
        say_once("some rows have several assistant turns: --train_turns last trains the last of each, all trains all")
    for what in _left_out_of_tools(tokenizer, conversation):
        say_once(f"the chat template leaves out {what}, which is not trained: give another --chat_template")
    if (difference := prompt_difference(tokenizer, conversation)) is not None:
        say_once(difference)


def _leaves_out_system(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> bool:
    system, *turns = messages
    word = placeholder(0, thinks=False)
    return word not in (rendered(tokenizer, [{**system, "content": word}, *turns]) or word)


def _left_out_of_tools(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Iterator[str]:
    """What can be taken away without a change of the text."""
    messages, tools = conversation.messages, conversation.tools
    text = rendered(tokenizer, messages, tools=tools)
    if tools and text == rendered(tokenizer, messages):
        yield "`tools`"
    without = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in messages]
    if without != messages and text == rendered(tokenizer, without, tools=tools):
        yield "tool calls"


def prompt_difference(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str | None:
    """What precedes the answer in training, where that is not the prompt that the template gives other engines, and the
    switch that mends it. None where they are equal, but for spaces at the end."""
    prefixes = _prefixes(tokenizer, conversation)
    if prefixes is None or prefixes[0] == prefixes[1]:
        return None
    trained, prompt = prefixes
    while trained[:1] == prompt[:1]:
        trained, prompt = trained[1:], prompt[1:]
    switch = mending_switch(tokenizer, conversation)
    remedy = f": --chat_template_kwargs '{json.dumps(switch)}' makes them equal" if switch else ""
    return f"answers are trained behind {trained!r} where other engines prompt with {prompt!r}{remedy}"


def mending_switch(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> dict[str, bool] | None:
    """The argument of the template with which training and other engines have the same before the answer, if any."""
    return next((switch for switch in _SWITCHES if _mends(tokenizer, conversation, switch)), None)


def _mends(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, switch: dict[str, bool]) -> bool:
    prefixes = _prefixes(tokenizer, conversation, **switch)
    return prefixes is not None and prefixes[0] == prefixes[1]


def _prefixes(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **switch: bool) -> tuple[str, str] | None:
    """What stands before the answer of a conversation, and the generation prompt; None where the template refuses."""
    *turns, last = conversation.messages
    answer = placeholder(len(turns), thinks=False)
    whole = rendered(tokenizer, [*turns, {**last, "content": answer}], tools=conversation.tools, **switch)
    prompt = rendered(tokenizer, turns, tools=conversation.tools, add_generation_prompt=True, **switch)
    if whole is None or prompt is None or answer not in whole:
        return None
    return whole.partition(answer)[0].rstrip(" "), prompt.rstrip(" ")
