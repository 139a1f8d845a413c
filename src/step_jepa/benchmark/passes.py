"""Forward and backward of the same rows, by plain fine-tuning, each objective, and two passes; without a Trainer."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from accelerate import PartialState

from step_jepa import terminal
from step_jepa.batches.batch import Batch
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.benchmark.arguments import BenchmarkArguments
from step_jepa.benchmark.rows import with_pairs
from step_jepa.benchmark.variants import BASELINE, passes_of, token_ratios
from step_jepa.data.example import Example
from step_jepa.data.reading_options import reading_values
from step_jepa.losses.distances import cosine
from step_jepa.models.predictors import predictor_ids
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation


@dataclass(frozen=True)
class Measurement:
    """Of one forward and backward pass: seconds, and the peak of allocated memory in MB (None off CUDA)."""

    seconds: float
    peak_mb: float | None


def measure_passes(args: BenchmarkArguments) -> dict[str, dict[str, Any]]:
    """The figures of each variant: medians over the repetitions; ratios are medians of the ratios within a repetition.
    Raises UserError."""
    representation = _representation(args)
    examples = _examples(representation, args)
    variants = list(dict.fromkeys([BASELINE, *args.variants]))  # each once
    measurements: dict[str, list[Measurement]] = {name: [] for name in variants}
    for repeat in terminal.bar(range(-1, args.repeats), label="measuring", unit="round"):
        start = max(repeat, 0) * args.batch_size
        chosen = [examples[place % len(examples)] for place in range(start, start + args.batch_size)]
        for name in variants:
            measured = _measure(representation, passes_of(representation, name, chosen, args.max_length))
            if repeat >= 0:  # the one before is to warm up
                measurements[name].append(measured)
    ratios = token_ratios(examples, predictor_ids(representation.model))
    return {name: _figures(measurements, name, ratios) for name in variants}


def _representation(args: BenchmarkArguments) -> Representation:
    """The model in training mode."""
    # Examples with all the tokens that any objective wants.
    options = StepJEPAOptions(
        objective=["step_jepa", "llm_jepa"],
        predictors=args.predictors,
        max_length=args.max_length,
        **reading_values(args),
    )
    loading = {"dtype": args.dtype, "attn_implementation": args.attn_implementation}
    representation = Representation.load(
        args.model_name, options, seed=args.seed, model_init_kwargs=loading, config_overrides=args.config_overrides
    )
    representation.model.to(PartialState().device).train()
    return representation


def _examples(representation: Representation, args: BenchmarkArguments) -> list[Example]:
    """Those that Step-JEPA finds a pair in. Raises UserError."""
    assert args.train_file is not None
    data = representation.prepare(args.train_file)
    terminal.note(f"{args.train_file}: {data}")
    rows = PlannedRows(data.examples, representation.training_planner(data.examples))
    representation.check_attention(rows)
    return with_pairs(data, args.batch_size, args.train_file)


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
