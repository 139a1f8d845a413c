"""Whether a predicted view is of the next step, and not of its topic, its words or the mean of all steps.

No figure is a training loss, and each stands beside what can be had for free. Arrays and texts; no model is known.
Axes: P pairs (a prefix, and the step that follows it), H hidden size, E embedding size, K pool size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from sklearn.preprocessing import MultiLabelBinarizer

from step_jepa.errors import UserError
from step_jepa.pairing.equations import equation, numbers
from step_jepa.pairing.probes import Features, probe, vectorizer
from step_jepa.statistics import bootstrap

Array = NDArray[Any]

ENOUGH = 1000  # pairs; with fewer, intervals are too wide for arms to be told apart
ROUNDING = 1e-6  # relative, of float32 views
ACROSS, MATCHED, WITHIN = "retrieval_across", "retrieval_across_length_matched", "retrieval_within"
TEMPLATES = "retrieval_across_templates"
MEASURES = (
    *("raw_cosine_paired", "raw_cosine_unpaired", "centred_margin", ACROSS, MATCHED, TEMPLATES, WITHIN),
    *("operation", "first_operand", "second_operand", "result"),
)
VIEWS = ("views", "views_to_base")
FREE = ("tfidf", "embedding", "numbers", "position", "majority")


@dataclass
class HeldOut:
    """Views of held-out pairs by one model, and the texts that they are views of. All pairs of a problem are present.

    predicted, target      (P, H) float: predicted view; view of the step in isolation
    base_target            (P, H) float: the view of the step by the frozen base model; None leaves its measures out
    problem, step          (P,) int: the pair predicts steps[problem][step] from the question and steps[problem][:step]
    questions, steps       texts by problem
    embedded_prefix, embedded_step
                           (P, E) float: mean input embedding of the tokens of prefix and step
    length                 (P,) int: tokens of the step
    template               (P,) int: problems written from one template, which is all that a probe would have to
                           recognise, are kept in one fold; None where each problem was written by itself
    """

    predicted: Array
    target: Array
    base_target: Array | None
    problem: Array
    step: Array
    questions: list[str]
    steps: list[list[str]]
    embedded_prefix: Array
    embedded_step: Array
    length: Array
    template: Array | None = None

    def __post_init__(self) -> None:
        pairs = len(self.predicted)
        per_pair = (self.target, self.problem, self.step, self.embedded_prefix, self.embedded_step, self.length)
        assert all(len(array) == pairs for array in per_pair)
        assert all(array is None or len(array) == pairs for array in (self.base_target, self.template))
        assert len(set(zip(self.problem.tolist(), self.step.tolist(), strict=True))) == pairs
        assert pairs == 0 or self.step.min() >= 1


class _PerPair(NamedTuple):
    """A measure as sum(value) / sum(weight), both (P,) float64, zero for pairs that are left out."""

    value: Array
    weight: Array


_Measures = dict[str, dict[str, _PerPair]]  # by measure and scorer
_Vectors = dict[str, tuple[Array, Array]]  # by scorer: (P, any) for the prefix, (P, any) for the step


def measure(heldout: HeldOut, *, pool: int = 32, pool_within: int = 3, seed: int = 42) -> dict[str, Any]:
    """Every measure of every scorer, ready for JSON.

    pairs, problems        how many; `enough` says whether there are 1,000 pairs
    templates              how many; absent where no templates are given
    pool, pool_within      retrieval's pool sizes; `pool` is smaller than asked where other problems have too few steps
    left_out               pairs left out of each retrieval (too few other steps) and of the probes (no equation)
    operations             how many steps compute what
    measures               measure -> scorer -> figure
    differences            measure -> views or views_to_base -> figure of its difference to the best free baseline
                           `against`, taken pair by pair
    by_problem             measure -> scorer -> a score for each problem that has such pairs: their mean is the figure,
                           their spread its variance; problems and weights follow from the texts alone

    A figure is {value, low, high, n}, with `chance` for retrieval: a 95 % interval, and the pairs that it is of. All
    but n are None where fewer than two problems have such pairs, and probes are absent where five folds cannot be made.
    Where templates are given, low_template and high_template are the interval when templates are resampled in place of
    problems: the wider one, for templates that are new. None with one template.
    Scorers are the views, views_to_base (the target views are the base model's) and what is free: `tfidf`, `embedding`
    (mean input embeddings), `numbers` (the share of the step's numbers that the prefix has), `position` (the index
    among the steps; within a problem that is the answer itself, an oracle and not a baseline) and `majority`. The best
    one is picked by the figure that it is then compared by, which favours the baseline a little. Measures:

    raw_cosine_paired, raw_cosine_unpaired
                           cosine of views of one pair; mean cosine to the targets of all other pairs
    centred_margin         paired minus unpaired, each side centred by its mean over the set
    retrieval_across       retrieval@1 by centred cosine (plain for TF-IDF) among the own step and steps of other
                           problems, and ..._length_matched among those nearest in length. Ties share the point.
    retrieval_across_templates
                           the same among the own step and steps of other templates; absent where none are given
    retrieval_within       the same among the own step and steps of the problem that come later still
                           A step that reads as the own one is no wrong answer: no pool has it as a candidate.
    operation              accuracy of a linear probe for the operation of the step's `equation`, out of fold
    first_operand, second_operand, result
                           R2 of a linear probe for log(1 + |x|) of its numbers, out of fold, against the mean of the
                           training folds

    Raises UserError for fewer than two problems and for views that are not finite."""
    assert min(pool, pool_within) >= 2
    problem, template = _numbered(heldout.problem), _numbered(heldout.template)
    assert problem is not None
    _check(heldout, problem)
    pool = min(pool, 1 + len(problem) - int(np.bincount(problem).max()))
    pools = _pools(heldout, pool, pool_within, seed)
    vectors = _vectors(heldout)
    operations = Counter(found.operator for text in _steps(heldout) if (found := equation(text)))
    measures = _cosines(vectors) | _retrieval(heldout, vectors, pools) | _decodability(heldout, seed)
    return {
        "pairs": len(problem),
        "problems": int(problem.max()) + 1,
        **({} if template is None else {"templates": int(template.max()) + 1}),
        "enough": len(problem) >= ENOUGH,
        "pool": pool,
        "pool_within": pool_within,
        "seed": seed,
        "left_out": {
            **{name: int((candidates < 0).any(1).sum()) for name, candidates in pools.items()},
            "probes": len(problem) - operations.total(),
        },
        "operations": dict(operations),
        "measures": {
            name: {
                scorer: _figure(per_pair, problem, template, seed) | _chance(pools.get(name))
                for scorer, per_pair in scorers.items()
            }
            for name, scorers in measures.items()
        },
        "differences": _differences(measures, problem, template, seed),
        "by_problem": {
            name: {scorer: _by_problem(per_pair, problem) for scorer, per_pair in scorers.items()}
            for name, scorers in measures.items()
        },
    }


def _numbered(names: Array | None) -> Array | None:
    return None if names is None else np.unique(names, return_inverse=True)[1]


def show(result: dict[str, Any]) -> Table:
    """The figures as a table, each measure's difference to its best free baseline under it."""
    table = Table(title="held-out pairs", caption=_caption(result))
    for column in ("measure", "scorer", "value", "95 % interval", "chance", "pairs"):
        table.add_column(column, justify="left" if column in ("measure", "scorer") else "right")
    for measured, scorers in result["measures"].items():
        against = result["differences"].get(measured, {})
        rows = scorers | {f"{scorer} - {figure['against']}": figure for scorer, figure in against.items()}
        for first, (scorer, figure) in zip([measured] + [""] * len(rows), rows.items(), strict=False):
            oracle = " (oracle)" if (measured, scorer) == (WITHIN, "position") else ""
            table.add_row(first.replace("_", " "), scorer + oracle, *_shown(figure))
        table.add_section()
    return table


def _shown(figure: dict[str, Any]) -> list[str]:
    chance = f"{figure['chance']:.3f}" if "chance" in figure else ""
    if figure["value"] is None:
        return ["-", "-", chance, str(figure["n"])]
    return [f"{figure['value']:.3f}", f"[{figure['low']:.3f}, {figure['high']:.3f}]", chance, str(figure["n"])]


def _caption(result: dict[str, Any]) -> Text:
    left_out = [f"{count} from {name.replace('_', ' ')}" for name, count in result["left_out"].items() if count]
    parts = [f"{result['pairs']} pairs of {result['problems']} problems; left out: {', '.join(left_out) or 'none'}"]
    if not result["enough"]:
        parts.append(f"fewer than {ENOUGH} pairs: intervals are wide")
    if "templates" in result:
        parts.append(
            f"problems of {result['templates']} templates: intervals are over problems, which are near copies within a "
            "template, so they are too narrow for new templates"
        )
    return Text("; ".join(parts))


def _check(heldout: HeldOut, problem: Array) -> None:
    if len(np.unique(problem)) < 2:
        raise UserError(f"held-out pairs of {len(np.unique(problem))} problems: nothing to compare; give more records")
    for name in ("predicted", "target", "base_target"):
        if (views := getattr(heldout, name)) is not None and not np.isfinite(views).all():
            raise UserError(
                f"{name} views of held-out pairs are not finite: the model has diverged; lower its step size"
            )


def _figure(per_pair: _PerPair, problem: Array, template: Array | None, seed: int) -> dict[str, Any]:
    value, low, high = _interval(per_pair, problem, seed)
    figure = {"value": value, "low": low, "high": high, "n": int((per_pair.weight > 0).sum())}
    if template is not None:
        _, figure["low_template"], figure["high_template"] = _interval(per_pair, template, seed)
    return figure


def _interval(per_pair: _PerPair, cluster: Array, seed: int) -> tuple[float | None, float | None, float | None]:
    """(mean, low, high) by `bootstrap`; None where fewer than two clusters have such pairs."""
    kept = per_pair.weight > 0
    if len(np.unique(cluster[kept])) < 2:
        return None, None, None
    return bootstrap(per_pair.value[kept], cluster[kept], seed, weight=per_pair.weight[kept])


def _by_problem(per_pair: _PerPair, problem: Array) -> list[float]:
    """Linearised: the figure is a ratio of sums, whose variance is that of over - ratio * under (Cochran, Sampling
    Techniques, chapter 6). That problems have more or fewer pairs is no reason for a score that is always 1 to vary."""
    over, under = np.bincount(problem, per_pair.value), np.bincount(problem, per_pair.weight)
    over, under = over[under > 0], under[under > 0]
    if not len(under):
        return []
    ratio = over.sum() / under.sum()
    return (ratio + (over - ratio * under) / under.mean()).tolist()


def _chance(pools: Array | None) -> dict[str, float]:
    return {} if pools is None else {"chance": 1 / pools.shape[1]}


def free(measure: str, scorers: Iterable[str]) -> list[str]:
    """Those of the scorers that need no view. Position is none within a problem: there it is the answer itself."""
    return [name for name in FREE if name in scorers and (measure, name) != (WITHIN, "position")]


def _differences(measures: _Measures, problem: Array, template: Array | None, seed: int) -> dict[str, dict[str, Any]]:
    differences: dict[str, dict[str, Any]] = {}
    for name, scorers in measures.items():
        baselines = free(name, scorers)
        for scorer in VIEWS:
            if baselines and scorer in scorers:
                best = max(baselines, key=lambda other: scorers[other].value.sum())
                per_pair = _PerPair(scorers[scorer].value - scorers[best].value, scorers[scorer].weight)
                figure = _figure(per_pair, problem, template, seed) | {"against": best}
                differences.setdefault(name, {})[scorer] = figure
    return differences


# Vectors and cosines.


def _vectors(heldout: HeldOut) -> _Vectors:
    vectors = {"views": (heldout.predicted, heldout.target)}
    if heldout.base_target is not None:
        vectors["views_to_base"] = (heldout.predicted, heldout.base_target)
    vectors["tfidf"] = _tfidf(heldout)
    vectors["embedding"] = (heldout.embedded_prefix, heldout.embedded_step)
    return vectors


def _tfidf(heldout: HeldOut) -> tuple[Array, Array]:
    fitted = vectorizer().fit([*heldout.questions, *(step for steps in heldout.steps for step in steps)])
    return fitted.transform(_prefixes(heldout)).toarray(), fitted.transform(_steps(heldout)).toarray()


def _steps(heldout: HeldOut) -> list[str]:
    return [heldout.steps[problem][step] for problem, step in zip(heldout.problem, heldout.step, strict=True)]


def _prefixes(heldout: HeldOut) -> list[str]:
    pairs = zip(heldout.problem, heldout.step, strict=True)
    return [" ".join([heldout.questions[problem], *heldout.steps[problem][:step]]) for problem, step in pairs]


def _unit(vectors: Array) -> Array:
    return _directions(vectors, np.linalg.norm(vectors, axis=1))


def _centred(vectors: Array) -> Array:
    """Unit vectors from the mean of the set. One that only rounding keeps from the mean has no direction: zero."""
    away = vectors - vectors.mean(0, dtype=np.float64)
    norms = np.linalg.norm(away, axis=1)
    return _directions(away, np.where(norms > ROUNDING * np.linalg.norm(vectors, axis=1), norms, 0))


def _directions(vectors: Array, norms: Array) -> Array:
    return np.divide(vectors, norms[:, None], out=np.zeros(vectors.shape), where=norms[:, None] > 0)


def _cosines(vectors: _Vectors) -> _Measures:
    measures: _Measures = {"raw_cosine_paired": {}, "raw_cosine_unpaired": {}, "centred_margin": {}}
    for scorer, (prefix, step) in vectors.items():
        if scorer.startswith("views"):
            paired, unpaired = _paired_and_unpaired(_unit(prefix), _unit(step))
            measures["raw_cosine_paired"][scorer] = _of_all(paired)
            measures["raw_cosine_unpaired"][scorer] = _of_all(unpaired)
        paired, unpaired = _paired_and_unpaired(_centred(prefix), _centred(step))
        measures["centred_margin"][scorer] = _of_all(paired - unpaired)
    return measures


def _paired_and_unpaired(prefix: Array, step: Array) -> tuple[Array, Array]:
    """(P,) cosine to the own step, and (P,) mean cosine to all others, of unit vectors."""
    own = (prefix * step).sum(1)
    return own, (prefix @ step.sum(0) - own) / (len(own) - 1)


def _of_all(values: Array) -> _PerPair:
    return _PerPair(values, np.ones(len(values)))


# Retrieval.


def _pools(heldout: HeldOut, size: int, size_within: int, seed: int) -> dict[str, Array]:
    """(P, K) int by measure: the own pair first, then the pairs whose steps it is to be told from; -1 for too few."""
    rng = np.random.default_rng(seed)
    pools: dict[str, list[list[int]]] = {ACROSS: [], MATCHED: [], WITHIN: []}
    text = np.unique(_steps(heldout), return_inverse=True)[1]
    for pair, (problem, step, length) in enumerate(zip(heldout.problem, heldout.step, heldout.length, strict=True)):
        wrong, elsewhere = text != text[pair], heldout.problem != problem
        away = np.abs(heldout.length - length)
        found = {
            MATCHED: _drawn(wrong & elsewhere, size - 1, rng, nearest=away),
            WITHIN: _drawn(wrong & ~elsewhere & (heldout.step > step), size_within - 1, rng),
            ACROSS: _drawn(wrong & elsewhere, size - 1, rng),
        }
        if heldout.template is not None:
            found[TEMPLATES] = _drawn(wrong & (heldout.template != heldout.template[pair]), size - 1, rng)
        for name, candidates in found.items():
            pools.setdefault(name, []).append([pair, *candidates])
    return {name: np.array(rows) for name, rows in pools.items()}


def _drawn(allowed: Array, count: int, rng: np.random.Generator, nearest: Array | None = None) -> Array:
    """(count,) int, at random out of `allowed` (P,) bool, or those with the least `nearest` (P,); -1 for too few."""
    places = np.flatnonzero(allowed)
    if len(places) < count:
        return np.full(count, -1)
    if nearest is None:
        return rng.choice(places, count, replace=False)
    return places[np.lexsort([rng.random(len(places)), nearest[places]])[:count]]


def _retrieval(heldout: HeldOut, vectors: _Vectors, pools: dict[str, Array]) -> _Measures:
    measures: _Measures = {name: {} for name in pools}
    for scorer, scores in _scores(heldout, vectors):
        for name, candidates in pools.items():
            kept = (candidates >= 0).all(1)
            points = _points(np.take_along_axis(scores, candidates, 1))
            measures[name][scorer] = _PerPair(np.where(kept, points, 0), kept.astype(float))
    return measures


def _scores(heldout: HeldOut, vectors: _Vectors) -> Iterator[tuple[str, Array]]:
    """(P, P) by scorer, one at a time: how well each prefix (row) goes with each step (column)."""
    for scorer, (prefix, step) in vectors.items():
        towards = _unit if scorer == "tfidf" else _centred
        yield scorer, towards(prefix) @ towards(step).T
    yield "numbers", _shared_numbers(_prefixes(heldout), _steps(heldout))
    yield "position", -np.abs(np.subtract.outer(heldout.step, heldout.step)).astype(float)


def _shared_numbers(prefixes: Sequence[str], steps: Sequence[str]) -> Array:
    """(P, P): the share of the step's numbers that the prefix has; 0 for a step without numbers."""
    had, used = ([set(numbers(text)) for text in texts] for texts in (prefixes, steps))
    binarizer = MultiLabelBinarizer(sparse_output=True).fit(had + used)
    shared = binarizer.transform(had) @ binarizer.transform(used).T
    return shared.toarray() / np.maximum([len(found) for found in used], 1)


def _points(scores: Array) -> Array:
    """(P,) from (P, K), the own step first: 1 if its score is the highest, shared among equals, else 0."""
    ahead = scores - scores[:, :1]
    return np.where((ahead > ROUNDING).any(1), 0.0, 1 / (np.abs(ahead) <= ROUNDING).sum(1))


# What the next step computes.


def _decodability(heldout: HeldOut, seed: int) -> _Measures:
    found = [equation(text) for text in _steps(heldout)]
    known = np.flatnonzero([each is not None for each in found])
    prefixes = _prefixes(heldout)
    features: dict[str, Features] = {
        "views": heldout.predicted[known],
        "tfidf": [prefixes[pair] for pair in known],
        "embedding": heldout.embedded_prefix[known],
    }
    group = heldout.problem if heldout.template is None else heldout.template
    outcomes = probe(features, [each for each in found if each is not None], group[known], seed)
    return {
        part: {scorer: _placed(*outcome, known, len(found)) for scorer, outcome in scorers.items()}
        for part, scorers in outcomes.items()
    }


def _placed(value: Array, weight: Array, known: Array, pairs: int) -> _PerPair:
    placed = _PerPair(np.zeros(pairs), np.zeros(pairs))
    placed.value[known], placed.weight[known] = value, weight
    return placed
