"""Which tokens of a conversation the language model learns."""

from transformers import PreTrainedTokenizerBase

from step_jepa.data.encoding import Encoding
from step_jepa.data.example import IGNORED
from step_jepa.data.raw_record import Rejected
from step_jepa.data.rendering import ChatFormat, Rendered
from step_jepa.data.step_spans import TokenisedText, content_tokens


def trained_tokens(chat: ChatFormat, text: TokenisedText, content: range, options: Encoding) -> list[range]:
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


def _earlier_turn(chat: ChatFormat, text: TokenisedText, turn: int, end: int) -> range:
    """From its content to its end of turn; behind calls, which special tokens may part, that is the last turn's."""
    content, following = content_tokens(text, text.rendered.content(turn)), text.rendered.span(turn + 1)
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


def labels_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: list[range], options: Encoding) -> list[int]:
    labels = list(ids) if options.train_all else [IGNORED] * len(ids)
    for turn in trained:
        labels[turn.start : turn.stop] = ids[turn.start : turn.stop]
    if options.unlabelled_end:
        labels = [IGNORED if label == tokenizer.pad_token_id else label for label in labels]
    return labels
