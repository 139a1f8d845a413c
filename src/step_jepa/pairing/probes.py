"""Linear probes, cross-validated by group: what can be read off features that were never trained for it.

Axes: P pairs, Q steps with an equation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from step_jepa.pairing.equations import Equation
from step_jepa.pairing.pairs import (
    EMBEDDING,
    MAJORITY,
    TFIDF,
    VIEWS,
    Array,
    HeldOutPairs,
    PairScores,
    Scores,
    score_all,
)

Features = Array | list[str]  # (Q, any), or texts
Folds = list[tuple[Array, Array]]

OPERATION = "operation"
QUANTITIES = ("first_operand", "second_operand", "result")
FOLDS = 5
COMPONENTS = 64
PENALTIES = np.logspace(-1, 5, 13)


def decodability(pairs: HeldOutPairs, equations: Sequence[Equation | None], seed: int) -> Scores:
    """How well the predicted view, and what is free, tell the equation of the step. Pairs without one are left out."""
    known = np.flatnonzero([equation is not None for equation in equations])
    prefixes = pairs.prefix_texts()
    features: dict[str, Features] = {
        VIEWS: pairs.predicted[known],
        TFIDF: [prefixes[pair] for pair in known],
        EMBEDDING: pairs.embedded_prefix[known],
    }
    group = pairs.problem if pairs.template is None else pairs.template
    found = [equation for equation in equations if equation is not None]
    scores: Scores = {}
    for part, scorers in probe(features, found, group[known], seed).items():
        scores[part] = {scorer: _among(len(pairs), known, of_known) for scorer, of_known in scorers.items()}
    return scores


def _among(pairs: int, known: Array, scores: PairScores) -> PairScores:
    """Scores (Q,) at their places (Q,) among all pairs, which are left out otherwise."""
    placed = PairScores(np.zeros(pairs), np.zeros(pairs))
    placed.value[known], placed.weight[known] = scores
    return placed


def probe(features: Mapping[str, Features], equations: Sequence[Equation], group: Array, seed: int) -> Scores:
    """How well each of the features tells each part of the Q equations.

    Every step is predicted by a probe that was fitted without its group. `operation` (logistic regression on at most 64
    principal components; `majority` is the most frequent class of the training folds) is scored by its accuracy.
    `first_operand`, `second_operand` and `result` (ridge regression of log(1 + |x|)) by
    R2 = 1 - sum of squared errors / sum of those of the mean of the training folds.

    Args:
        features: (Q, any) arrays or Q texts, by scorer.
        equations: Q of them.
        group: (Q,) int.
        seed: of the principal components.

    Returns:
        scores (Q,) by part and scorer. A part that does not vary within every training fold, or that has fewer than
        five groups, is left out."""
    if len(np.unique(group)) < FOLDS:
        return {}
    folds = list(GroupKFold(FOLDS).split(group, groups=group))
    scores: Scores = {}
    operators = np.array([equation.operator for equation in equations])
    if _varies(operators, folds):
        scores[OPERATION] = _classify(features, operators, folds, seed)
    for name in QUANTITIES:
        numbers = [getattr(equation, name.removesuffix("_operand")) for equation in equations]
        quantity = np.log1p(np.abs(numbers))
        if _varies(quantity, folds):
            scores[name] = _regress(features, quantity, folds, seed)
    return scores


def _varies(truth: Array, folds: Folds) -> bool:
    return all(len(np.unique(truth[train])) > 1 for train, _ in folds)


def _classify(features: Mapping[str, Features], classes: Array, folds: Folds, seed: int) -> dict[str, PairScores]:
    scores = {}
    for name, inputs in features.items():
        model = _probe(inputs, LogisticRegression(max_iter=1000), seed, reduced=True)
        scores[name] = score_all(_is_right(model, inputs, classes, folds))
    scores[MAJORITY] = score_all(_is_right(DummyClassifier(), _nothing(classes), classes, folds))
    return scores


def _is_right(model: Any, inputs: Features, classes: Array, folds: Folds) -> Array:
    """(Q,) float: 1 or 0."""
    return (cross_val_predict(model, inputs, classes, cv=folds) == classes).astype(float)


def _regress(features: Mapping[str, Features], quantity: Array, folds: Folds, seed: int) -> dict[str, PairScores]:
    of_mean = _squared_errors(DummyRegressor(), _nothing(quantity), quantity, folds)
    scores = {}
    for name, inputs in features.items():
        model = _probe(inputs, RidgeCV(PENALTIES), seed, reduced=False)
        scores[name] = PairScores(of_mean - _squared_errors(model, inputs, quantity, folds), of_mean)
    return scores


def _squared_errors(model: Any, inputs: Features, quantity: Array, folds: Folds) -> Array:
    return (cross_val_predict(model, inputs, quantity, cv=folds) - quantity) ** 2


def _nothing(truth: Array) -> Array:
    """Features that tell nothing."""
    return np.zeros((len(truth), 1))


def _probe(inputs: Features, last: Any, seed: int, *, reduced: bool) -> Pipeline:
    """Standardised inputs, then `last`. Texts are always reduced: there are more words than steps."""
    if isinstance(inputs, list):
        return make_pipeline(vectorizer(), _Reduced(COMPONENTS, random_state=seed), StandardScaler(), last)
    reduction = [_Reduced(COMPONENTS, random_state=seed), StandardScaler()] if reduced else []
    return make_pipeline(StandardScaler(), *reduction, last)


class _Reduced(TruncatedSVD):
    """As many components as asked for, or as the data has. Principal components, where it comes centred.

    Components that only rounding keeps from zero are left out: standardised, they would be as loud as all others, and
    louder by orders of magnitude on texts that were not fitted."""

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        self.set_params(n_components=min(self.get_params()["n_components"], *X.shape))
        components = super().fit_transform(X, y)
        rounding = np.finfo(components.dtype).eps * max(X.shape)  # relative, as in numpy's matrix_rank
        self.kept_ = self.singular_values_ >= rounding * self.singular_values_.max()
        return components[:, self.kept_]

    def transform(self, X: Any) -> Array:
        return super().transform(X)[:, self.kept_]


def vectorizer() -> TfidfVectorizer:
    """TF-IDF over words and numbers. Its own default would drop numbers of one digit."""
    return TfidfVectorizer(token_pattern=r"\w+", dtype=np.float32)
