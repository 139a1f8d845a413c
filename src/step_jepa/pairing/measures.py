"""Whether a predicted view is of the next step, and not of its topic, its words or the mean of all steps.

No figure is a training loss, and each stands beside what can be had for free. Scorers, which a figure is of, are the
views, views_to_base (the target views are the base model's) and what is free: `tfidf`, `embedding` (mean input
embeddings), `numbers` (the share of the step's numbers that the prefix has), `position` (the index among the steps;
within a problem that is the answer itself, an oracle and not a baseline) and `majority`. Measures:

raw_cosine_paired, raw_cosine_unpaired
                       cosine of views of one pair; mean cosine to the targets of all other pairs
centred_margin         paired minus unpaired, each side centred by its mean over the set
retrieval_across       retrieval@1 by centred cosine (plain for TF-IDF) among the right step and steps of other
                       problems, and ..._length_matched among those nearest in length. Ties share the point.
retrieval_across_templates
                       the same among the right step and steps of other templates; absent where none are given
retrieval_within       the same among the right step and steps of the problem that come later still
                       A step that reads as the right one is no wrong answer: it is never a candidate.
operation              accuracy of a linear probe for the operation of the step's `equation`, out of fold
first_operand, second_operand, result
                       R2 of a linear probe for log(1 + |x|) of its numbers, out of fold, against the mean of the
                       training folds

Axes: P pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, NamedTuple

import numpy as np

from step_jepa.errors import UserError
from step_jepa.pairing.cosines import MARGIN, RAW_PAIRED, RAW_UNPAIRED, ROUNDING, cosine_scores
from step_jepa.pairing.equations import equation
from step_jepa.pairing.pairs import FREE, POSITION, VIEWS, VIEWS_TO_BASE, Array, HeldOutPairs, PairScores, Scores
from step_jepa.pairing.probes import OPERATION, QUANTITIES, decodability
from step_jepa.pairing.retrieval import ACROSS, MATCHED, TEMPLATES, WITHIN, draw_candidates, retrieval_scores
from step_jepa.pairing.scorers import scorer_vectors
from step_jepa.statistics.bootstrap import bootstrap

ENOUGH = 1000  # pairs; with fewer, intervals are too wide for arms to be told apart
# The least and the most that a figure can be
MEASURES: dict[str, tuple[float, float]] = {
    RAW_PAIRED: (-1, 1),
    RAW_UNPAIRED: (-1, 1),
    MARGIN: (-2, 2),
    **dict.fromkeys((ACROSS, MATCHED, TEMPLATES, WITHIN, OPERATION), (0, 1)),
    **dict.fromkeys(QUANTITIES, (-inf, 1)),
}

Figure = dict[str, Any]


class _Clusters(NamedTuple):
    """What intervals resample: problem (P,) int, counted from 0; template (P,) int, None where there are none."""

    problem: Array
    template: Array | None
    seed: int


def measure(pairs: HeldOutPairs, *, pool: int = 32, pool_within: int = 3, seed: int = 42) -> dict[str, Any]:
    """Every measure of every scorer, ready for JSON.

    A figure is {value, low, high, n}, with `chance` for retrieval: a 95 % interval, and the pairs that it is of. All
    but n are None where fewer than two problems have such pairs, and probes are absent where five folds cannot be made.
    Where templates are given, low_template and high_template are the interval when templates are resampled in place of
    problems: the wider one, for templates that are new. None with one template.

    Args:
        pairs: of two problems or more.
        pool: candidates of retrieval across problems; 2 or more.
        pool_within: candidates of retrieval within a problem; 2 or more.
        seed: of candidates, resamples and probes.

    Returns:
        pairs, problems        how many; `enough` says whether there are 1,000 pairs
        templates              how many; absent where no templates are given
        pool, pool_within      candidates; `pool` is smaller than asked where other problems have too few steps
        left_out               pairs left out of each retrieval (too few other steps) and of the probes (no equation)
        operations             how many steps compute what
        measures               measure -> scorer -> figure
        differences            measure -> views or views_to_base -> figure of its difference to the best free baseline
                               `against`, taken pair by pair; the best one is picked by the figure that it is then
                               compared by, which favours the baseline a little
        by_problem             measure -> scorer -> a score for each problem that has such pairs: their mean is the
                               figure, their spread its variance; problems and weights follow from the texts alone

    Raises:
        UserError: for fewer than two problems and for views that are not finite."""
    assert min(pool, pool_within) >= 2
    clusters = _Clusters(_numbered(pairs.problem), _numbered_or_none(pairs.template), seed)
    _check(pairs, clusters.problem)
    pool = min(pool, 1 + len(pairs) - int(np.bincount(clusters.problem).max()))
    candidates = draw_candidates(pairs, pool, pool_within, seed)
    equations = [equation(text) for text in pairs.step_texts()]
    vectors = scorer_vectors(pairs)
    scores = cosine_scores(vectors) | retrieval_scores(pairs, vectors, candidates)
    scores |= decodability(pairs, equations, seed)
    operations = Counter(found.operator for found in equations if found)
    left_out = {name: int((places < 0).any(1).sum()) for name, places in candidates.items()}
    return {
        **_counts(clusters),
        "pool": pool,
        "pool_within": pool_within,
        "seed": seed,
        "left_out": {**left_out, "probes": len(pairs) - operations.total()},
        "operations": dict(operations),
        "measures": _figures(scores, clusters, candidates),
        "differences": _differences(scores, clusters),
        "by_problem": _map_scores(scores, lambda of_pairs: scores_by_problem(of_pairs, clusters.problem)),
    }


def _numbered(names: Array) -> Array:
    return np.unique(names, return_inverse=True)[1]


def _numbered_or_none(names: Array | None) -> Array | None:
    return None if names is None else _numbered(names)


def _check(pairs: HeldOutPairs, problem: Array) -> None:
    if len(np.unique(problem)) < 2:
        raise UserError("held-out pairs of one problem alone: nothing to compare; give more records")
    for name in ("predicted", "target", "base_target"):
        views = getattr(pairs, name)
        if views is not None and not np.isfinite(views).all():
            raise UserError(
                f"{name} views of held-out pairs are not finite: the model has diverged; lower its step size"
            )


def _counts(clusters: _Clusters) -> dict[str, Any]:
    pairs = len(clusters.problem)
    counts: dict[str, Any] = {"pairs": pairs, "problems": int(clusters.problem.max()) + 1}
    if clusters.template is not None:
        counts["templates"] = int(clusters.template.max()) + 1
    return counts | {"enough": pairs >= ENOUGH}


def free_baselines(measure: str, scorers: Iterable[str]) -> list[str]:
    """Those of the scorers that need no view. Position is none within a problem: there it is the answer itself."""
    return [name for name in FREE if name in scorers and (measure, name) != (WITHIN, POSITION)]


def scores_by_problem(scores: PairScores, problem: Array) -> list[float]:
    """Linearised: the figure is a ratio of sums, whose variance is that of over - ratio * under (Cochran, Sampling
    Techniques, chapter 6). That problems have more or fewer pairs is no reason for a score that is always 1 to vary."""
    over, under = np.bincount(problem, scores.value), np.bincount(problem, scores.weight)
    over, under = over[under > 0], under[under > 0]
    if not len(under):
        return []
    ratio = over.sum() / under.sum()
    return (ratio + (over - ratio * under) / under.mean()).tolist()


# Figures


def _map_scores(scores: Scores, of: Callable[[PairScores], Any]) -> dict[str, dict[str, Any]]:
    """measure -> scorer -> what the function makes of its scores."""
    results = {}
    for measure, scorers in scores.items():
        results[measure] = {scorer: of(of_pairs) for scorer, of_pairs in scorers.items()}
    return results


def _figures(scores: Scores, clusters: _Clusters, candidates: dict[str, Array]) -> dict[str, dict[str, Figure]]:
    figures = _map_scores(scores, lambda of_pairs: _figure(of_pairs, clusters))
    for measure, scorers in figures.items():
        for figure in scorers.values():
            assert _can_be(measure, figure["value"]), (measure, figure)
    for measure, places in candidates.items():
        for figure in figures[measure].values():
            figure["chance"] = 1 / places.shape[1]
    return figures


def _can_be(measure: str, value: float | None) -> bool:
    least, most = MEASURES[measure]
    return value is None or least - ROUNDING <= value <= most + ROUNDING


def _differences(scores: Scores, clusters: _Clusters) -> dict[str, dict[str, Figure]]:
    """Of the views to the best free baseline, where a measure has one."""
    differences: dict[str, dict[str, Figure]] = {}
    for measure, scorers in scores.items():
        baselines = {name: scorers[name] for name in free_baselines(measure, scorers)}
        for name in (VIEWS, VIEWS_TO_BASE):
            if baselines and name in scorers:
                best = max(baselines, key=lambda baseline: scorers[baseline].value.sum())
                difference = PairScores(scorers[name].value - scorers[best].value, scorers[name].weight)
                differences.setdefault(measure, {})[name] = _figure(difference, clusters) | {"against": best}
    return differences


def _figure(scores: PairScores, clusters: _Clusters) -> Figure:
    value, low, high = _interval(scores, clusters.problem, clusters.seed)
    figure = {"value": value, "low": low, "high": high, "n": int((scores.weight > 0).sum())}
    if clusters.template is not None:
        _, figure["low_template"], figure["high_template"] = _interval(scores, clusters.template, clusters.seed)
    return figure


def _interval(scores: PairScores, cluster: Array, seed: int) -> tuple[float | None, float | None, float | None]:
    """(mean, low, high) by `bootstrap`; None where fewer than two clusters have such pairs."""
    kept = scores.weight > 0
    if len(np.unique(cluster[kept])) < 2:
        return None, None, None
    return bootstrap(scores.value[kept], cluster[kept], seed, weight=scores.weight[kept])
