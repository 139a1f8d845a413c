"""`step-jepa benchmark`: forward and backward of the same rows, by plain fine-tuning, each objective, and two passes.

Two passes are the published method: the row once for the language model, then the whole row again with the predictor
tokens inserted and step 2 isolated. All variants make logits at labels only, and none in the second pass.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from step_jepa.batches.collate import PADDING, Batch, BranchCollator, PlainCollator, PlannedRows, to_device
from step_jepa.data.tokens import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.losses.distances import cosine
from step_jepa.models.predictors import predictor_ids
from step_jepa.objectives import LLMJEPA, SSP, STP, Objective, StepJEPA, STPReleased
from step_jepa.objectives.planner import Planner
from step_jepa.options import check_bounds, option
from step_jepa.rows.branches import Pair, Row, last, trunk
from step_jepa.training.config import StepJEPAOptions
from step_jepa.training.representation import Representation

BASELINE = "sft"  # what the other variants are measured against
TWO_PASSES = ("two_pass", "two_pass_padded")


def one_pass_variants(predictor_ids: Sequence[int]) -> dict[str, list[Objective]]:
    """What is measured beside two passes: the objectives of each variant."""
    return {
        BASELINE: [],
        "one_pass_first": [StepJEPA(predictor_ids=predictor_ids)],
        "one_pass_all": [StepJEPA(predictor_ids=predictor_ids, pairs="all")],
        "context_first": [StepJEPA(predictor_ids=predictor_ids, target="context")],
        "context_all": [StepJEPA(predictor_ids=predictor_ids, pairs="all", target="context")],
        "context_all_k0": [StepJEPA(pairs="all", target="context")],
        "llm_jepa": [LLMJEPA(predictor_ids=predictor_ids)],
        "stp": [STP()],
        "stp_released": [STPReleased()],
        "ssp": [SSP()],
    }


VARIANTS = (*one_pass_variants(()), *TWO_PASSES)


@dataclass
class BenchmarkArguments:
    """Which rows, how many at a time, how often. Raises UserError for a number out of range, and an unknown variant."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the weights in the demo extra).", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    batch_size: int = option(4, help="Rows of one measurement.", least=1)
    repeats: int = option(3, help="Measurements, each on other rows, after one to warm up.", least=1)
    max_length: int = option(1024, help="Longest row, and the length of the padded variant.", least=1)
    predictors: int = option(1, help="K, the predictor tokens.", least=0)
    dtype: Literal["float32", "bfloat16"] = option("float32", help="Of the weights.")
    variants: list[str] = option(
        default_factory=lambda: list(VARIANTS), help=f"Which: sft and some of {', '.join(VARIANTS[1:])}."
    )
    attn_implementation: Literal["sdpa", "eager"] = option("sdpa", help="Attention backend.")
    seed: int = option(42, help="Of the predictor rows.")
    json: bool = option(False, help="JSON on stdout instead of a table.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise UserError(f"--variants {unknown[0]}: give some of {', '.join(VARIANTS)}")


@dataclass(frozen=True)
class Measurement:
    """Of one forward and backward pass: seconds, and the peak of allocated memory in MB (None off CUDA)."""

    seconds: float
    peak_mb: float | None


def run(args: BenchmarkArguments) -> None:
    """Measure and print. Raises UserError."""
    result = benchmark(args)
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def benchmark(args: BenchmarkArguments) -> dict[str, dict[str, Any]]:
    """The figures of each variant: medians over the repetitions; ratios are medians of the ratios within a repetition.
    Raises UserError."""
    representation = _representation(args)
    examples = _examples_with_pairs(representation, args)
    variants = list(dict.fromkeys([BASELINE, *args.variants]))  # each once
    measurements: dict[str, list[Measurement]] = {name: [] for name in variants}
    for repeat in tqdm(range(-1, args.repeats), desc="measuring", leave=False):
        start = max(repeat, 0) * args.batch_size
        chosen = [examples[place % len(examples)] for place in range(start, start + args.batch_size)]
        for name in variants:
            measured = _measure(representation, _passes(representation, name, chosen, args.max_length))
            if repeat >= 0:  # the one before is to warm up
                measurements[name].append(measured)
    ratios = _token_ratios(examples, predictor_ids(representation.model))
    return {name: _figures(measurements, name, ratios) for name in variants}


def _representation(args: BenchmarkArguments) -> Representation:
    """The model in training mode."""
    # Examples with all the tokens that any objective wants.
    options = StepJEPAOptions(
        objective=["step_jepa", "llm_jepa"], predictors=args.predictors, max_length=args.max_length
    )
    loading = {"dtype": args.dtype, "attn_implementation": args.attn_implementation}
    representation = Representation.load(args.model_name, options, seed=args.seed, model_init_kwargs=loading)
    representation.model.to(PartialState().device).train()
    return representation


def _examples_with_pairs(representation: Representation, args: BenchmarkArguments) -> list[Example]:
    """Those that Step-JEPA finds a pair in. Raises UserError."""
    everything = representation.prepare(args.train_file).examples
    representation.check_attention(PlannedRows(everything, representation.training_planner(everything)))
    plan = Planner([StepJEPA()])
    examples = [example for example in everything if plan(example).pairs]
    if len(examples) < args.batch_size:
        raise UserError(f"{args.train_file} has {len(examples)} rows with two steps: give a smaller --batch_size")
    return examples


# What a variant sends through the model


def _passes(representation: Representation, name: str, examples: list[Example], length: int) -> list[Batch]:
    """The batches of a variant, one after the other."""
    pad_id, predictors = representation.tokenizer.pad_token_id, predictor_ids(representation.model)
    trunks = PlainCollator(pad_id)([trunk(example) for example in examples])
    if name == BASELINE:
        passes = [trunks]
    elif name in TWO_PASSES:
        passes = [trunks, BranchCollator(pad_id)([second_row(example, predictors) for example in examples])]
    else:
        plan = Planner(one_pass_variants(predictors)[name])
        passes = [BranchCollator(pad_id)([plan(example) for example in examples])]
    if name == "two_pass_padded":
        passes = [padded(batch, length, pad_id) for batch in passes]
    return [to_device(batch, representation.model.device) for batch in passes]


def second_row(example: Example, predictors: Sequence[int]) -> Row:
    """The whole row once more, without labels: predictors after step 1, step 2 isolated, the rest of the row kept."""
    (_, before), (start, stop) = example.steps[:2]
    ids = example.input_ids
    row = Row(ids[:before], [IGNORED] * before)
    predicted = range(before)
    if predictors:
        predicted = row.append_branch(predictors, position_offset=before, visible_length=before)
    target = row.append_branch(ids[start:stop], position_offset=start, visible_length=0)
    row.append_branch(ids[stop:], position_offset=stop, visible_length=before)
    row.pairs.append(Pair(last(predicted), last(target)))
    return row


def padded(batch: Batch, length: int, pad_id: int) -> Batch:
    """Every row filled up to `length` tokens."""
    fillings = {
        "input_ids": pad_id,
        "labels": IGNORED,
        "branch": PADDING,
        "attention_mask": 0,
        "position_ids": 0,
        "visible_length": 0,
    }
    filled = dict(batch)
    for name in fillings.keys() & batch.keys():
        missing = max(0, length - batch[name].shape[1])
        filled[name] = F.pad(batch[name], (0, missing), value=fillings[name])
    return filled


# What it costs


def _measure(representation: Representation, passes: list[Batch]) -> Measurement:
    """Of forward and backward through all the passes."""
    on_cuda = representation.model.device.type == "cuda"
    representation.model.zero_grad()
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for batch in passes:
        output = representation.forward(batch)
        (output.nll.sum() + cosine(output.views.predicted, output.views.target).sum()).backward()
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return Measurement(seconds, torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None)


def _token_ratios(examples: Sequence[Example], predictors: Sequence[int]) -> dict[str, float]:
    """Tokens of each one-pass variant's rows, as a multiple of the trunks'."""
    plain = sum(len(example.input_ids) for example in examples)
    ratios = {}
    for name, objectives in one_pass_variants(predictors).items():
        plan = Planner(objectives)
        ratios[name] = sum(len(plan(example).input_ids) for example in examples) / plain
    return ratios


def _figures(
    measurements: dict[str, list[Measurement]], name: str, token_ratios: dict[str, float]
) -> dict[str, float | None]:
    """The figures of one variant."""
    pairs = list(zip(measurements[name], measurements[BASELINE], strict=True))
    figures: dict[str, float | None] = {
        "seconds": median(measured.seconds for measured in measurements[name]),
        "peak_mb": measurements[name][-1].peak_mb,
        "ratio_to_sft": median(measured.seconds / baseline.seconds for measured, baseline in pairs),
    }
    if name in token_ratios:
        figures["token_ratio"] = token_ratios[name]
    return figures


def _print_table(result: dict[str, dict[str, Any]]) -> None:
    table = Table(title="forward and backward of the same rows")
    for column in ("", "seconds", "x SFT", "tokens, x SFT", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in result.items():
        peak, tokens = figures["peak_mb"], figures.get("token_ratio")
        table.add_row(
            name,
            f"{figures['seconds']:.2f}",
            f"{figures['ratio_to_sft']:.2f}",
            f"{tokens:.2f}" if tokens else "-",
            "-" if peak is None else f"{peak:.0f}",
        )
    Console(highlight=False).print(table)
