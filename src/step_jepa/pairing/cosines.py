"""Cosines of paired and of unpaired vectors.

Axes: P pairs, D size of a vector.
"""

import numpy as np

from step_jepa.pairing.pairs import Array, Scores, score_all

Vectors = dict[str, tuple[Array, Array]]  # by scorer: (P, D) of the prefixes, (P, D) of the steps

RAW_PAIRED, RAW_UNPAIRED, MARGIN = "raw_cosine_paired", "raw_cosine_unpaired", "centred_margin"
ROUNDING = 1e-6  # relative, of float32 views


def cosine_scores(vectors: Vectors) -> Scores:
    """raw_cosine_paired and raw_cosine_unpaired of views, centred_margin of every scorer."""
    scores: Scores = {RAW_PAIRED: {}, RAW_UNPAIRED: {}, MARGIN: {}}
    for scorer, (prefix, step) in vectors.items():
        if scorer.startswith("views"):
            paired, unpaired = _paired_and_unpaired(unit(prefix), unit(step))
            scores[RAW_PAIRED][scorer] = score_all(paired)
            scores[RAW_UNPAIRED][scorer] = score_all(unpaired)
        paired, unpaired = _paired_and_unpaired(centred(prefix), centred(step))
        scores[MARGIN][scorer] = score_all(paired - unpaired)
    return scores


def unit(vectors: Array) -> Array:
    """(P, D) vectors -> the same directions, of length 1; a zero stays zero."""
    return _directions(vectors, np.linalg.norm(vectors, axis=1))


def centred(vectors: Array) -> Array:
    """Unit vectors from the mean of the set. One that only rounding keeps from the mean has no direction: zero."""
    away = vectors - vectors.mean(0, dtype=np.float64)
    norms = np.linalg.norm(away, axis=1)
    return _directions(away, np.where(norms > ROUNDING * np.linalg.norm(vectors, axis=1), norms, 0))


def _directions(vectors: Array, norms: Array) -> Array:
    return np.divide(vectors, norms[:, None], out=np.zeros(vectors.shape), where=norms[:, None] > 0)


def _paired_and_unpaired(prefix: Array, step: Array) -> tuple[Array, Array]:
    """(P,) cosine to the step of the pair, and (P,) mean cosine to all others, of unit vectors."""
    paired = (prefix * step).sum(1)
    # The sum over all steps takes one product where each with each would take P.
    return paired, (prefix @ step.sum(0) - paired) / (len(paired) - 1)
