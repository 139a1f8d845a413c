"""What says how well a prefix and a step go together: the views, and what can be had for free.

Axes: P pairs, V words.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.preprocessing import MultiLabelBinarizer

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


def scorer_vectors(pairs: HeldOutPairs) -> Vectors:
    """Vectors of prefixes and steps by scorer, of those that compare vectors."""
    vectors = {VIEWS: (pairs.predicted, pairs.target)}
    if pairs.base_target is not None:
        vectors[VIEWS_TO_BASE] = (pairs.predicted, pairs.base_target)
    vectors[TFIDF] = _tfidf(pairs)
    vectors[EMBEDDING] = (pairs.embedded_prefix, pairs.embedded_step)
    return vectors


def similarities(pairs: HeldOutPairs, vectors: Vectors) -> Iterator[tuple[str, Array]]:
    """(P, P) by scorer, one at a time, as they are large: how well each prefix (row) goes with each step (column)."""
    for scorer, (prefix, step) in vectors.items():
        direction = unit if scorer == TFIDF else centred
        yield scorer, direction(prefix) @ direction(step).T
    yield NUMBERS, _shared_numbers(pairs.prefix_texts(), pairs.step_texts())
    yield POSITION, -np.abs(np.subtract.outer(pairs.step, pairs.step)).astype(float)


def _tfidf(pairs: HeldOutPairs) -> tuple[Array, Array]:
    """(P, V) of the prefixes and of the steps, each word weighted by its rarity among questions and steps."""
    texts = list(pairs.questions)
    for steps in pairs.steps:
        texts += steps
    fitted = vectorizer().fit(texts)
    return fitted.transform(pairs.prefix_texts()).toarray(), fitted.transform(pairs.step_texts()).toarray()


def _shared_numbers(prefixes: Sequence[str], steps: Sequence[str]) -> Array:
    """(P, P): the share of the step's numbers that the prefix has; 0 for a step without numbers."""
    in_prefix = [set(numbers(text)) for text in prefixes]
    in_step = [set(numbers(text)) for text in steps]
    binarizer = MultiLabelBinarizer(sparse_output=True).fit(in_prefix + in_step)
    shared = binarizer.transform(in_prefix) @ binarizer.transform(in_step).T
    return shared.toarray() / np.maximum([len(found) for found in in_step], 1)
