"""What steps have in common with the text before them, read off the text alone: words, numbers, TF-IDF, length.

A step's text is the characters of its tokens; its past is what stands before, from the user's question on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from step_jepa.data.example import Example
from step_jepa.data.offsets import Span
from step_jepa.pairing.equations import numbers
from step_jepa.pairing.probes import vectorizer

Array = NDArray[Any]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|\S")  # a number, a run of letters, or a sign


@dataclass(frozen=True)
class ExampleText:
    """An example and the characters of each of its tokens."""

    example: Example
    offsets: list[Span]

    @property
    def question_start(self) -> int:
        """Where the question begins; 0 where its place is not known."""
        return self.offsets[self.example.user[0]][0] if self.example.user else 0

    def step(self, step: int) -> str:
        start, stop = self.example.steps[step]
        return self.example.text[self.offsets[start][0] : self.offsets[stop - 1][1]]

    def past(self, step: int) -> str:
        return self.example.text[self.question_start : self.offsets[self.example.steps[step][0]][0]]

    def repeats(self) -> list[bool]:
        """For each token, whether all words that it is part of stand before its step; False outside of steps.

        A word counts as a whole: 72 is new where 7 and 2 stand. White space is never new."""
        first = _first_places(self.example.text, self.question_start)
        repeated = [False] * len(self.offsets)
        for start, stop in self.example.steps:
            step_start, _ = self.offsets[start]
            for token in range(start, stop):
                newest_word = max(first[slice(*self.offsets[token])], default=-1)
                repeated[token] = newest_word < step_start
        return repeated


def with_offsets(tokenizer: Any, example: Example) -> ExampleText:
    """The example with the characters that its tokens were made of."""
    encoding = tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True)
    return ExampleText(example, encoding["offset_mapping"])


def _first_places(text: str, start: int) -> list[int]:
    """For each character, where its word first stands in the text; -1 for white space and before `start`."""
    places, first = [-1] * len(text), dict[str, int]()
    for word in _WORD.finditer(text, start):
        place = first.setdefault(word[0].lower(), word.start())
        places[word.start() : word.end()] = [place] * len(word[0])
    return places


@dataclass(frozen=True)
class Overlap:
    """What is free, of S steps.

    tfidf     (S,) float: cosine of the step with its past, fitted on whole problems
    numbers   (S,) float: the share of the step's numbers that its past has; nan for a step without numbers
    """

    tfidf: Array
    numbers: Array


def overlap(texts: Sequence[ExampleText], problem: Sequence[int], step: Sequence[int]) -> Overlap:
    """Of steps texts[problem].step(step)."""
    places = list(zip(problem, step, strict=True))
    pasts = [texts[problem].past(step) for problem, step in places]
    steps = [texts[problem].step(step) for problem, step in places]
    fitted = vectorizer().fit([text.example.text[text.question_start :] for text in texts])
    tfidf = fitted.transform(pasts).multiply(fitted.transform(steps)).sum(1)
    return Overlap(np.asarray(tfidf).ravel(), np.array(list(map(_shared_numbers, pasts, steps))))


def _shared_numbers(past: str, step: str) -> float:
    used = set(numbers(step))
    return len(used & set(numbers(past))) / len(used) if used else float("nan")
