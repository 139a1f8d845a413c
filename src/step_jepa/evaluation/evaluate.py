"""`step-jepa evaluate`: how many problems a model solves, and its language-model and JEPA loss on held-out examples."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file
from transformers import PrinterCallback

from step_jepa.adapted import untrained
from step_jepa.batches.views import Views
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.sources import read_records
from step_jepa.errors import Interrupted, UserError
from step_jepa.evaluation.answers import extract, interval, is_correct
from step_jepa.evaluation.generation import Generation, generate
from step_jepa.objectives.losses import Loss
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.training.config import OPTIONS_FILE, view_options
from step_jepa.training.models import resolve, saved_predictors, setup_model_and_tokenizer
from step_jepa.training.state import STATE_FILE

PREDICTIONS, PARTIAL, SUMMARY = "predictions.jsonl", "predictions.partial.jsonl", "summary.json"
VIEWS, MOST_VIEWS = "views.safetensors", 2000
REMEDY = "give another --output_dir, or --overwrite"
HELDOUT = ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "pairs")

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class EvaluateArguments:
    """What is evaluated on what. Raises UserError for a number out of range."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    test_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    output_dir: str = field(metadata={"help": f"Where {PREDICTIONS}, {SUMMARY} and {VIEWS} go."})
    limit: int | None = field(default=None, metadata={"help": "Take the first so many examples only."})
    batch_size: int = field(default=16, metadata={"help": "Examples that are read or answered at once."})
    max_new_tokens: int = field(default=256, metadata={"help": "An answer that is longer is cut off here."})
    predictors: int = field(
        default=1, metadata={"help": "Predictor tokens of the JEPA loss, unless the model's folder holds trained ones."}
    )
    pairs: Pairs = field(
        default="all", metadata={"help": "Which pairs of consecutive steps the JEPA loss is taken on."}
    )
    loss: Loss = field(default="cosine", metadata={"help": "Distance between the predicted and the target view."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest row of the losses in tokens; longer rows keep whole steps only."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(
        default=42, metadata={"help": "Seed of predictor rows that were never trained, and of pairs = random."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the results that output_dir holds."})

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "batch_size": 1, "max_new_tokens": 1, "predictors": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} = {value}: give {least} or more")


def run(args: EvaluateArguments) -> None:
    """Write predictions.jsonl, one row per record, summary.json (see `summarise`) and views.safetensors (see
    `save_views`), and print a table.

    Interrupted, the same call goes on where it stopped. Raises UserError for unusable input, if no record has a known
    answer, and rather than mix or replace results."""
    if args.loss.startswith("centred") and not Path(resolve(args.model_name), STATE_FILE).exists():
        raise UserError(f"--loss {args.loss} needs the running means of a run with it, which {args.model_name} lacks")
    records = list(read_records(args.test_file, max_examples=args.limit))
    if not any(record["answer"] for record in records):
        raise UserError(f"{args.test_file}: no record has a known answer: give each an `answer`")
    folder = Path(args.output_dir)
    identity = _identity(args, records)
    done = _resume(folder, identity, overwrite=args.overwrite)
    trained = saved_predictors(args.model_name)
    predictors = args.predictors if trained is None else trained
    views = view_options(resolve(args.model_name))
    model, tokenizer = setup_model_and_tokenizer(
        args.model_name,
        predictors=predictors,
        predictor_head=views.get("predictor_head", "identity"),
        plain=views.get("plain", False),
        model_init_kwargs={"dtype": args.dtype},
        seed=args.seed,
    )
    data = load_and_prepare_dataset(records, tokenizer, max_length=args.max_length)
    losses, held_out = heldout(
        model,
        data,
        processing_class=tokenizer,
        predictors=predictors,
        pairs=args.pairs,
        loss=args.loss,
        batch_size=args.batch_size,
        seed=args.seed,
        **views,
    )
    _begin(folder, identity, done)
    answers = generate(
        model, tokenizer, records, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens, skip=done.keys()
    )
    try:
        with (folder / PARTIAL).open("a", encoding="utf-8") as partial:
            for generation in answers:
                done[generation.index] = generation
                print(_json(asdict(generation)), file=partial, flush=True)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(done)} of {len(records)} answers: the same command goes on from there"
        ) from None
    rows = [judge(record, done[index]) for index, record in enumerate(records)]
    settings = {**asdict(args), "predictors": predictors, "trained_predictors": trained is not None}
    summary = {**summarise(rows), **losses, "cut": data.cut, "left_out": data.left_out, "settings": settings}
    write_whole(folder / PREDICTIONS, "".join(_json(row) + "\n" for row in rows))
    save_views(folder, held_out)
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    (folder / PARTIAL).unlink()
    console.print(_table(summary, run_options(args.model_name).get("horizon", 1)))
    console.print(f"{PREDICTIONS} and {SUMMARY} lie in {folder}")


def heldout(
    model: Any,
    data: Any,
    *,
    processing_class: Any = None,
    predictors: int = 1,
    pairs: Pairs = "all",
    loss: Loss = "cosine",
    batch_size: int = 16,
    seed: int = 42,
    **views: Any,
) -> tuple[dict[str, Any], Views]:
    """The Step-JEPA figures on examples that were not trained on: lm_loss (mean over tokens), jepa_loss and
    cosine_paired (means over pairs), cosine_unpaired (mean over all views of different pairs), pairs (their number).
    A figure that the data has too few pairs for is None. And the views of these pairs.

    model, data    what StepJEPARepresentationTrainer takes; a module needs its tokenizer as `processing_class`
    views          options of StepJEPAConfig that say how views are read
    Seeds the global random generators. Raises UserError."""
    options = {"predictors": predictors, "pairs": pairs, "loss": loss, "per_device_eval_batch_size": batch_size}
    with untrained(model, data=data, processing_class=processing_class, seed=seed, **options, **views) as trainer:
        trainer.remove_callback(PrinterCallback)
        metrics = trainer.evaluate()
        return {name: metrics.get(f"eval_{name}") for name in HELDOUT}, trainer.held_out.of(0)


def save_views(folder: Path, views: Views) -> None:
    """Write views.safetensors: predicted and target, float16 (P, H), each of length 1, as only directions are compared;
    problem and step (of the target), int64 (P,). P is at most 2,000, the first; without a pair there is no file."""
    path, some = folder / VIEWS, views[:MOST_VIEWS]
    path.unlink(missing_ok=True)
    if len(some):
        sides = {side: F.normalize(getattr(some, side), dim=-1).half() for side in ("predicted", "target")}
        save_file({**sides, "problem": some.problem.contiguous(), "step": some.step.contiguous()}, path)


def judge(record: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    """The row of predictions.jsonl; `correct` is None where the record has no answer to compare with."""
    text, truth = generation.prediction, record["answer"]
    answer, rule = extract(text)
    correct = (text.strip() == truth.strip() or is_correct(answer, truth)) if truth else None
    return {
        "index": generation.index,
        "question": record["question"],
        "answer": truth,
        "prediction": text,
        "extracted": answer,
        "rule": rule,
        "correct": correct,
        "truncated": generation.truncated,
        "new_tokens": generation.new_tokens,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over judged rows: n and accuracy are of the rows with a known answer, each of which counts; no_answer (no
    rule found one) and truncated are of all rows."""
    known = [row["correct"] for row in rows if row["correct"] is not None]
    return {
        "n": len(known),
        "without_truth": len(rows) - len(known),
        "correct": sum(known),
        "accuracy": sum(known) / len(known) if known else None,
        "ci95": list(interval(sum(known), len(known))),
        "no_answer": sum(row["rule"] == "none" for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
    }


def _table(summary: Mapping[str, Any], horizon: int) -> Table:
    low, high = summary["ci95"]
    settings = summary["settings"]
    table = Table(title=Text(f"{settings['model_name']} on {settings['test_file']}"), show_header=False)
    table.add_row("correct", f"{summary['correct']} of {summary['n']}")
    table.add_row("accuracy", f"{summary['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})")
    for name in ("without_truth", "no_answer", "truncated"):
        table.add_row(name.replace("_", " "), str(summary[name]))
    rows = f"{settings['predictors']} {'trained' if settings['trained_predictors'] else 'untrained'} predictor rows"
    rows += "" if horizon == 1 else "; of the next step"  # where the run predicted another
    for name in HELDOUT:
        value = summary[name]
        shown = "-" if value is None else str(value) if name == "pairs" else f"{value:.4f}"
        table.add_row(name.replace("_", " "), f"{shown} ({rows})" if name == "jepa_loss" else shown)
    return table


# The output folder: predictions.partial.jsonl holds what was answered so far, under a line that says to what.


def _identity(args: EvaluateArguments, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What two calls must have in common for the answers of one to serve the other."""
    return {
        "model_name": args.model_name,
        "model_written": written(args.model_name),
        "records": digest(records),
        "max_new_tokens": args.max_new_tokens,
    }


def written(model_name: str, *, besides: str | None = None) -> float | None:
    """When the newest file of a model's folder was written, in seconds since the epoch; None for one on the hub.

    besides   the name of a file that is not the model's, should it lie there"""
    home = Path(resolve(model_name))
    files = [path for path in home.iterdir() if path.is_file() and path.name != besides] if home.is_dir() else []
    return max((path.stat().st_mtime for path in files), default=None)


def digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal records in the same order."""
    return hashlib.sha256(_json(records).encode()).hexdigest()


def run_options(model_name: str) -> dict[str, Any]:
    """All options of the run that a model comes from; nothing where no run left them. Raises UserError."""
    path = Path(resolve(model_name), OPTIONS_FILE)
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is not the JSON that a run writes: move it away") from None


def _resume(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> dict[int, Generation]:
    """The answers, by index, that an interrupted call left in the folder. Changes nothing there."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: give another --output_dir")
    if overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return {}
    if (folder / SUMMARY).exists() or not (folder / PARTIAL).exists():
        state = "holds finished results" if (folder / SUMMARY).exists() else "is not empty"
        raise UserError(f"{folder} {state}: {REMEDY}")
    # What follows the last line break was being written when the process died.
    begun, *done = map(json.loads, (folder / PARTIAL).read_text(encoding="utf-8").split("\n")[:-1])
    if differing := [name for name in identity if begun.get(name) != identity[name]]:
        raise UserError(f"{folder} holds answers begun with another {', '.join(differing)}: {REMEDY}")
    return {row["index"]: Generation(**row) for row in done}


def _begin(folder: Path, identity: dict[str, Any], done: dict[int, Generation]) -> None:
    """The folder with the answers so far, and without results that are being replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PARTIAL, "".join(_json(row) + "\n" for row in [identity, *map(asdict, done.values())]))
    for name in (SUMMARY, PREDICTIONS, VIEWS):
        (folder / name).unlink(missing_ok=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all. Its folder must exist."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
