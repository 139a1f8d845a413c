"""Folders -> the runs, evaluations, pairing measures and experiments in them, from the files that commands leave."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa.errors import UserError
from step_jepa.run_files.names import (
    CELL_FILE,
    OPTIONS_FILE,
    PAIRING_FILE,
    PREDICTIONS_FILE,
    RESULTS_CSV,
    RESULTS_FILE,
    ROWS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    SURPRISE_FILE,
    VIEWS_FILE,
)
from step_jepa.run_files.reading import read_json, read_summary

SETTINGS = {  # what the page says of run.json
    **dict.fromkeys(("approach", "lr_scheduler_type", "device", "dtype"), str),
    **dict.fromkeys(("model_name", "train_file", "eval_file"), (str, NoneType)),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "seed"), int),
    "learning_rate": (int, float),
    "lora": (dict, NoneType),
    "data": dict,
    "versions": dict,
}


@dataclass(frozen=True)
class Run:
    """A training run.

    folder     as it was given
    name       on the page
    state      trainer_state.json: global_step, log_history
    options    step_jepa.json
    settings   run.json; {} of a run of an older version
    rows       rows.json; None where it is not there
    arm        of the experiment that it is a seed of; None for a run by itself
    """

    folder: Path
    name: str
    state: dict[str, Any]
    options: dict[str, Any]
    settings: dict[str, Any]
    rows: dict[str, Any] | None
    arm: str | None = None

    @property
    def group(self) -> str:
        """What is shown and hidden together: all seeds of an arm."""
        return self.arm or self.name

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(optimisation step, value) of each time that the metric was logged."""
        return [(entry["step"], entry[metric]) for entry in self.state["log_history"] if metric in entry]


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate`.

    summary       summary.json
    predictions   rows of predictions.jsonl
    views         views.safetensors: predicted, target float16 (P, H); problem, step int64 (P,); None without a pair
    """

    folder: Path
    summary: dict[str, Any]
    predictions: list[dict[str, Any]]
    views: dict[str, np.ndarray] | None

    @property
    def model(self) -> str:
        """As `evaluate` was given it."""
        return self.summary["settings"]["model_name"]

    @property
    def output_dir(self) -> str | None:
        """As `evaluate` was given it; None where an older version did not note it."""
        return self.summary["settings"].get("output_dir")


@dataclass(frozen=True)
class Experiment:
    """An experiment or `ab`; its runs are among those of the page.

    results   results.json
    table     results.csv, the heads first: a row for each run
    chances   measure of `pairing` -> what guessing gives; empty where views were not measured
    """

    folder: Path
    results: dict[str, Any]
    table: list[list[str]]
    chances: dict[str, float]


@dataclass
class ReportData:
    """What the page is about, in the order in which the folders were given; of an arm the first seed's evaluation.

    pairings   folder -> pairing.json
    """

    runs: list[Run] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    pairings: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: list[Experiment] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(run.group for run in self.runs))


def read_folders(paths: Sequence[str]) -> ReportData:
    """What lies in these folders, and one level below where a folder itself holds nothing.

    Raises:
        UserError: for a folder without any of it, and for a file that is not what it should be.
    """
    data = ReportData()
    folders = _unique_folders(paths)
    names = _short_names([folder for folder in folders if _is_run(folder)])
    for folder in folders:
        if folder in names:
            data.runs.append(_read_run(folder, names[folder]))
        if _is_evaluation(folder):
            data.evaluations.append(_read_evaluation(folder))
        if (folder / PAIRING_FILE).exists():
            data.pairings[str(folder)] = read_json(folder / PAIRING_FILE, settings=dict, models=dict)
        if (folder / RESULTS_FILE).exists() and "comparisons" in (results := read_json(folder / RESULTS_FILE)):
            _read_experiment(folder, results, data)
    return data


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """What tells a folder from the others; of a single one its own name."""
    if not folders:
        return {}
    common = os.path.commonpath([folder.resolve().parent for folder in folders])
    return {folder: os.path.relpath(folder.resolve(), common) for folder in folders}


def _unique_folders(paths: Sequence[str]) -> list[Path]:
    """Each as it was given first."""
    folders: dict[Path, Path] = {}
    for path in paths:
        for folder in _folders_with_results(Path(path)):
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _folders_with_results(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give what train, evaluate, pairing or experiment wrote into")
    candidates = [path] if _holds_results(path) else sorted(path.iterdir())
    folders = [folder for folder in candidates if folder.is_dir() and _holds_results(folder)]
    if not folders:
        raise UserError(f"{path} holds no run and no results, nor does a folder in it: train or evaluate into it first")
    yield from folders


def _holds_results(folder: Path) -> bool:
    return (
        _is_run(folder)
        or _is_evaluation(folder)
        or any((folder / name).exists() for name in (PAIRING_FILE, RESULTS_FILE))
    )


def _is_evaluation(folder: Path) -> bool:
    return (folder / SUMMARY_FILE).exists() and not (folder / SURPRISE_FILE).exists()  # which has a summary of its own


def _is_run(folder: Path) -> bool:
    return (folder / TRAINER_STATE_NAME).exists() and (folder / OPTIONS_FILE).exists()


def _read_run(folder: Path, name: str, arm: str | None = None) -> Run:
    settings, rows = folder / RUN_FILE, folder / ROWS_FILE
    return Run(
        folder=folder,
        name=name,
        arm=arm,
        state=read_json(folder / TRAINER_STATE_NAME, global_step=int, log_history=list),
        options=read_json(folder / OPTIONS_FILE),
        settings=read_json(settings, **SETTINGS) if settings.exists() else {},
        rows=read_json(rows, rows=list) if rows.exists() else None,
    )


def _read_evaluation(folder: Path) -> Evaluation:
    predictions, views = folder / PREDICTIONS_FILE, folder / VIEWS_FILE
    summary = read_summary(folder / SUMMARY_FILE)
    return Evaluation(
        folder=folder,
        summary=summary,
        predictions=_predictions_of(summary, predictions) if predictions.exists() else [],
        views=_read_views(views) if views.exists() else None,
    )


def _predictions_of(summary: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    rows, count = list(_read_predictions(path)), summary["n"] + summary.get("without_truth", 0)
    if len(rows) != count:
        raise UserError(
            f"{path} has {len(rows)} of the {count} rows in {SUMMARY_FILE}: evaluate again with --overwrite"
        )
    return rows


def _read_predictions(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:  # of text that is not UTF-8, too
            raise UserError(
                f"{path}:{number} is not the JSON that evaluate writes: evaluate again with --overwrite"
            ) from error


def _read_views(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: evaluate again with --overwrite") from error


def _read_experiment(folder: Path, results: dict[str, Any], data: ReportData) -> None:
    chances: dict[str, float] = {}
    cells = [(cell.parent, read_json(cell, arm=str, seed=int)) for cell in folder.glob(f"cells/*/*/{CELL_FILE}")]
    place = {arm: number for number, arm in enumerate(results["arms"])}  # what was run since comes last
    for cell, about in sorted(cells, key=lambda cell: (place.get(cell[1]["arm"], len(place)), cell[1]["seed"])):
        _read_cell(cell, about["arm"], about["seed"], data)
        chances = chances or _chances(cell / "pairing" / PAIRING_FILE)
    table = folder / RESULTS_CSV
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines())) if table.exists() else []
    data.experiments.append(Experiment(folder, results, rows, chances))


def _read_cell(folder: Path, arm: str, seed: int, data: ReportData) -> None:
    is_first = arm not in data.groups
    if _is_run(folder / "model"):
        data.runs.append(_read_run(folder / "model", f"{arm}, seed {seed}", arm))
    if is_first and (folder / "scores" / SUMMARY_FILE).exists():
        data.evaluations.append(_read_evaluation(folder / "scores"))


def _chances(path: Path) -> dict[str, float]:
    """Of the first model of a pairing.json, if it is there."""
    if not path.exists():
        return {}
    model, *_ = read_json(path, models=dict)["models"].values()
    chances = {}
    for measure, scorers in model["measures"].items():
        for figure in scorers.values():
            if "chance" in figure:
                chances[measure] = figure["chance"]
    return chances
