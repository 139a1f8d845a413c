"""What evaluations measured: figures with their intervals, and the answers to the same problems side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from step_jepa.pairing.cosines import MARGIN, cosine_scores
from step_jepa.pairing.pairs import VIEWS
from step_jepa.reporting.dots import OTHER, Dot, DotPlot, figure_text, kind_of, share_text
from step_jepa.reporting.matching import BEFORE, LabelledEvaluation
from step_jepa.reporting.runs import Evaluation
from step_jepa.statistics.bootstrap import bootstrap
from step_jepa.training.model_card import public

BOOTSTRAP_SEED = 42
METRICS = {  # by what they are called on the page
    "LM loss": "lm_loss",
    "JEPA loss": "jepa_loss",
    "cosine, paired": "cosine_paired",
    "cosine, unpaired": "cosine_unpaired",
}
COUNTS = {"answers cut off": "truncated", "without a final answer": "no_answer", "going on too long": "over_generated"}
MISSING = "-"
MOST_COLUMNS = 4  # of answers side by side
MOST_EXAMPLES = 3  # of each kind
FOLDED = 400  # characters of a text, beyond which it is folded

Figure = dict[str, float]  # value, low, high


# Figures


class ScoredEvaluation(NamedTuple):
    """An evaluation and its margin: of centred views the cosine of pairs minus that of others; None without views."""

    labelled: LabelledEvaluation
    margin: Figure | None

    @property
    def label(self) -> str:
        return self.labelled.label

    @property
    def group(self) -> str | None:
        return self.labelled.run.group if self.labelled.run else None

    @property
    def kind(self) -> str:
        return kind_of(self.labelled.run.options) if self.labelled.run else OTHER

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.labelled.evaluation.summary


def scored(labelled: Sequence[LabelledEvaluation]) -> list[ScoredEvaluation]:
    return [ScoredEvaluation(each, _margin(each.evaluation)) for each in labelled]


def _margin(evaluation: Evaluation) -> Figure | None:
    """None, too, where there is but one problem, or where the model has diverged."""
    views = evaluation.views
    if views is None or len(np.unique(views["problem"])) < 2:
        return None
    sides = views["predicted"].astype(np.float64), views["target"].astype(np.float64)
    if not all(np.isfinite(side).all() for side in sides):
        return None
    scores = cosine_scores({VIEWS: sides})[MARGIN][VIEWS]
    value, low, high = bootstrap(scores.value, views["problem"], BOOTSTRAP_SEED)
    return {"value": value, "low": low, "high": high}


def figure_plots(evaluations: Sequence[ScoredEvaluation]) -> list[DotPlot]:
    """Of accuracy, and of the margin, where they were measured."""
    accuracies, margins = [], []
    for each in evaluations:
        if each.summary["accuracy"] is not None:
            low, high = each.summary["ci95"]
            share = each.summary["accuracy"]
            accuracies.append(Dot(each.label, share, low, high, _accuracy(each.summary), each.kind, each.group))
        if each.margin:
            text = figure_text(**each.margin)
            margins.append(Dot(each.label, **each.margin, text=text, kind=each.kind, group=each.group))
    plots = []
    if accuracies:
        plots.append(DotPlot("Accuracy on held-out problems", accuracies, is_share=True))
    if margins:
        plots.append(DotPlot("Margin of true pairs over others", margins, (0, "no margin")))
    return plots


def figures_table(evaluations: Sequence[ScoredEvaluation]) -> list[list[str]]:
    """The heads, and a row for each evaluation; figures that none has are left out."""
    heads = ["", "accuracy [95 %]", "margin [95 %]", *METRICS, *COUNTS, "problems", "test file"]
    rows = [_figures_row(each) for each in evaluations]
    columns = [column for column in zip(heads, *rows, strict=True) if set(column[1:]) != {MISSING}]
    return [list(row) for row in zip(*columns, strict=True)]


def _figures_row(each: ScoredEvaluation) -> list[str]:
    summary = each.summary
    return [
        each.label,
        _accuracy(summary),
        figure_text(**each.margin) if each.margin else MISSING,
        *(_figure(summary, metric) for metric in METRICS.values()),
        *(str(summary.get(count, MISSING)) for count in COUNTS.values()),
        str(summary["n"]),
        public(summary["settings"]["test_file"]),
    ]


def _figure(summary: Mapping[str, Any], metric: str) -> str:
    """The JEPA loss with its name: those of two kinds are not to be compared."""
    if (value := summary.get(metric)) is None:
        return MISSING
    name = summary["settings"].get("loss") if metric == METRICS["JEPA loss"] else None
    return f"{value:.4f} {name}" if name else f"{value:.4f}"


def _accuracy(summary: Mapping[str, Any]) -> str:
    if summary["accuracy"] is None:
        return MISSING
    low, high = summary["ci95"]
    return share_text(summary["accuracy"], low, high)


# Answers side by side


class Answers(NamedTuple):
    """Problems that the same evaluations answered.

    columns    labels of the evaluations, and their groups
    kinds      what became of the answers -> how many problems, and the first of them
    """

    columns: list[tuple[str, str | None]]
    kinds: dict[str, "Examples"]


class Examples(NamedTuple):
    """How many problems, and of the first ones the row of predictions.jsonl of every column."""

    total: int
    rows: list[list[dict[str, Any]]]


def answers_side_by_side(evaluations: Sequence[ScoredEvaluation]) -> list[Answers]:
    """One for each set of problems. Answers of problems without a known one are neither right nor wrong."""
    by_problems: dict[tuple[str, ...], list[ScoredEvaluation]] = {}
    for each in evaluations:
        questions = tuple(row["question"] for row in each.labelled.evaluation.predictions)
        by_problems.setdefault(questions, []).append(each)
    return [_answers(alike[:MOST_COLUMNS]) for questions, alike in by_problems.items() if questions]


def _answers(evaluations: Sequence[ScoredEvaluation]) -> Answers:
    gained, lost = _changed(evaluations[0].label)
    rows_by_kind: dict[str, list[list[dict[str, Any]]]] = {kind: [] for kind in (gained, lost, "Right", "Wrong")}
    columns = [(each.label, each.group) for each in evaluations]
    for rows in zip(*(each.labelled.evaluation.predictions for each in evaluations), strict=True):
        if rows[0]["correct"] is not None:
            rows_by_kind[_kind(rows, gained, lost)].append(list(rows))
    shown = {kind: Examples(len(rows), rows[:MOST_EXAMPLES]) for kind, rows in rows_by_kind.items() if rows}
    return Answers(columns, shown)


def _changed(first: str) -> tuple[str, str]:
    """What is said of problems that only others than the first column solve, and of those that not all others solve."""
    if first == BEFORE:
        return "Gained: wrong before, right after", "Lost: right before, wrong after"
    return f"{first} is wrong, another right", f"{first} is right, another wrong"


def _kind(rows: Sequence[Mapping[str, Any]], gained: str, lost: str) -> str:
    """What became of a problem."""
    is_right, *others = (row["correct"] for row in rows)
    if is_right and not all(others):
        return lost
    if not is_right and any(others):
        return gained
    return "Right" if is_right else "Wrong"


def changes(evaluations: Sequence[ScoredEvaluation]) -> tuple[int, int] | None:
    """Problems that the second of two evaluations of the same ones gained, and lost; None of others."""
    if len(evaluations) != 2:
        return None
    before, after = (each.labelled.evaluation.predictions for each in evaluations)
    if not before or [row["question"] for row in before] != [row["question"] for row in after]:
        return None
    gained = sum(not old["correct"] and bool(new["correct"]) for old, new in zip(before, after, strict=True))
    lost = sum(bool(old["correct"]) and not new["correct"] for old, new in zip(before, after, strict=True))
    return gained, lost
