"""Retrieval: is the step that follows a prefix told from other steps.

Axes: P pairs, K candidates.
"""

import numpy as np

from step_jepa.pairing.cosines import ROUNDING, Vectors
from step_jepa.pairing.pairs import Array, HeldOutPairs, PairScores, Scores
from step_jepa.pairing.scorers import similarities

ACROSS, MATCHED, WITHIN = "retrieval_across", "retrieval_across_length_matched", "retrieval_within"
TEMPLATES = "retrieval_across_templates"


def draw_candidates(pairs: HeldOutPairs, count: int, count_within: int, seed: int) -> dict[str, Array]:
    """The steps that each step is to be told from, by measure.

    Args:
        pairs: all of them.
        count: candidates across problems, the right one included.
        count_within: candidates within a problem, the right one included.
        seed: of the draw.

    Returns:
        (P, K) int by measure: places of pairs, the right one first; -1 in its row where there are too few others."""
    rng = np.random.default_rng(seed)
    text = np.unique(pairs.step_texts(), return_inverse=True)[1]
    names = [ACROSS, MATCHED, WITHIN] + ([] if pairs.template is None else [TEMPLATES])
    rows: dict[str, list[list[int]]] = {name: [] for name in names}
    for pair in range(len(pairs)):
        # A step that reads as the right one is no wrong answer.
        for name, others in _draw_others(pairs, pair, text != text[pair], count, count_within, rng).items():
            rows[name].append([pair, *others])
    return {name: np.array(candidates) for name, candidates in rows.items()}


def _draw_others(
    pairs: HeldOutPairs, pair: int, wrong: Array, count: int, count_within: int, rng: np.random.Generator
) -> dict[str, Array]:
    """The wrong candidates of one pair by measure, out of wrong (P,) bool."""
    elsewhere = pairs.problem != pairs.problem[pair]
    later = ~elsewhere & (pairs.step > pairs.step[pair])
    length_difference = np.abs(pairs.length - pairs.length[pair])
    others = {
        MATCHED: _nearest(wrong & elsewhere, count - 1, length_difference, rng),
        WITHIN: _random(wrong & later, count_within - 1, rng),
        ACROSS: _random(wrong & elsewhere, count - 1, rng),
    }
    if pairs.template is not None:
        others[TEMPLATES] = _random(wrong & (pairs.template != pairs.template[pair]), count - 1, rng)
    return others


def _random(allowed: Array, count: int, rng: np.random.Generator) -> Array:
    """(count,) int out of allowed (P,) bool; -1 for too few."""
    places = np.flatnonzero(allowed)
    return rng.choice(places, count, replace=False) if len(places) >= count else np.full(count, -1)


def _nearest(allowed: Array, count: int, distance: Array, rng: np.random.Generator) -> Array:
    """(count,) int, those with the least distance (P,) out of allowed (P,) bool, at random among equals; -1 for too
    few."""
    places = np.flatnonzero(allowed)
    if len(places) < count:
        return np.full(count, -1)
    return places[np.lexsort([rng.random(len(places)), distance[places]])[:count]]


def retrieval_scores(pairs: HeldOutPairs, vectors: Vectors, candidates: dict[str, Array]) -> Scores:
    """Retrieval@1 among the candidates (P, K) of each measure. Pairs with too few candidates are left out."""
    scores: Scores = {name: {} for name in candidates}
    for scorer, similarity in similarities(pairs, vectors):
        for name, places in candidates.items():
            kept = (places >= 0).all(1)
            points = _points(similarity(places))
            scores[name][scorer] = PairScores(np.where(kept, points, 0), kept.astype(float))
    return scores


def _points(similarity: Array) -> Array:
    """(P,) from (P, K), the right step first: 1 if it is the most similar, shared among equals, else 0."""
    ahead = similarity - similarity[:, :1]
    return np.where((ahead > ROUNDING).any(1), 0.0, 1 / (np.abs(ahead) <= ROUNDING).sum(1))
