"""What evaluations and `pairing` measured, as tables, and samples of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from step_jepa.reporting.matching import LabelledEvaluation

SAMPLES = 3  # right ones and wrong ones, of each evaluation
METRICS = {  # by what they are called on the page
    "held-out LM loss": "lm_loss",
    "held-out JEPA loss": "jepa_loss",
    "held-out cosine, paired": "cosine_paired",
    "held-out cosine, unpaired": "cosine_unpaired",
}
COUNTS = {
    "answers cut off": "truncated",
    "answers without a final answer": "no_answer",
    "answers that go on too long": "over_generated",
}
MISSING = "-"


def evaluation_table(labelled: Sequence[LabelledEvaluation]) -> list[list[str]]:
    """Of every metric its name, and its value in each evaluation."""
    summaries = [each.evaluation.summary for each in labelled]
    test_files = [summary["settings"]["test_file"] for summary in summaries]
    rows = [
        ["test file", *test_files],
        ["problems", *(str(summary["n"]) for summary in summaries)],
        ["accuracy", *map(_accuracy, summaries)],
    ]
    for name, metric in METRICS.items():
        rows.append([name, *(_number(summary.get(metric)) for summary in summaries)])
    rows.append(["margin, paired - unpaired", *(_number(_margin(summary)) for summary in summaries)])
    for name, count in COUNTS.items():
        rows.append([name, *(str(summary.get(count, MISSING)) for summary in summaries)])
    return rows


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _margin(summary: Mapping[str, Any]) -> float | None:
    paired, unpaired = summary.get("cosine_paired"), summary.get("cosine_unpaired")
    return None if paired is None or unpaired is None else paired - unpaired


def _accuracy(summary: Mapping[str, Any]) -> str:
    low, high = summary["ci95"]
    return f"{summary['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


class Samples(NamedTuple):
    """The first right and the first wrong answers of an evaluation: rows of predictions.jsonl."""

    label: str
    right: list[dict[str, Any]]
    wrong: list[dict[str, Any]]


def samples(labelled: LabelledEvaluation) -> Samples:
    """Answers of problems without a truth are neither right nor wrong."""
    predictions = labelled.evaluation.predictions
    right = [row for row in predictions if row["correct"] is True]
    wrong = [row for row in predictions if row["correct"] is False]
    return Samples(labelled.label, right[:SAMPLES], wrong[:SAMPLES])


class PairingTable(NamedTuple):
    """Rows of measure, scorer, value and interval, chance, pairs; the title names model and folder."""

    title: str
    rows: list[list[str]]


def pairing_tables(pairings: Mapping[str, Mapping[str, Any]]) -> list[PairingTable]:
    """One for each model of each pairing.json, which are given by folder."""
    tables = []
    for folder, pairing in pairings.items():
        for model, result in pairing["models"].items():
            tables.append(PairingTable(f"{model} ({folder})", _pairing_rows(result["measures"])))
    return tables


def _pairing_rows(measures: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for measure, figure_by_scorer in measures.items():
        for scorer, figure in figure_by_scorer.items():
            chance = f"{figure['chance']:.3f}" if "chance" in figure else ""
            rows.append([measure.replace("_", " "), scorer, _interval(figure), chance, str(figure["n"])])
    return rows


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return MISSING
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
