"""Held-out views by step: how alike those of steps i and j are, and where they lie in one plane.

Views are of length 1: predicted, target (P, H); problem, step int64 (P,), `step` the index of the target step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from step_jepa.pairing.cosines import centred
from step_jepa.plots import COLOURS, MARKERS, InlineFigures, style
from step_jepa.plurals import counted
from step_jepa.reporting.scores import ScoredEvaluation

Views = Mapping[str, np.ndarray]
MOST_EVALUATIONS = 4
MOST_PAIRS = 80  # on a map; more would hide each other
LEAST_SPREAD = 1e-3  # of views of length 1, below which float16 tells no more apart
FULL_SHADE = 55  # per cent, of the cell with the largest cosine


# What the page shows.


def views_section(evaluations: Sequence[ScoredEvaluation], figures: InlineFigures) -> dict[str, Any] | None:
    """Of the first evaluations that have them the cosines of steps, and the maps in one plane; None where none has."""
    shown = [each for each in evaluations if _is_usable(each.labelled.evaluation.views)][:MOST_EVALUATIONS]
    if not shown:
        return None
    views = [views for each in shown if (views := each.labelled.evaluation.views) is not None]
    return {"maps": _maps(shown, views, figures), "matrices": _matrices(shown, views)}


def _is_usable(views: Views | None) -> bool:
    """Whether they are there, all numbers, and not all one point."""
    if views is None or len(views["step"]) < 2:
        return False
    stacked = _stacked(views)
    return bool(np.isfinite(stacked).all() and np.ptp(stacked, axis=0).max() >= LEAST_SPREAD)


# Cosines by step


class Cell(NamedTuple):
    """A cosine as text, its sign, and the percentage by which its cell is shaded."""

    text: str
    sign: str
    shade: int


def _matrices(shown: Sequence[ScoredEvaluation], views: Sequence[Views]) -> list[dict[str, Any]]:
    """All on one scale, which is as wide below zero as above."""
    cosines = [step_cosines(each) for each in views]
    largest = max(np.nanmax(np.abs([each.within, each.across])) for each in cosines)
    return [
        {
            "label": each.label,
            "group": each.group,
            "steps": of_steps.steps,
            "where": {
                "within a problem": _cells(of_steps.within, largest),
                "across problems": _cells(of_steps.across, largest),
            },
        }
        for each, of_steps in zip(shown, cosines, strict=True)
    ]


def _cells(matrix: np.ndarray, largest: float) -> list[list[Cell]]:
    return [[_cell(cosine, largest) for cosine in row] for row in matrix.tolist()]


def _cell(cosine: float, largest: float) -> Cell:
    if np.isnan(cosine):
        return Cell("", "none", 0)
    sign = "negative" if cosine < 0 else "positive"
    return Cell(f"{cosine:+.2f}", sign, round(FULL_SHADE * abs(cosine) / largest) if largest else 0)


class StepCosines(NamedTuple):
    """Mean cosine of predicted view i (rows) and target view j (columns), each side centred by its mean.

    steps            the indices of the S steps
    within, across   (S, S) float64: pairs of one problem, and of different problems; nan where there is none
    """

    steps: list[int]
    within: np.ndarray
    across: np.ndarray


def step_cosines(views: Views) -> StepCosines:
    """Over all pairs of a predicted and a target view."""
    predicted, target = (centred(views[side].astype(np.float64)) for side in ("predicted", "target"))
    steps = np.unique(views["step"])
    of_step = (views["step"][:, None] == steps).astype(float)  # (P, S)
    same_problem = views["problem"][:, None] == views["problem"]
    cosines = predicted @ target.T

    def mean(chosen: np.ndarray) -> np.ndarray:
        sums = of_step.T @ (cosines * chosen) @ of_step
        counts = of_step.T @ chosen.astype(float) @ of_step
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    return StepCosines(steps.tolist(), mean(same_problem), mean(~same_problem))


# Maps


def _maps(shown: Sequence[ScoredEvaluation], views: Sequence[Views], figures: InlineFigures) -> dict[str, Any] | None:
    """None where models differ in their hidden size, and have no plane in common."""
    if len({each["predicted"].shape[1] for each in views}) > 1:
        return None
    mapped = [sample(each) for each in views]
    points, share = plane(mapped)
    charts = []
    for each, of_views, places in zip(shown, mapped, points, strict=True):
        pairs = counted(len(of_views["step"]), "pair")
        description = f"{pairs} of a predicted and a target embedding in a plane, {each.label}"
        svg = figures.svg(map_chart(places, of_views["step"], np.concatenate(points)), description)
        charts.append({"label": each.label, "group": each.group, "svg": svg, "pairs": len(of_views["step"])})
    return {"share": share, "charts": charts}


def sample(views: Views) -> Views:
    """So many pairs at most, the same ones every time, in order."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(views["problem"]))[:MOST_PAIRS])
    return {name: values[chosen] for name, values in views.items()}


def _stacked(views: Views) -> np.ndarray:
    """(2P, H) float64: predicted above target."""
    return np.concatenate([views["predicted"], views["target"]]).astype(np.float64)


def plane(views: Sequence[Views]) -> tuple[list[np.ndarray], float]:
    """The principal plane of all views together: for each set (2P, 2), predicted above target; the share of the
    variance that it holds."""
    stacked = [_stacked(each) for each in views]
    fitted = PCA(n_components=2, svd_solver="full").fit(np.concatenate(stacked))
    return [fitted.transform(each) for each in stacked], float(fitted.explained_variance_ratio_.sum())


def map_chart(points: np.ndarray, steps: np.ndarray, around: np.ndarray) -> Figure:
    """Steps differ by colour and marker; predicted views are hollow, and joined to their targets.

    Args:
        points: (2P, 2), predicted above target.
        steps: (P,) int, the index of each pair's target step.
        around: (N, 2), all that the axes are to span.
    """
    predicted, target = np.split(points, 2)
    with style():
        figure = Figure(figsize=(3.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.update_datalim(around)
        axes.autoscale_view()
        axes.plot(*np.stack([predicted, target]).transpose(2, 0, 1), color=COLOURS[-1], linewidth=0.5, alpha=0.35)
        for step in np.unique(steps):
            colour, marker = COLOURS[step % len(COLOURS)], MARKERS[step % len(MARKERS)]
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linestyle": "none"}
            axes.plot(*predicted[steps == step].T, fillstyle="none", **look)
            axes.plot(*target[steps == step].T, label=f"step {step}", **look)
        figure.legend(loc="outside lower left", ncols=4, columnspacing=1, handletextpad=0.2)
        return figure
