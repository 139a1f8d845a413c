"""What lies in folders: runs, evaluations and pairing measures, read from the files that the commands leave."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa.errors import UserError
from step_jepa.run_files import (
    OPTIONS_FILE,
    PAIRING_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    ROWS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
)


@dataclass(frozen=True)
class Run:
    """folder     as it was given
    state      trainer_state.json: global_step, log_history
    options    step_jepa.json
    settings   run.json; {} of a run of an older version
    rows       rows.json; None where it is not there
    """

    folder: Path
    state: dict[str, Any]
    options: dict[str, Any]
    settings: dict[str, Any]
    rows: dict[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.folder)

    def points(self, logged: str) -> list[tuple[int, float]]:
        """(optimisation step, value) of each time that a figure was logged."""
        return [(entry["step"], entry[logged]) for entry in self.state["log_history"] if logged in entry]


@dataclass(frozen=True)
class Evaluation:
    """summary       summary.json
    predictions   rows of predictions.jsonl
    views         views.safetensors: predicted, target float16 (P, H); problem, step int64 (P,); None without a pair
    """

    folder: Path
    summary: dict[str, Any]
    predictions: list[dict[str, Any]]
    views: dict[str, np.ndarray] | None

    @property
    def model(self) -> str:
        return self.summary["settings"]["model_name"]


@dataclass
class Findings:
    """Everything, in the order in which the folders were given; pairings and experiments: pairing.json and results.json
    by folder."""

    runs: list[Run] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    pairings: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)

    def roles(self) -> list[tuple[str, Evaluation]]:
        """Each evaluation with what it is: before (of a run's base model), after and the run's name, or its model's
        name; in this order."""
        named = [(self._role(evaluation), evaluation) for evaluation in self.evaluations]
        rank = {"before": 0, "after": 1}
        return sorted(named, key=lambda each: rank.get(each[0].split()[0], 2))

    def _role(self, evaluation: Evaluation) -> str:
        if run := self.trained(evaluation):
            return "after" if len(self.runs) == 1 else f"after {run.name}"
        bases = {run.settings.get("model_name") for run in self.runs}
        return "before" if evaluation.model in bases else evaluation.model

    def trained(self, evaluation: Evaluation) -> Run | None:
        """The run whose model was evaluated. Its name may be relative to another folder than this one."""
        here, parts = Path(evaluation.model).resolve(), Path(evaluation.model).parts
        exact = [run for run in self.runs if run.folder.resolve() == here]
        moved = [run for run in self.runs if run.folder.resolve().parts[-len(parts) :] == parts]
        return next(iter([*exact, *moved]), None)


def find(paths: Sequence[str]) -> Findings:
    """What lies in these folders, and one level below where a folder itself holds nothing. Raises UserError for a
    folder without any of it, and for a file that is not what it should be."""
    found = Findings()
    for folder in dict.fromkeys(folder for path in paths for folder in _folders(Path(path))):
        if _is_run(folder):
            found.runs.append(_run(folder))
        if (folder / SUMMARY_FILE).exists():
            found.evaluations.append(_evaluation(folder))
        if (folder / PAIRING_FILE).exists():
            found.pairings[str(folder)] = read_json(folder / PAIRING_FILE)
        if (folder / RESULTS_FILE).exists() and "comparisons" in (results := read_json(folder / RESULTS_FILE)):
            found.experiments[str(folder)] = results
    return found


def _folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give what train, evaluate, pairing or experiment wrote into")
    inside = [path] if _holds_something(path) else [each for each in sorted(path.iterdir()) if each.is_dir()]
    kept = [folder for folder in inside if _holds_something(folder)]
    if not kept:
        raise UserError(f"{path} holds no run and no results, nor does a folder in it: train or evaluate into it first")
    yield from kept


def _holds_something(folder: Path) -> bool:
    return _is_run(folder) or any((folder / name).exists() for name in (SUMMARY_FILE, PAIRING_FILE, RESULTS_FILE))


def _is_run(folder: Path) -> bool:
    return (folder / TRAINER_STATE_NAME).exists() and (folder / OPTIONS_FILE).exists()


def _run(folder: Path) -> Run:
    settings, rows = folder / RUN_FILE, folder / ROWS_FILE
    return Run(
        folder=folder,
        state=read_json(folder / TRAINER_STATE_NAME),
        options=read_json(folder / OPTIONS_FILE),
        settings=read_json(settings) if settings.exists() else {},
        rows=read_json(rows) if rows.exists() else None,
    )


def _evaluation(folder: Path) -> Evaluation:
    predictions, views = folder / PREDICTIONS_FILE, folder / VIEWS_FILE
    lines = predictions.read_text(encoding="utf-8").split("\n") if predictions.exists() else []
    return Evaluation(
        folder=folder,
        summary=read_json(folder / SUMMARY_FILE),
        predictions=[_table(line, f"{predictions}:{number}") for number, line in enumerate(lines, 1) if line],
        views=_views(views) if views.exists() else None,
    )


def _views(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError:
        raise UserError(f"{path} is damaged: evaluate again") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        return _table(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: move it away, or make it again") from None


def _table(text: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise UserError(f"{where} is not the JSON that step-jepa writes: move it away, or make it again") from None
