"""One run in its folder: train, evaluate, measure; what came of it in cell.json, which is written last."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa.errors import UserError
from step_jepa.evaluation import evaluate
from step_jepa.experiments.arguments import ACCURACY
from step_jepa.experiments.plan import Run
from step_jepa.pairing import command as pairing
from step_jepa.pairing.measures import free_baselines
from step_jepa.run_files.identity import differing
from step_jepa.run_files.names import CELL_FILE, PAIRING_FILE, PARTIAL_FILE, PREDICTIONS_FILE, SUMMARY_FILE
from step_jepa.run_files.reading import check_fields, read_json, read_lines
from step_jepa.run_files.writing import write_json
from step_jepa.surprise.measure import load
from step_jepa.surprise.measures import Measures, measures
from step_jepa.train import command as train
from step_jepa.training.checkpoints import checkpoints_in, has_all_steps, last_checkpoint

IDENTITY_FILE, LOCK_FILE, TRAINED_FILE, LOG_FILE = "identity.json", "lock", "trained", "log.txt"
SUFFIXES = {"views": "", "views_to_base": "_to_base"}  # of a measure's name, by what it is of
WEIGHTS = ("*.safetensors", "*.bin")
FIGURES = (
    "lm_loss",
    "jepa_loss",
    "cosine_paired",
    "cosine_unpaired",
    "no_answer",
    "truncated",
    "over_generated",
    "longest_solution",
)

Scores = list[float]  # one for each problem, in the order of the test file


@dataclass(frozen=True)
class Seconds:
    """Of training, of answering and of all, each since the last resumption."""

    train: float
    answer: float
    all: float


@dataclass(frozen=True)
class RunResult:
    """What came of a run; cell.json, where `condition` is called arm.

    measures              name -> scores: accuracy, and by each further criterion of `evaluate`; of `pairing` each
                          measure of the views, and those against the base model's with _to_base; those of `surprise`
    free                  measure -> free baseline -> scores, of those measures that have one
    figures               of the whole test file: LM and JEPA loss, cosines, answers that are missing or cut off, and by
                          kind of error
    steps, flops, tokens  of training; tokens are those read, branches too
    threads               of the processor, which the last digits depend on
    """

    condition: str
    seed: int
    measures: dict[str, Scores]
    free: dict[str, dict[str, Scores]]
    figures: dict[str, float | None]
    steps: int
    flops: float
    tokens: int
    seconds: Seconds
    threads: int

    def write(self, path: Path) -> None:
        """The file appears whole or not at all."""
        content = asdict(self)
        write_json(path, {"arm": content.pop("condition"), **content}, indent=None)

    @classmethod
    def read(cls, path: Path) -> "RunResult":
        """Raises UserError for a file that is none of these, or damaged."""
        content = read_json(path)
        names = {"arm" if field.name == "condition" else field.name for field in fields(cls)}
        if missing := sorted(names - content.keys()):
            raise UserError(f"{path} has no {missing[0]}: remove {path.parent}, and the same command runs it again")
        check_fields(content["seconds"], path, **{field.name: (int, float) for field in fields(Seconds)})
        kept = {name: content[name] for name in names - {"arm", "seconds"}}
        return cls(condition=content["arm"], seconds=Seconds(**content["seconds"]), **kept)


def finished_result(run: Run) -> RunResult | None:
    """What came of the run; None where it has not come to its end. Raises UserError where it was started with other
    options or on other data."""
    if (run.folder / IDENTITY_FILE).exists():
        started, identity = read_json(run.folder / IDENTITY_FILE), run.identity()
        if others := differing(identity, started):
            raise UserError(f"{run.folder} was begun with another {others}: give another --output_dir")
    path = run.folder / CELL_FILE
    return RunResult.read(path) if path.exists() else None


def execute(run: Run) -> None:
    """Train, from the last checkpoint if there is one, evaluate, measure views where that is asked for, and write
    cell.json; nothing where it is there. Raises UserError, also where another process executes this run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.folder / LOCK_FILE, timeout=0):
            if finished_result(run) is None:
                _execute(run)
    except Timeout:
        raise UserError(f"another process runs {run.folder}: wait for it, or stop it") from None


def _execute(run: Run) -> None:
    start = time.perf_counter()
    write_json(run.folder / IDENTITY_FILE, run.identity(), indent=None)
    if not (run.folder / TRAINED_FILE).exists():
        _train(run)
        (run.folder / TRAINED_FILE).touch()
    summary = _evaluate(run)
    view_scores, surprise = _measure_views(run), _measure_surprise(run)
    state = read_json(run.model_folder / TRAINER_STATE_NAME)
    result = RunResult(
        condition=run.condition,
        seed=run.seed,
        measures=_of_answers(run.folder / "scores" / PREDICTIONS_FILE) | _of_views(view_scores) | surprise.scores,
        free=_of_free_baselines(view_scores) | surprise.free,
        figures={**{name: summary[name] for name in FIGURES}, **summary["errors"]},
        steps=state["global_step"],
        flops=state["total_flos"],
        tokens=state["num_input_tokens_seen"],
        seconds=Seconds(
            train=state["log_history"][-1]["train_runtime"],
            answer=summary["seconds"],
            all=time.perf_counter() - start,
        ),
        threads=torch.get_num_threads(),
    )
    result.write(run.folder / CELL_FILE)
    if not run.keep_model:
        _remove_weights(run.model_folder)


def _train(run: Run) -> None:
    arguments, config = run.training()
    checkpoint = last_checkpoint(checkpoints_in(run.model_folder))
    if checkpoint and not has_all_steps(checkpoint):
        _, config = run.training(resume_from_checkpoint=checkpoint)
    train.run(replace(arguments, overwrite=True), config)


def _evaluate(run: Run) -> dict[str, Any]:
    """The summary, after answering all problems that an interrupted call has not answered."""
    folder = run.folder / "scores"
    interrupted = (folder / PARTIAL_FILE).exists() and not (folder / SUMMARY_FILE).exists()
    evaluate.run(run.evaluation(overwrite=not interrupted))
    return read_json(folder / SUMMARY_FILE)


def _measure_views(run: Run) -> dict[str, dict[str, Scores]]:
    """Measure -> scorer -> scores; nothing where views are not measured."""
    arguments = run.measuring()
    if arguments is None:
        return {}
    pairing.run(arguments)
    models = read_json(run.folder / "pairing" / PAIRING_FILE)["models"]
    return dict(models[str(run.model_folder)].get("by_problem", {}))


def _measure_surprise(run: Run) -> Measures:
    """Of the answers that `evaluate` has, and of planted errors; nothing where it is not measured."""
    arguments = run.surprising()
    if arguments is None:
        return Measures(0)
    rows = [json.loads(line) for line in read_lines(run.folder / "scores" / PREDICTIONS_FILE)]
    records = [json.loads(line) for line in read_lines(run.test_file)][: len(rows)]
    representation = load(str(run.model_folder), seed=arguments.seed, model_init_kwargs={"dtype": arguments.dtype})
    predictions, correct = [row["prediction"] for row in rows], [row["correct"] for row in rows]
    return measures(representation, records, predictions, correct, batch_size=arguments.batch_size, seed=arguments.seed)


def _of_answers(predictions: Path) -> dict[str, Scores]:
    """accuracy, and what each further criterion says, of the problems with a known answer."""
    rows = [json.loads(line) for line in read_lines(predictions)]
    known = [row for row in rows if row["correct"] is not None]
    further = known[0].get("by", {})
    scores = {name: [float(row["by"][name]) for row in known] for name in further}
    return {ACCURACY: [float(row["correct"]) for row in known], **scores}


def _of_views(view_scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Scores]:
    measures = {}
    for name, scorers in view_scores.items():
        for scorer, suffix in SUFFIXES.items():
            if scorer in scorers:
                measures[name + suffix] = scorers[scorer]
    return measures


def _of_free_baselines(view_scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, Scores]]:
    baselines: dict[str, dict[str, Scores]] = {}
    for name, scorers in view_scores.items():
        baselines[name] = {scorer: scorers[scorer] for scorer in free_baselines(name, scorers)}
    return baselines


def _remove_weights(folder: Path) -> None:
    """Curves and settings stay for the report."""
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
