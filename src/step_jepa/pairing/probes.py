"""Linear probes, cross-validated by group: what can be read off features that were never trained for it.

Axes: Q steps with an equation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from step_jepa.pairing.equations import Equation

Array = NDArray[Any]
Features = Array | list[str]  # (Q, any), or texts
Folds = list[tuple[Array, Array]]
Outcome = tuple[Array, Array]  # (Q,) value and (Q,) weight, see `probe`

OPERATION = "operation"
QUANTITIES = ("first_operand", "second_operand", "result")
FOLDS = 5
COMPONENTS = 64
PENALTIES = np.logspace(-1, 5, 13)


def probe(
    features: Mapping[str, Features], equations: Sequence[Equation], group: Array, seed: int
) -> dict[str, dict[str, Outcome]]:
    """How well each of the features tells each part of the Q equations, by part and features.

    The figure is sum(value) / sum(weight) over steps, every one predicted by a probe that was fitted without its group
    (Q,). For `operation` (logistic regression on at most 64 principal components; `majority` is the most frequent class
    of the training folds) it is the accuracy. For `first_operand`, `second_operand` and `result` (ridge regression of
    log(1 + |x|)) it is R2 = 1 - sum of squared errors / sum of those of the mean of the training folds.
    A part that does not vary within every training fold, or that has fewer than five groups, is left out."""
    if len(np.unique(group)) < FOLDS:
        return {}
    folds = list(GroupKFold(FOLDS).split(group, groups=group))
    operators = np.array([each.operator for each in equations])
    outcomes = {OPERATION: _classified(features, operators, folds, seed)} if _varies(operators, folds) else {}
    for name in QUANTITIES:
        quantity = np.log1p(np.abs([getattr(each, name.removesuffix("_operand")) for each in equations]))
        if _varies(quantity, folds):
            outcomes[name] = _regressed(features, quantity, folds, seed)
    return outcomes


def _varies(truth: Array, folds: Folds) -> bool:
    return all(len(np.unique(truth[train])) > 1 for train, _ in folds)


def _classified(features: Mapping[str, Features], classes: Array, folds: Folds, seed: int) -> dict[str, Outcome]:
    def outcome(model: Any, inputs: Features) -> Outcome:
        correct = cross_val_predict(model, inputs, classes, cv=folds) == classes
        return correct.astype(float), np.ones(len(classes))

    outcomes = {
        name: outcome(_probe(inputs, LogisticRegression(max_iter=1000), seed, reduced=True), inputs)
        for name, inputs in features.items()
    }
    return outcomes | {"majority": outcome(DummyClassifier(), np.zeros((len(classes), 1)))}


def _regressed(features: Mapping[str, Features], quantity: Array, folds: Folds, seed: int) -> dict[str, Outcome]:
    def squares(model: Any, inputs: Features) -> Array:
        return (cross_val_predict(model, inputs, quantity, cv=folds) - quantity) ** 2

    blind = squares(DummyRegressor(), np.zeros((len(quantity), 1)))
    return {
        name: (blind - squares(_probe(inputs, RidgeCV(PENALTIES), seed, reduced=False), inputs), blind)
        for name, inputs in features.items()
    }


def _probe(inputs: Features, last: Any, seed: int, *, reduced: bool) -> Pipeline:
    """Standardised inputs, then `last`. Texts are always reduced: there are more words than steps."""
    if isinstance(inputs, list):
        return make_pipeline(vectorizer(), _Reduced(COMPONENTS, random_state=seed), StandardScaler(), last)
    reduction = [_Reduced(COMPONENTS, random_state=seed), StandardScaler()] if reduced else []
    return make_pipeline(StandardScaler(), *reduction, last)


class _Reduced(TruncatedSVD):
    """As many components as asked for, or as the data has. Principal components, where it comes centred."""

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        self.set_params(n_components=min(self.get_params()["n_components"], *X.shape))
        return super().fit_transform(X, y)


def vectorizer() -> TfidfVectorizer:
    """TF-IDF over words and numbers. Its own default would drop numbers of one digit."""
    return TfidfVectorizer(token_pattern=r"\w+", dtype=np.float32)
