"""Examples one after another, of data that is not counted: read again from its start whenever it ends."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any

from step_jepa.data.dataset import raw_rows
from step_jepa.data.encoder import Encoder
from step_jepa.data.example import Example
from step_jepa.data.reading import REMEDY
from step_jepa.data.sources import Source
from step_jepa.errors import UserError, say_once

logger = logging.getLogger(__name__)
BATCH = 64  # rows that are encoded at once
HEAD = 64


class ExampleStream:
    """What a stream gives.

    source   where its rows are from
    encoder  what makes examples of them
    buffer   so many examples are held, of which one is drawn each time; with 1 they come as they lie
    seed     what the draws follow from
    """

    def __init__(self, source: Source, encoder: Encoder, *, buffer: int, seed: int) -> None:
        self.source, self.encoder, self.buffer, self.seed = source, encoder, buffer, seed
        self._warned = False

    @cached_property
    def head(self) -> list[Example]:
        """The first examples as they lie. Raises UserError where there is none."""
        first = list(islice(self._in_order(), HEAD))
        if not first:
            raise UserError(f"{self.source.name or 'the stream'}: no example to use, it is empty or all are too long")
        return first

    def epoch(self, number: int) -> Iterator[Example]:
        """All examples once; their index is their place as they lie. The same number gives the same order."""
        return shuffled(self._in_order(), self.buffer, Random(f"{self.seed} {number} buffer"))

    def _in_order(self) -> Iterator[Example]:
        rows, index = raw_rows(self.source), 0
        while batch := list(islice(rows, BATCH)):
            part = self.encoder(batch)
            if part.left_out and not self._warned:
                self._warned = True
                logger.warning("an example of the stream is left out, as are others of which no whole step fits")
            for note in part.notes:
                say_once(f"{self.source.name}: {note} ({REMEDY})")
            for example in part.examples:
                yield replace(example, index=index)
                index += 1


def shuffled(items: Iterator[Any], size: int, rng: Random) -> Iterator[Any]:
    """The items, each drawn from a buffer of that size, which the next one refills."""
    buffer: list[Any] = list(islice(items, size - 1))
    for item in items:
        place = rng.randrange(size)
        if place == size - 1:
            yield item
        else:
            yield buffer[place]
            buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer
