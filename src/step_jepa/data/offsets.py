"""Text -> token ids with the characters of each; and from spans of characters to spans of tokens.

All spans are half-open.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from operator import gt
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from step_jepa.errors import UserError

Span = tuple[int, int]
_NOT_IN_TEXT = -1  # before the text, so that no span takes it in


class Tokens(NamedTuple):
    """A text as tokens.

    ids     of each token
    starts  its first character, whitespace included; -1 where it is not of the text
    stops   the one after its last; likewise
    """

    ids: list[int]
    starts: Sequence[int]
    stops: Sequence[int]

    def first_from(self, character: int) -> int:
        """Index of the first token that begins at the character or after it."""
        return bisect_left(self.starts, character)

    def inside(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that lies wholly between the characters; None where there is none."""
        first, last = self.first_from(start), self.first_from(stop) - 1
        while first <= last and not self.starts[first] < self.stops[first] <= stop:
            first += 1
        while first <= last and not self.starts[last] < self.stops[last] <= stop:
            last -= 1
        return (first, last + 1) if first <= last else None

    def holding(self, start: int, stop: int) -> Span | None:
        """From the first to the last token that holds any of the characters; None where there is none."""
        places = [
            place
            for place, (begin, end) in enumerate(zip(self.starts, self.stops, strict=True))
            if max(begin, start) < min(end, stop)
        ]
        return (places[0], places[-1] + 1) if places else None


def tokenised(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, double_bos: bool = False
) -> Iterator[Tokens]:
    """The texts as they are, without special tokens of the tokenizer's own; in one call, and read one by one.

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
        return
    batch = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    assert batch.encodings is not None
    special = _leading_special(tokenizer, texts[0]) if double_bos else []
    outside = (_NOT_IN_TEXT,) * len(special)
    for ids, encoding in zip(batch["input_ids"], batch.encodings, strict=True):
        # Taken from the encoding one by one: a whole batch of offsets is a million small objects to collect.
        starts, stops = _spans(tokenizer, ids, encoding.offsets)
        yield Tokens([*special, *ids], (*outside, *starts), (*outside, *stops))


def _spans(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[Span]
) -> tuple[Sequence[int], Sequence[int]]:
    """Where tokens start and stop. Some tokenizers trim whitespace from offsets: a token gets back the part that it
    begins with."""
    starts, stops = zip(*offsets, strict=True) if offsets else ((), ())
    if not any(map(gt, starts, (0, *stops))):
        return starts, stops
    whole, end = [], 0
    for token, start, stop in zip(ids, starts, stops, strict=True):
        if start > end:
            start = max(end, start - _leading_whitespace(tokenizer, token))
        whole.append(start)
        end = max(end, stop)
    return whole, stops


def _leading_whitespace(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    piece = str(tokenizer.decode([token]))
    return len(piece) - len(piece.lstrip())


def _leading_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens that the tokenizer by itself puts before a text."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    return encoding["input_ids"][: encoding["special_tokens_mask"].index(0)]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], names: Mapping[int, str] = {}) -> list[str]:
    """The text of each token. It is decoded behind another, as SentencePiece drops the space that a text begins with.

    Args:
        tokenizer: the one that made them.
        ids: of the tokens.
        names: texts of tokens that the tokenizer does not know.
    """
    before = tokenizer.encode("a", add_special_tokens=False)
    start = len(str(tokenizer.decode(before)))
    return [names[token] if token in names else str(tokenizer.decode([*before, token]))[start:] for token in ids]
