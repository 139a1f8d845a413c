"""One cell: train, evaluate, measure; what came of it in cell.json, which is written last."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa import train
from step_jepa.errors import UserError
from step_jepa.evaluation import evaluate
from step_jepa.experiments.design import Cell
from step_jepa.pairing import command as pairing
from step_jepa.pairing.measures import free_baselines
from step_jepa.run_files import (
    CELL_FILE,
    PAIRING_FILE,
    PARTIAL_FILE,
    PREDICTIONS_FILE,
    SUMMARY_FILE,
    read_json,
    read_lines,
    write_whole,
)

IDENTITY, LOCK, TRAINED, LOG = "identity.json", "lock", "trained", "log.txt"
SUFFIXES = {"views": "", "views_to_base": "_to_base"}
WEIGHTS = ("*.safetensors", "*.bin")
FIGURES = ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "no_answer", "truncated", "over_generated")


def finished(cell: Cell) -> dict[str, Any] | None:
    """What cell.json holds (see `run`); None where the cell has not been run to its end. Raises UserError where it was
    begun with other options or on other data."""
    begun, path = cell.folder / IDENTITY, cell.folder / CELL_FILE
    if begun.exists():
        found, identity = json.loads(begun.read_text(encoding="utf-8")), cell.identity()
        if differing := [name for name in identity if found.get(name) != identity[name]]:
            raise UserError(f"{cell.folder} was begun with another {', '.join(differing)}: give another --output_dir")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def run(cell: Cell) -> None:
    """Train, from the last checkpoint if there is one, evaluate, and write cell.json:

    arm, seed             what was run
    measures              name -> a score for each problem, in the order of the test file: accuracy; of `pairing` each
                          measure of the views, and those against the base model's with _to_base
    free                  measure -> free baseline -> the same, of those measures of the views that have one
    figures               of the whole test file: LM and JEPA loss, cosines, answers that are missing or cut off
    steps, flops, tokens  of training; tokens are those read, branches too
    seconds               of training, of answering and of all, each since the last resumption
    threads               of the processor, which the last digits depend on
    Raises UserError, also where another process runs this cell."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cell.folder / LOCK, timeout=0):
            if finished(cell) is None:
                _run(cell)
    except Timeout:
        raise UserError(f"another process runs {cell.folder}: wait for it, or stop it") from None


def _run(cell: Cell) -> None:
    began = time.perf_counter()
    write_whole(cell.folder / IDENTITY, json.dumps(cell.identity()) + "\n")
    if not (cell.folder / TRAINED).exists():
        _train(cell)
        (cell.folder / TRAINED).touch()
    scores = cell.folder / "scores"
    begun = (scores / PARTIAL_FILE).exists() and not (scores / SUMMARY_FILE).exists()
    evaluate.run(cell.evaluation(overwrite=not begun))
    views = cell.measuring()
    if views:
        pairing.run(views)
    state = read_json(cell.model / TRAINER_STATE_NAME)
    summary = read_json(scores / SUMMARY_FILE)
    known = read_json(cell.folder / "pairing" / PAIRING_FILE)["models"][str(cell.model)] if views else {}
    result = {
        "arm": cell.arm,
        "seed": cell.seed,
        "measures": {"accuracy": _correct(scores / PREDICTIONS_FILE), **_of_views(known)},
        "free": _free(known),
        "figures": {name: summary[name] for name in FIGURES},
        "steps": state["global_step"],
        "flops": state["total_flos"],
        "tokens": state["num_input_tokens_seen"],
        "seconds": {
            "train": state["log_history"][-1]["train_runtime"],
            "answer": summary["seconds"],
            "all": time.perf_counter() - began,
        },
        "threads": torch.get_num_threads(),
    }
    write_whole(cell.folder / CELL_FILE, json.dumps(result) + "\n")
    if not cell.keep_model:
        _forget_weights(cell.model)


def _train(cell: Cell) -> None:
    arguments, config = cell.training()
    checkpoint = train.last_checkpoint(cell.model.glob("checkpoint-*"))
    if checkpoint and not 0 < config.max_steps <= train.steps_of(checkpoint):  # there is something left to train
        _, config = cell.training(resume_from_checkpoint=checkpoint)
    train.run(replace(arguments, overwrite=True), config)


def _correct(predictions: Path) -> list[float]:
    rows = map(json.loads, read_lines(predictions))
    return [float(row["correct"]) for row in rows if row["correct"] is not None]


def _of_views(known: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        name + suffix: scorers[scorer]
        for name, scorers in known.get("by_problem", {}).items()
        for scorer, suffix in SUFFIXES.items()
        if scorer in scorers
    }


def _free(known: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {scorer: scorers[scorer] for scorer in free_baselines(name, scorers)}
        for name, scorers in known.get("by_problem", {}).items()
    }


def _forget_weights(folder: Path) -> None:
    """Curves and settings stay for the report."""
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
