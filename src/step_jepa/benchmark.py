"""`step-jepa benchmark`: forward and backward of the same rows, by plain fine-tuning, each objective, and two passes.

Two passes are the published method: the row once for the language model, then the whole row again with the predictor
tokens inserted and step 2 isolated. All variants make logits at labels only, and none in the second pass.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from step_jepa.adapted import untrained
from step_jepa.batches.collate import PADDING, Batch, BranchCollator, PlainCollator
from step_jepa.data.tokens import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.losses.distances import cosine
from step_jepa.models.predictors import predictor_ids
from step_jepa.objectives import LLMJEPA, SSP, STP, Objective, StepJEPA, STPReleased
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import Pair, Row, last, trunk

TWO_PASSES = ("two_pass", "two_pass_padded")


def objectives(predictors: Sequence[int]) -> dict[str, list[Objective]]:
    """What is measured beside two passes: the objectives of each variant."""
    return {
        "sft": [],
        "one_pass_first": [StepJEPA(predictors)],
        "one_pass_all": [StepJEPA(predictors, "all")],
        "context_first": [StepJEPA(predictors, target="context")],
        "context_all": [StepJEPA(predictors, "all", target="context")],
        "context_all_k0": [StepJEPA((), "all", target="context")],
        "llm_jepa": [LLMJEPA(predictors)],
        "stp": [STP()],
        "stp_released": [STPReleased()],
        "ssp": [SSP()],
    }


VARIANTS = (*objectives(()), *TWO_PASSES)


@dataclass
class BenchmarkArguments:
    """Which rows, how many at a time, how often."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    batch_size: int = field(default=4, metadata={"help": "Rows of one measurement."})
    repeats: int = field(default=3, metadata={"help": "Measurements, each on other rows, after one to warm up."})
    max_length: int = field(default=1024, metadata={"help": "Longest row, and the length of the padded variant."})
    predictors: int = field(default=1, metadata={"help": "K, the predictor tokens."})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "Of the weights."})
    variants: list[str] = field(
        default_factory=lambda: list(VARIANTS), metadata={"help": f"Which: sft and some of {', '.join(VARIANTS[1:])}."}
    )
    attn_implementation: Literal["sdpa", "eager"] = field(default="sdpa", metadata={"help": "Attention backend."})
    seed: int = field(default=42, metadata={"help": "Of the predictor rows."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of a table."})


def run(args: BenchmarkArguments) -> None:
    """Measure and print. Raises UserError."""
    if min(args.batch_size, args.repeats) < 1:
        raise UserError("--batch_size and --repeats must be more than 0")
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        raise UserError(f"--variants {unknown[0]}: give some of {', '.join(VARIANTS)}")
    result = benchmark(args)
    if args.json:
        print(json.dumps(result))
    else:
        _show(result)


def benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Medians over the repetitions; ratios are medians of the ratios within a repetition."""
    options: dict[str, Any] = {"predictors": args.predictors, "max_length": args.max_length, "seed": args.seed}
    options |= {"objective": ["step_jepa", "llm_jepa"]}  # which have all the tokens that any objective wants
    loaded = {"dtype": args.dtype, "attn_implementation": args.attn_implementation}
    variants = ["sft", *(name for name in args.variants if name != "sft")]  # what the others are measured against
    with untrained(args.model_name, data=args.train_file, model_init_kwargs=loaded, **options) as trainer:
        trainer.model.train()
        plan = Planner([StepJEPA()])
        examples = [example for example in trainer.train_dataset.examples if plan(example).pairs]
        if len(examples) < args.batch_size:
            raise UserError(f"{args.train_file} has {len(examples)} rows with two steps: give a smaller --batch_size")
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        peaks: dict[str, float | None] = {}
        for repeat in tqdm(range(-1, args.repeats), desc="measuring", leave=False):
            start = max(repeat, 0) * args.batch_size
            chosen = [examples[(start + place) % len(examples)] for place in range(args.batch_size)]
            for name in variants:
                elapsed, peaks[name] = _measure(trainer, _passes(trainer, name, chosen, args.max_length))
                if repeat >= 0:
                    seconds[name].append(elapsed)
        return _report(seconds, peaks, examples, predictor_ids(trainer.model))


def _passes(trainer: Any, name: str, examples: list[Example], length: int) -> list[Batch]:
    """The batches that a variant sends through the model, one after the other."""
    predictors, pad = predictor_ids(trainer.model), trainer.processing_class.pad_token_id
    plain = [trainer._prepare_inputs(PlainCollator(pad)([trunk(example) for example in examples]))]
    if name == "sft":
        return plain
    if name in TWO_PASSES:
        rows = [second_row(example, predictors) for example in examples]
        passes = [*plain, trainer._prepare_inputs(BranchCollator(pad)(rows))]
        return passes if name == "two_pass" else [padded(batch, length, pad) for batch in passes]
    plan = Planner(objectives(predictors)[name])
    return [trainer._prepare_inputs(BranchCollator(pad)([plan(example) for example in examples]))]


def second_row(example: Example, predictors: list[int]) -> Row:
    """The whole row once more, without labels: predictors after step 1, step 2 isolated, the rest of the row kept."""
    (_, before), (start, stop) = example.steps[:2]
    ids = example.input_ids
    row = Row(ids[:before], [IGNORED] * before)
    predicted = (
        row.append_branch(predictors, position_offset=before, visible_length=before) if predictors else range(before)
    )
    target = row.append_branch(ids[start:stop], position_offset=start, visible_length=0)
    row.append_branch(ids[stop:], position_offset=stop, visible_length=before)
    row.pairs.append(Pair(last(predicted), last(target)))
    return row


def padded(batch: Batch, length: int, pad_id: int) -> Batch:
    """Every row filled up to `length` tokens."""
    fill = {"input_ids": pad_id, "labels": IGNORED, "branch": PADDING}
    return {
        name: value
        if name in ("pairs", "reads", "weights")
        else F.pad(value, (0, max(0, length - value.shape[1])), value=fill.get(name, 0))
        for name, value in batch.items()
    }


def _measure(trainer: Any, passes: list[Batch]) -> tuple[float, float | None]:
    """Seconds of forward and backward, and the peak of allocated memory in MB (None off CUDA)."""
    cuda = trainer.args.device.type == "cuda"
    trainer.model.zero_grad()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for batch in passes:
        terms = trainer.terms(trainer.model, batch)
        (terms.nll.sum() + cosine(terms.views.predicted, terms.views.target).sum()).backward()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20 if cuda else None


def _report(
    seconds: dict[str, list[float]], peaks: dict[str, float | None], examples: list[Example], predictors: list[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    plain = sum(len(example.input_ids) for example in examples)
    planned = objectives(predictors)
    for name, measured in seconds.items():
        result[name] = {"seconds": median(measured), "peak_mb": peaks[name]}
        result[name]["ratio_to_sft"] = median(a / b for a, b in zip(measured, seconds["sft"], strict=True))
        if name in planned:
            plan = Planner(planned[name])
            result[name]["token_ratio"] = sum(len(plan(example).input_ids) for example in examples) / plain
    return result


def _show(result: dict[str, Any]) -> None:
    table = Table(title="forward and backward of the same rows")
    for column in ("", "seconds", "x SFT", "tokens, x SFT", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result.items():
        peak, tokens = row["peak_mb"], row.get("token_ratio")
        figures = (f"{row['seconds']:.2f}", f"{row['ratio_to_sft']:.2f}", f"{tokens:.2f}" if tokens else "-")
        table.add_row(name, *figures, "-" if peak is None else f"{peak:.0f}")
    Console(highlight=False).print(table)
