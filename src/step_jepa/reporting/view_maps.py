"""Held-out views by step: how alike those of steps i and j are, and where they lie in a plane.

Views are of length 1: predicted, target (P, H); problem, step int64 (P,), `step` the index of the target step.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from step_jepa.plots import COLOURS, MARKERS, style

Views = Mapping[str, np.ndarray]
MAPPED = 300  # pairs; more would hide each other, and make the page large
FEWEST = 10  # views, below which t-SNE shows nothing
PERPLEXITY = 30
SPREAD = 1e-3  # of views of length 1, below which float16 tells no more apart


def drawn(views: Views) -> Views:
    """At most 300 pairs, the same ones every time, in order."""
    some = np.sort(np.random.default_rng(0).permutation(len(views["problem"]))[:MAPPED])
    return {name: values[some] for name, values in views.items()}


def alike(views: Views) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The indices of the steps (S,), then twice the mean cosine of predicted view i and target view j, (S, S): within a
    problem, and across problems; nan where there is none."""
    predicted, target = (views[side].astype(np.float64) for side in ("predicted", "target"))
    steps = np.unique(views["step"])
    members = views["step"][:, None] == steps  # (P, S)
    same = views["problem"][:, None] == views["problem"]
    cosines = predicted @ target.T

    def mean(chosen: np.ndarray) -> np.ndarray:
        sums, counts = (members.T @ kept @ members.astype(float) for kept in (cosines * chosen, chosen.astype(float)))
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    return steps.tolist(), mean(same), mean(~same)


def flat(views: Views) -> np.ndarray:
    """(2P, H) float64: predicted above target."""
    return np.concatenate([views["predicted"], views["target"]]).astype(np.float64)


def unmappable(views: Views) -> str | None:
    """Why there is no map of these views; None where there is one."""
    points = flat(views)
    if not np.isfinite(points).all():
        return "some view is not a number, as the model has diverged"
    return "all views are one point" if np.ptp(points, axis=0).max() < SPREAD else None


def pca(views: Views) -> tuple[np.ndarray, float]:
    """(2P, 2), predicted above target; the share of the variance that these two directions hold."""
    fitted = PCA(n_components=2, svd_solver="full").fit(flat(views))
    return fitted.transform(flat(views)), float(fitted.explained_variance_ratio_.sum())


def tsne(views: Views) -> np.ndarray:
    """(2P, 2), predicted above target; seeded."""
    points = flat(views)
    return TSNE(perplexity=min(PERPLEXITY, (len(points) - 1) / 3), init="pca", random_state=0).fit_transform(points)


def chart(places: np.ndarray, step: np.ndarray) -> Figure:
    """places (2P, 2), predicted above target. Steps differ by colour and marker; targets are filled."""
    with style():
        figure = Figure(figsize=(3.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        sides = zip(("predicted", "target"), np.split(places, 2), ("none", "full"), strict=True)
        for number, (side, points, fill) in product(np.unique(step), sides):
            axes.plot(
                *points[step == number].T,
                linestyle="none",
                marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                fillstyle=fill,
                markersize=5,
                label=f"{side} {number}",
            )
        figure.legend(loc="outside lower left", ncols=3)
        return figure
