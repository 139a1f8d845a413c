"""What says how well a prefix and a step go together: the views, and what can be had for free.

Axes: P pairs, K candidates, D size of a vector, V words.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from step_jepa.pairing.cosines import Vectors, centred, unit
from step_jepa.pairing.equations import numbers
from step_jepa.pairing.pairs import (
    EMBEDDING,
    NUMBERS,
    POSITION,
    TFIDF,
    VIEWS,
    VIEWS_TO_BASE,
    Array,
    HeldOutPairs,
)
from step_jepa.pairing.probes import vectorizer

Similarity = Callable[[Array], Array]  # (P, K) places of steps -> (P, K): how well each prefix goes with them
AT_ONCE = 2**22  # numbers that are multiplied at once


def scorer_vectors(pairs: HeldOutPairs) -> Vectors:
    """Vectors of prefixes and steps by scorer, of those that compare vectors."""
    vectors = {VIEWS: (pairs.predicted, pairs.target)}
    if pairs.base_target is not None:
        vectors[VIEWS_TO_BASE] = (pairs.predicted, pairs.base_target)
    vectors[TFIDF] = _tfidf(pairs)
    vectors[EMBEDDING] = (pairs.embedded_prefix, pairs.embedded_step)
    return vectors


def similarities(pairs: HeldOutPairs, vectors: Vectors) -> Iterator[tuple[str, Similarity]]:
    """By scorer, how well each prefix goes with the steps at some places: of all with all there would be P squared."""
    for scorer, (prefix, step) in vectors.items():
        direction = unit if scorer == TFIDF else centred
        yield scorer, partial(_products, direction(prefix), direction(step))
    yield NUMBERS, partial(_shared_numbers, pairs)
    yield POSITION, lambda places: -np.abs(pairs.step[:, None] - pairs.step[places]).astype(float)


def _products(prefix: Array, step: Array, places: Array) -> Array:
    """(P, K) from (P, D) twice and (P, K)."""
    size = max(1, AT_ONCE // (places.shape[1] * prefix.shape[1]))
    products = np.empty(places.shape)
    for start in range(0, len(places), size):
        some = slice(start, start + size)
        products[some] = np.einsum("pd,pkd->pk", prefix[some], step[places[some]])
    return products


def _tfidf(pairs: HeldOutPairs) -> tuple[Array, Array]:
    """(P, V) of the prefixes and of the steps, each word weighted by its rarity among questions and steps."""
    texts = list(pairs.questions)
    for steps in pairs.steps:
        texts += steps
    fitted = vectorizer().fit(texts)
    return fitted.transform(pairs.prefix_texts()).toarray(), fitted.transform(pairs.step_texts()).toarray()


def _shared_numbers(pairs: HeldOutPairs, places: Array) -> Array:
    """(P, K): the share of the step's numbers that the prefix has; 0 for a step without numbers."""
    begun = [_first_parts([question, *steps]) for question, steps in zip(pairs.questions, pairs.steps, strict=True)]
    in_step = [set(numbers(text)) for text in pairs.step_texts()]
    shares = np.zeros(places.shape)
    for pair, (problem, step) in enumerate(pairs.places()):
        for candidate, place in enumerate(places[pair].tolist()):
            wanted = in_step[place]
            shared = sum(begun[problem].get(number, step + 1) <= step for number in wanted)
            shares[pair, candidate] = shared / max(len(wanted), 1)
    return shares


def _first_parts(parts: list[str]) -> dict[float, int]:
    """By number, the first of the parts that has it."""
    first: dict[float, int] = {}
    for place, text in enumerate(parts):
        for number in numbers(text):
            first.setdefault(number, place)
    return first
