"""`step-jepa evaluate`: how many problems a model solves, and its language-model and JEPA loss on held-out examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from step_jepa.batches.views import Views
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.records import Record
from step_jepa.data.sources import read_records
from step_jepa.errors import Interrupted, UserError
from step_jepa.evaluation.engines import require_vllm, transformers_engine, vllm_engine
from step_jepa.evaluation.generation import Rules, generate, requests
from step_jepa.evaluation.judging import Match, judge, summarise, truth_of
from step_jepa.evaluation.resumable import Answers, append, resume, start
from step_jepa.losses import LOSSES
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import saved_predictors
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.run_files import (
    PARTIAL_FILE,
    PREDICTIONS_FILE,
    STATE_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
    json_lines,
    last_modified,
    records_digest,
    run_options,
    write_json,
    write_whole,
)
from step_jepa.training.config import StepJEPAOptions, view_options
from step_jepa.training.held_out import held_out
from step_jepa.training.representation import Representation

MOST_VIEWS = 2000
HELDOUT = ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "pairs")

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class EvaluateArguments:
    """What is evaluated on what. Raises UserError for a number out of range."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    test_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    output_dir: str = field(metadata={"help": f"Where {PREDICTIONS_FILE}, {SUMMARY_FILE} and {VIEWS_FILE} go."})
    limit: int | None = field(default=None, metadata={"help": "Take the first so many examples only."})
    batch_size: int = field(default=16, metadata={"help": "Examples that are read or answered at once."})
    max_new_tokens: int = field(default=256, metadata={"help": "An answer that is longer is cut off here."})
    match: Match = field(
        default="math",
        metadata={"help": "What is right: the same mathematics as the truth; exactly its text; a text that begins so."},
    )
    samples: int = field(
        default=1, metadata={"help": "Answers to each problem: 1 is greedy; of more, drawn, the majority's counts."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Of the drawn answers, with --samples above 1."})
    engine: Literal["hf", "vllm"] = field(
        default="hf", metadata={"help": "Who writes the answers: transformers, or vLLM (installed beside this)."}
    )
    predictors: int = field(
        default=1, metadata={"help": "Predictor tokens of the JEPA loss, unless the model's folder holds trained ones."}
    )
    pairs: Pairs = field(
        default="all", metadata={"help": "Which pairs of consecutive steps the JEPA loss is taken on."}
    )
    loss: str = field(default="cosine", metadata={"help": "Distance between the predicted and the target view."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest row of the losses in tokens; longer rows keep whole steps only."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(
        default=42,
        metadata={"help": "Seed of drawn answers, of predictor rows that were never trained, of pairs = random."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the results that output_dir holds."})

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "batch_size": 1, "max_new_tokens": 1, "samples": 1, "predictors": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} = {value}: give {least} or more")
        if not 0 < self.temperature < inf:
            raise UserError(
                f"temperature = {self.temperature}: give more than 0; leave out --samples for greedy answers"
            )
        if self.samples == 1 and self.temperature != EvaluateArguments.temperature:
            raise UserError(
                f"temperature = {self.temperature} is of drawn answers, and one is greedy: give --samples too"
            )


def run(args: EvaluateArguments) -> None:
    """Write predictions.jsonl, one row per record (see `judge`), summary.json (see `summarise`; `seconds` are those of
    this call, once the model is loaded) and views.safetensors (see `save_views`), and print a table.

    Interrupted, the same call goes on where it stopped. Raises UserError for unusable input, if no record has a known
    answer, and rather than mix or replace results."""
    records, done = _begun(args)
    folder, trained = Path(args.output_dir), saved_predictors(args.model_name)
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
    ready = time.perf_counter()
    losses, views_of_pairs = heldout(
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
    start(folder, _identity(args, records), done)
    _answer(args, model, tokenizer, records, done)
    rows = [
        judge(record, [done[index, k] for k in range(args.samples)], args.match) for index, record in enumerate(records)
    ]
    settings = {**asdict(args), "predictors": predictors, "trained_predictors": trained is not None}
    summary = {**summarise(rows), **losses, "cut": data.cut, "left_out": data.left_out}
    summary |= {"seconds": time.perf_counter() - ready, "settings": settings}
    write_whole(folder / PREDICTIONS_FILE, json_lines(rows))
    save_views(folder, views_of_pairs)
    write_json(folder / SUMMARY_FILE, summary)
    (folder / PARTIAL_FILE).unlink()
    console.print(_table(summary, run_options(resolve(args.model_name)).get("horizon", 1)))
    console.print(f"{PREDICTIONS_FILE} and {SUMMARY_FILE} lie in {folder}")


def _begun(args: EvaluateArguments) -> tuple[list[Record], Answers]:
    """The records, and the answers that there are already, once nothing speaks against going on. Raises UserError."""
    if LOSSES[args.loss].centred and not Path(resolve(args.model_name), STATE_FILE).exists():
        raise UserError(f"--loss {args.loss} needs the running means of a run with it, which {args.model_name} lacks")
    if args.engine == "vllm":
        require_vllm(args.model_name)
    records = list(read_records(args.test_file, max_examples=args.limit))
    if not any(truth_of(record, args.match) for record in records):
        raise UserError(f"{args.test_file}: no record has a known answer: give each an `answer`, or --match exact")
    return records, resume(Path(args.output_dir), _identity(args, records), overwrite=args.overwrite)


def _identity(args: EvaluateArguments, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What two calls must have in common for the answers of one to serve the other. Answers are judged afterwards, and
    more samples go on from fewer."""
    return {
        "model_name": args.model_name,
        "model_written": last_modified(resolve(args.model_name)),
        "records": records_digest(records),
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "engine": args.engine,
        "sampling": [args.temperature, args.seed] if args.samples > 1 else None,
    }


def _answer(
    args: EvaluateArguments, model: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], done: Answers
) -> None:
    """Have the answers written that are not in `done`. Raises Interrupted."""
    wanted, stops = requests(model, tokenizer, records, samples=args.samples)
    rules = Rules(stops, args.max_new_tokens, args.temperature if args.samples > 1 else None, args.seed)
    if args.engine == "hf":
        engine = transformers_engine(model, tokenizer, rules)
    else:
        model.cpu()  # vLLM loads its own
        torch.cuda.empty_cache()
        engine = vllm_engine(args.model_name, args.dtype, rules)
    left = [request for request in wanted if (request.index, request.sample) not in done]
    try:
        append(Path(args.output_dir), generate(engine, tokenizer, left, rules, batch_size=args.batch_size), done)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(done)} of {len(wanted)} answers: the same command goes on from there"
        ) from None


def heldout(
    model: Any,
    data: Any,
    *,
    processing_class: Any = None,
    predictors: int = 1,
    pairs: Pairs = "all",
    loss: str = "cosine",
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
    options = StepJEPAOptions(predictors=predictors, pairs=pairs, loss=loss, **views)
    representation = Representation.load(model, options, seed=seed, processing_class=processing_class)
    result = held_out(representation, representation.evaluation_rows(data), batch_size=batch_size)
    figures = {"lm_loss": result.lm_loss, **result.figures}
    return {name: figures.get(name) for name in HELDOUT}, result.views.of(0)


def save_views(folder: Path, views: Views) -> None:
    """Write views.safetensors: predicted and target, float16 (P, H), each of length 1, as only directions are compared;
    problem and step (of the target), int64 (P,). P is at most 2,000, the first; without a pair there is no file."""
    path, some = folder / VIEWS_FILE, views[:MOST_VIEWS]
    path.unlink(missing_ok=True)
    if len(some):
        sides = {side: F.normalize(getattr(some, side), dim=-1).half() for side in ("predicted", "target")}
        save_file({**sides, "problem": some.problem.contiguous(), "step": some.step.contiguous()}, path)


def _table(summary: Mapping[str, Any], horizon: int) -> Table:
    low, high = summary["ci95"]
    settings = summary["settings"]
    table = Table(title=Text(f"{settings['model_name']} on {settings['test_file']}"), show_header=False)
    table.add_row("correct", f"{summary['correct']} of {summary['n']}")
    table.add_row("accuracy", f"{summary['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})")
    if settings["samples"] > 1:
        table.add_row("accuracy of single samples", f"{summary['sample_accuracy']:.1%}")
    for name in ("without_truth", "no_answer", "truncated", "over_generated"):
        table.add_row(name.replace("_", " "), str(summary[name]))
    rows = f"{settings['predictors']} {'trained' if settings['trained_predictors'] else 'untrained'} predictors"
    rows += "" if horizon == 1 else "; of the next step"  # where the run predicted another
    for name in HELDOUT:
        value = summary[name]
        shown = "-" if value is None else str(value) if name == "pairs" else f"{value:.4f}"
        if name == "jepa_loss":
            table.add_row(f"jepa loss ({settings['loss']}, {settings['pairs']})", f"{shown} ({rows})")
        else:
            table.add_row(name.replace("_", " "), shown)
    return table
