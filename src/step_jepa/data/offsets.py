"""Text -> token ids with the characters of each; and from spans of characters to spans of tokens.

All spans are half-open.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
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
        return bisect_left(self.offsets, (character,))

    def inside(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that lies wholly between the characters; None where there is none."""
        return self._where(lambda begin, end: begin < end <= stop, self.first_from(start), self.first_from(stop))

    def holding(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that holds any of the characters; None where there is none."""
        return self._where(lambda begin, end: max(begin, start) < min(end, stop), 0, self.first_from(stop))

    def _where(self, wanted: Callable[[int, int], bool], first: int, stop: int) -> Span | None:
        """From the first to the last token of `first` to `stop` that is wanted; None where there is none."""
        begins = next((place for place in range(first, stop) if wanted(*self.offsets[place])), None)
        if begins is None:
            return None
        ends = next(place for place in range(stop - 1, begins - 1, -1) if wanted(*self.offsets[place]))
        return begins, ends + 1


def tokenised(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, double_bos: bool = False) -> list[Tokens]:
    """The texts as they are, without special tokens of the tokenizer's own.

    Args:
        tokenizer: a fast one.
        texts: rendered conversations.
        double_bos: put the tokenizer's own leading special tokens in front.

    Raises:
        UserError: the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path or 'the tokenizer'} gives no character offsets: use its fast version")
    if not texts:
        return []
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    special = _leading_special(tokenizer, texts[0]) if double_bos else []
    outside = [_NOT_IN_TEXT] * len(special)
    return [
        Tokens(special + ids, outside + _with_whitespace(tokenizer, ids, offsets))
        for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _with_whitespace(tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[Span]) -> list[Span]:
    """Some tokenizers trim whitespace from offsets: a token gets back the part that it begins with."""
    if not _has_gaps(offsets):
        return offsets
    whole, end = [], 0
    for token, (start, stop) in zip(ids, offsets, strict=True):
        if start > end:
            start = max(end, start - _leading_whitespace(tokenizer, token))
        whole.append((start, stop))
        end = max(end, stop)
    return whole


def _has_gaps(offsets: list[Span]) -> bool:
    end = 0
    for start, stop in offsets:
        if start > end:
            return True
        if stop > end:
            end = stop
    return False


def _leading_whitespace(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    piece = str(tokenizer.decode([token]))
    return len(piece) - len(piece.lstrip())


def _leading_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens that the tokenizer by itself puts before a text."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    return encoding["input_ids"][: encoding["special_tokens_mask"].index(0)]
