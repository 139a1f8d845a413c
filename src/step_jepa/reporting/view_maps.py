"""Held-out views by step: how alike those of steps i and j are, and where they lie in a plane.

Views are of length 1: predicted, target (P, H); problem, step int64 (P,), `step` the index of the target step.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from step_jepa.plots import COLOURS, MARKERS, InlineFigures, style
from step_jepa.reporting.matching import LabelledEvaluation

Views = Mapping[str, np.ndarray]
MOST_PAIRS = 300  # on a map; more would hide each other, and make the page large
FEWEST_VIEWS = 10  # below which t-SNE shows nothing
PERPLEXITY = 30
LEAST_SPREAD = 1e-3  # of views of length 1, below which float16 tells no more apart
FULL_SHADE = 60  # per cent, of a cell whose cosine is 1


# What the page shows.


def views_section(labelled: LabelledEvaluation, figures: InlineFigures) -> dict[str, Any]:
    """Of an evaluation the maps of its views and the tables beside them; `pairs` is None where it has no views."""
    views = labelled.evaluation.views
    if views is None:
        return {"label": labelled.label, "folder": labelled.evaluation.folder, "pairs": None}
    mapped, cosines = sample(views), step_cosines(views)
    return {
        "label": labelled.label,
        "pairs": len(views["step"]),
        "mapped": len(mapped["step"]),
        "maps": list(_maps(labelled.label, mapped, figures)),
        "steps": cosines.steps,
        "matrices": {"within a problem": _cells(cosines.within), "across problems": _cells(cosines.across)},
    }


def _maps(label: str, views: Views, figures: InlineFigures) -> Iterator[dict[str, Any]]:
    if reason := unmappable(views):
        yield _no_map("PCA and t-SNE", reason)
        return
    points, share = pca(views)
    yield _map(label, "PCA", f"The two axes hold {share:.0%} of the variance.", points, views, figures)
    count = 2 * len(views["step"])
    if count < FEWEST_VIEWS:
        yield _no_map("t-SNE", f"{count} views are too few for a t-SNE: evaluate on more problems")
    else:
        yield _map(label, "t-SNE", "How far groups lie apart means nothing.", tsne(views), views, figures)


def _no_map(method: str, reason: str) -> dict[str, Any]:
    return {"method": method, "svg": None, "why_not": reason}


def _map(
    label: str, method: str, note: str, points: np.ndarray, views: Views, figures: InlineFigures
) -> dict[str, Any]:
    steps = views["step"]
    description = f"{method} of {len(steps)} predicted and {len(steps)} target views, {label}"
    return {
        "method": method,
        "note": note,
        "svg": figures.svg(map_chart(points, steps), description),
        "centres": [_centre_row(step, steps, points) for step in np.unique(steps)],
    }


def _centre_row(step: int, steps: np.ndarray, points: np.ndarray) -> list[str]:
    """Of the views of one step: its index, how many pairs, the mean place of the predicted and of the target ones."""
    centres = [side[steps == step].mean(0) for side in np.split(points, 2)]
    return [str(step), str((steps == step).sum()), *(f"{x:.2f}, {y:.2f}" for x, y in centres)]


class Cell(NamedTuple):
    """A cosine as text, and the percentage by which its cell is shaded."""

    text: str
    shade: int


def _cells(matrix: np.ndarray) -> list[list[Cell]]:
    return [list(map(_cell, row)) for row in matrix]


def _cell(cosine: float) -> Cell:
    return Cell("-", 0) if np.isnan(cosine) else Cell(f"{cosine:.2f}", round(FULL_SHADE * max(cosine, 0)))


# Figures.


def sample(views: Views) -> Views:
    """At most 300 pairs, the same ones every time, in order."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(views["problem"]))[:MOST_PAIRS])
    return {name: values[chosen] for name, values in views.items()}


class StepCosines(NamedTuple):
    """Mean cosine of predicted view i (rows) and target view j (columns).

    steps            the indices of the S steps
    within, across   (S, S) float64: pairs of one problem, and of different problems; nan where there is none
    """

    steps: list[int]
    within: np.ndarray
    across: np.ndarray


def step_cosines(views: Views) -> StepCosines:
    """Over all pairs of a predicted and a target view."""
    predicted, target = (views[side].astype(np.float64) for side in ("predicted", "target"))
    steps = np.unique(views["step"])
    of_step = (views["step"][:, None] == steps).astype(float)  # (P, S)
    same_problem = views["problem"][:, None] == views["problem"]
    cosines = predicted @ target.T

    def mean(chosen: np.ndarray) -> np.ndarray:
        sums = of_step.T @ (cosines * chosen) @ of_step
        counts = of_step.T @ chosen.astype(float) @ of_step
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    return StepCosines(steps.tolist(), mean(same_problem), mean(~same_problem))


def _stacked(views: Views) -> np.ndarray:
    """(2P, H) float64: predicted above target."""
    return np.concatenate([views["predicted"], views["target"]]).astype(np.float64)


def unmappable(views: Views) -> str | None:
    """Why there is no map of these views; None where there is one."""
    stacked = _stacked(views)
    if not np.isfinite(stacked).all():
        return "some view is not a number, as the model has diverged"
    return "all views are one point" if np.ptp(stacked, axis=0).max() < LEAST_SPREAD else None


def pca(views: Views) -> tuple[np.ndarray, float]:
    """(2P, 2), predicted above target; the share of the variance that these two directions hold."""
    stacked = _stacked(views)
    fitted = PCA(n_components=2, svd_solver="full").fit(stacked)
    return fitted.transform(stacked), float(fitted.explained_variance_ratio_.sum())


def tsne(views: Views) -> np.ndarray:
    """(2P, 2), predicted above target; seeded."""
    stacked = _stacked(views)
    perplexity = min(PERPLEXITY, (len(stacked) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(stacked)


def map_chart(points: np.ndarray, steps: np.ndarray) -> Figure:
    """Steps differ by colour and marker; targets are filled.

    Args:
        points: (2P, 2), predicted above target.
        steps: (P,) int, the index of each pair's target step.
    """
    with style():
        figure = Figure(figsize=(3.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        sides = zip(("predicted", "target"), np.split(points, 2), ("none", "full"), strict=True)
        for step, (side, of_side, fill) in product(np.unique(steps), sides):
            axes.plot(
                *of_side[steps == step].T,
                linestyle="none",
                marker=MARKERS[step % len(MARKERS)],
                color=COLOURS[step % len(COLOURS)],
                fillstyle=fill,
                markersize=5,
                label=f"{side} {step}",
            )
        figure.legend(loc="outside lower left", ncols=3)
        return figure
