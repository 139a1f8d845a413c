"""`step-jepa benchmark`: forward and backward of the same rows, by plain fine-tuning, by one pass and by two.

Two passes are the published method: the row once for the language model, then the whole row again with the predictor
tokens inserted and step 2 isolated. All variants make logits at labels only, and none in the second pass.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from step_jepa import branches
from step_jepa.adapted import untrained
from step_jepa.branches import Row
from step_jepa.collate import PADDING, Batch, BranchCollator, PlainCollator
from step_jepa.errors import UserError
from step_jepa.models import predictor_ids
from step_jepa.tokens import IGNORED, Example

VARIANTS = ("sft", "one_pass_first", "one_pass_all", "two_pass", "two_pass_padded")


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
    seed: int = field(default=42, metadata={"help": "Of the predictor rows."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of a table."})


def run(args: BenchmarkArguments) -> None:
    """Measure and print. Raises UserError."""
    if min(args.batch_size, args.repeats) < 1:
        raise UserError("--batch_size and --repeats must be more than 0")
    result = benchmark(args)
    if args.json:
        print(json.dumps(result))
    else:
        _show(result)


def benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Medians over the repetitions; ratios are medians of the ratios within a repetition."""
    options = {"predictors": args.predictors, "max_length": args.max_length, "seed": args.seed}
    dtype = {"dtype": args.dtype}
    with untrained(args.model_name, data=args.train_file, model_init_kwargs=dtype, **options) as trainer:
        trainer.model.train()
        examples = [example for example in trainer.train_dataset.examples if len(example.steps) > 1]
        if len(examples) < args.batch_size:
            raise UserError(f"{args.train_file} has {len(examples)} rows with two steps: give a smaller --batch_size")
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        peaks: dict[str, float | None] = {}
        for repeat in tqdm(range(-1, args.repeats), desc="measuring", leave=False):
            start = max(repeat, 0) * args.batch_size
            chosen = [examples[(start + place) % len(examples)] for place in range(args.batch_size)]
            for name, passes in _variants(trainer, chosen, args.max_length).items():
                elapsed, peaks[name] = _measure(trainer, passes)
                if repeat >= 0:
                    seconds[name].append(elapsed)
        return _report(seconds, peaks, examples, predictor_ids(trainer.model))


def _variants(trainer: Any, examples: list[Example], length: int) -> dict[str, list[Batch]]:
    """The batches that each variant sends through the model, one after the other."""
    predictors, pad = predictor_ids(trainer.model), trainer.processing_class.pad_token_id

    def collated(plan: Callable[[Example, Random], Row]) -> Batch:
        plain = plan is branches.trunk
        batch = (PlainCollator if plain else BranchCollator)(pad)([plan(example, Random(0)) for example in examples])
        return trainer._prepare_inputs(batch)

    sft, second = collated(branches.trunk), collated(partial(second_row, predictors=predictors))
    return {
        "sft": [sft],
        "one_pass_first": [collated(partial(branches.step_jepa, predictors=predictors, pairs="first"))],
        "one_pass_all": [collated(partial(branches.step_jepa, predictors=predictors, pairs="all"))],
        "two_pass": [sft, second],
        "two_pass_padded": [padded(sft, length, pad), padded(second, length, pad)],
    }


def second_row(example: Example, rng: Random, predictors: list[int]) -> Row:
    """The whole row once more, without labels: predictors after step 1, step 2 isolated, the rest of the row kept."""
    (_, before), (start, stop) = example.steps[:2]
    ids = example.input_ids
    row = Row(ids[:before], [IGNORED] * before)
    predicted = row.hang(predictors, position=before, prefix=before) if predictors else before - 1
    target = row.hang(ids[start:stop], position=start, prefix=0)
    row.hang(ids[stop:], position=stop, prefix=before)
    row.pairs.append((predicted, target))
    return row


def padded(batch: Batch, length: int, pad_id: int) -> Batch:
    """Every row filled up to `length` tokens."""
    fill = {"input_ids": pad_id, "labels": IGNORED, "branch": PADDING}
    return {
        name: value if name == "pairs" else F.pad(value, (0, max(0, length - value.shape[1])), value=fill.get(name, 0))
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
        (terms.nll.sum() + trainer.distance(terms.predicted, terms.target).sum()).backward()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20 if cuda else None


def _report(
    seconds: dict[str, list[float]], peaks: dict[str, float | None], examples: list[Example], predictors: list[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in VARIANTS:
        result[name] = {"seconds": median(seconds[name]), "peak_mb": peaks[name]}
        if name != "sft":
            ratios = [a / b for a, b in zip(seconds[name], seconds["sft"], strict=True)]
            result[name]["ratio_to_sft"] = median(ratios)
    trunk = sum(len(example.input_ids) for example in examples)
    for pairs in ("first", "all"):
        rows = (branches.step_jepa(x, Random(0), predictors, pairs) for x in examples)  # type: ignore[arg-type]
        result[f"token_ratio_{pairs}"] = sum(len(row.input_ids) for row in rows) / trunk
    return result


def _show(result: dict[str, Any]) -> None:
    table = Table(title="forward and backward of the same rows")
    for column in ("", "seconds", "x SFT", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for name in VARIANTS:
        row, peak = result[name], result[name]["peak_mb"]
        ratio = f"{row.get('ratio_to_sft', 1):.2f}"
        table.add_row(name, f"{row['seconds']:.2f}", ratio, "-" if peak is None else f"{peak:.0f}")
    Console(highlight=False).print(
        table,
        f"tokens: x {result['token_ratio_first']:.2f} (first pair), x {result['token_ratio_all']:.2f} (all pairs)",
    )
