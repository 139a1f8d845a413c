"""Whole training steps, each through a Trainer's own path: batches, forward, backward, clipping, optimiser.

All arms share one model and one optimiser, so that a machine holds them once, and read the same rows.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset

from step_jepa import terminal
from step_jepa.benchmark.arguments import BenchmarkArguments
from step_jepa.benchmark.rows import batches_of, of_length, with_pairs
from step_jepa.data.dataset import PreparedData, load_and_prepare_dataset
from step_jepa.data.example import Example
from step_jepa.errors import UserError
from step_jepa.models.loading import setup_model_and_tokenizer

# What is measured of ours: the options of its objective.
OURS: dict[str, dict[str, Any]] = {
    "sft": {"objective": ["none"]},
    "one_pass_first": {"pairs": "first"},
    "one_pass_all": {"pairs": "all"},
}
# TRL's: like for like, and what its users get.
TRL: dict[str, dict[str, Any]] = {
    "trl": {"activation_checkpointing": False, "bf16": False, "packing": False},
    "trl_defaults": {},
}

SPARE = 8  # so many times the rows that are measured are read: some have no pair


class StepMeasurement(NamedTuple):
    """Of one training step.

    seconds        with making the batch
    tokens         that were read, without padding
    padded_tokens  with it
    peak_mb        of CUDA's allocator, above what it held when the model was loaded; None off CUDA
    """

    seconds: float
    tokens: int
    padded_tokens: int
    peak_mb: float | None


class Bench:
    """A model with its optimiser, and the trainers that step it. Use it within `with`: trainers want a folder."""

    def __init__(self, args: BenchmarkArguments) -> None:
        self.args, self.device = args, PartialState().device
        self.model, self.tokenizer = setup_model_and_tokenizer(
            args.model_name,
            predictors=args.predictors,
            model_init_kwargs={"dtype": args.dtype, "attn_implementation": args.attn_implementation},
            config_overrides=args.config_overrides,
            seed=args.seed,
        )
        self.model.to(self.device)
        self.loaded = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def examples(self, length: int | None, count: int) -> list[Example]:
        """So many batches of a file's rows, or of made ones. Raises UserError."""
        if length is not None:
            return of_length(self.tokenizer, length, count * self.args.batch_size, self.args.seed)
        assert self.args.train_file is not None  # the arguments see to it
        file, size, limit = self.args.train_file, self.args.batch_size, SPARE * count * self.args.batch_size
        data = load_and_prepare_dataset(
            file, self.tokenizer, max_length=self.args.max_length, limit=limit, reading=self.args
        )
        terminal.note(f"{file}: {data}")
        return batches_of(with_pairs(data, size, f"{file} (its first {limit} records)"), count, size)

    def arm(self, name: str, examples: list[Example]) -> "Arm":
        """The trainer of this name, on these rows."""
        return Arm(self, self._ours(name, examples) if name in OURS else self._trl(name, examples))

    def _common(self) -> dict[str, Any]:
        return {
            "output_dir": self._folder.name,
            "per_device_train_batch_size": self.args.batch_size,
            "train_sampling_strategy": "sequential",
            "report_to": "none",
            "use_cpu": self.device.type == "cpu",
            "seed": self.args.seed,
            "max_length": None,  # the rows are as long as they shall be
        }

    def _ours(self, name: str, examples: list[Example]) -> Any:
        from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer

        options = OURS[name] if name == "sft" else {**OURS[name], "predictors": self.args.predictors}
        return StepJEPARepresentationTrainer(
            self.model,
            StepJEPAConfig(**self._common(), **options),
            PreparedData(examples, 0, 0),
            processing_class=self.tokenizer,
            optimizers=self.optimizers,
        )

    def _trl(self, name: str, examples: list[Example]) -> Any:
        from trl import SFTConfig, SFTTrainer

        # Rows that are tokenised already, with a mask of what is trained: the same tokens as ours.
        rows = [
            {"input_ids": example.input_ids, "completion_mask": [int(label >= 0) for label in example.labels]}
            for example in examples
        ]
        return SFTTrainer(
            self.model,
            SFTConfig(**self._common(), completion_only_loss=True, **TRL[name]),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            optimizers=self.optimizers,
        )


@dataclass
class Arm:
    """One trainer and its batches."""

    bench: Bench
    trainer: Any

    def __post_init__(self) -> None:
        self.trainer.current_gradient_accumulation_steps = 1
        self.batches: Iterator[Any] = iter(self.trainer.get_train_dataloader())

    def step(self) -> StepMeasurement:
        """One training step on the next batch."""
        trainer, model = self.trainer, self.bench.model
        on_cuda = self.bench.device.type == "cuda"
        model.train()
        with _checkpointing(model, trainer.args.activation_checkpointing):
            _settle(on_cuda)
            start = time.perf_counter()
            batches, items = trainer.get_batch_samples(self.batches, 1, self.bench.device)
            tokens = _tokens(batches[0])
            trainer.training_step(model, batches[0], items)
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
            self.bench.optimizers[0].step()
            model.zero_grad()
            if on_cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        peak = (torch.cuda.max_memory_allocated() - self.bench.loaded) / 2**20 if on_cuda else None
        return StepMeasurement(seconds, *tokens, peak)


def _settle(on_cuda: bool) -> None:
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """The model with activation checkpointing, as a Trainer switches it on when its training begins."""
    if wanted:
        model.activation_checkpointing_enable()
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()


def _tokens(batch: dict[str, Any]) -> tuple[int, int]:
    """How many tokens are read, without padding and with it."""
    padded = batch["input_ids"].numel()
    if "branch" in batch:
        return int((batch["branch"] >= 0).sum()), padded
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else padded, padded


def arms_of(args: BenchmarkArguments) -> list[str]:
    """What is measured, the baseline first. Raises UserError where nothing is."""
    ours = [name for name in OURS if name in args.variants]
    if not ours:
        raise UserError(f"--variants: whole training steps are measured of {', '.join(OURS)}: give some of them")
    if args.against == "sft":
        return list(dict.fromkeys(["sft", *ours]))
    return [name for name in (*TRL, *ours) if name != "trl_defaults" or args.trl_defaults]


def measure(bench: Bench, names: Sequence[str], length: int | None) -> dict[str, list[StepMeasurement]]:
    """The steps of each arm, interleaved, after one of each to warm up. Raises UserError."""
    examples = bench.examples(length, bench.args.repeats + 1)
    arms = {name: bench.arm(name, examples) for name in names}
    measurements: dict[str, list[StepMeasurement]] = {name: [] for name in names}
    rounds = range(-1, bench.args.repeats)
    with terminal.bar(label="measuring", unit="step", total=len(rounds) * len(names)) as bar:
        for repeat, name in chain.from_iterable(_round(names, repeat) for repeat in rounds):
            bar.set_description(f"measuring {name}")
            measured = arms[name].step()
            if repeat >= 0:
                measurements[name].append(measured)
            bar.update()
    return measurements


def _round(names: Sequence[str], repeat: int) -> list[tuple[int, str]]:
    """One step of each arm, the other way round every second time: what drifts meanwhile hits all alike."""
    return [(repeat, name) for name in (reversed(names) if repeat % 2 else names)]


def figures(measurements: dict[str, list[StepMeasurement]], name: str, baseline: str) -> dict[str, float | None]:
    """Of one arm: medians; the ratio is the median of ratios within a repetition, and `token_ratio` is of its tokens
    to the baseline's with padding."""
    measured, reference = measurements[name], measurements[baseline]
    pairs = list(zip(measured, reference, strict=True))
    peaks = [step.peak_mb for step in measured if step.peak_mb is not None]
    return {
        "seconds": median(step.seconds for step in measured),
        f"ratio_to_{baseline}": median(step.seconds / other.seconds for step, other in pairs),
        "tokens": sum(step.tokens for step in measured),
        "padded_tokens": sum(step.padded_tokens for step in measured),
        "token_ratio": sum(step.tokens for step in measured) / sum(step.padded_tokens for step in reference),
        "peak_mb": max(peaks) if peaks else None,
    }
