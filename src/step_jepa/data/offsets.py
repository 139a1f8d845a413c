"""Text -> token ids with the characters of each; and from spans of characters to spans of tokens.

All spans are half-open.
"""

from bisect import bisect_left
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from step_jepa.errors import UserError

Span = tuple[int, int]
_NOT_IN_TEXT: Span = (-1, -1)  # before the text, so that no span takes it in


class Tokens(NamedTuple):
    """A text as tokens.

    ids      of each token
    offsets  its first character and the one after its last, whitespace included; (-1, -1) where it is not of the text
    """

    ids: list[int]
    offsets: list[Span]

    def first_from(self, character: int) -> int:
        """Index of the first token that begins at the character or after it."""
        return bisect_left(self.offsets, character, key=_start)

    def inside(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that lies wholly between the characters; None where there is none."""
        places = [
            place for place, (begin, end) in enumerate(self.offsets) if start <= begin and end <= stop and begin < end
        ]
        return (places[0], places[-1] + 1) if places else None

    def holding(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that holds any of the characters; None where there is none."""
        places = [place for place, (begin, end) in enumerate(self.offsets) if max(begin, start) < min(end, stop)]
        return (places[0], places[-1] + 1) if places else None


def _start(offset: Span) -> int:
    return offset[0]


def tokenised(tokenizer: PreTrainedTokenizerBase, text: str, *, double_bos: bool = False) -> Tokens:
    """The text as it is, without special tokens of the tokenizer's own.

    Args:
        tokenizer: a fast one.
        text: a rendered conversation.
        double_bos: put the tokenizer's own leading special tokens in front.

    Raises:
        UserError: the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path or 'the tokenizer'} gives no character offsets: use its fast version")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, end = encoding["input_ids"], [], 0
    for token, (start, stop) in zip(ids, encoding["offset_mapping"], strict=True):
        if start > end:  # the tokenizer trims whitespace from offsets: a token gets back the part that it begins with
            start = max(end, start - _leading_whitespace(tokenizer, token))
        offsets.append((start, stop))
        end = max(end, stop)
    special = _leading_special(tokenizer, text) if double_bos else []
    return Tokens(special + ids, [_NOT_IN_TEXT] * len(special) + offsets)


def _leading_whitespace(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    piece = str(tokenizer.decode([token]))
    return len(piece) - len(piece.lstrip())


def _leading_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens that the tokenizer by itself puts before a text."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    return encoding["input_ids"][: encoding["special_tokens_mask"].index(0)]
