"""The options of `step-jepa train` beside those of StepJEPAConfig, and which of all contradict each other."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from step_jepa.adapted import StepJEPAConfig
from step_jepa.arguments.parsing import SHIPPED, from_file
from step_jepa.errors import UserError, library_refusals
from step_jepa.estimation.parallelism import ParallelismName
from step_jepa.options import Needs, changed, check_bounds, check_needs, option

logger = logging.getLogger(__name__)

Preset = Literal["laptop", "gpu24", "gpu80"]
DATA, MODEL, LORA, RUN = "Data", "Model", "LoRA", "Run"
ADAPTER = Needs("--lora", lambda args: args.lora)
ESTIMATE = Needs("--estimate", lambda args: args.estimate)


@dataclass
class TrainArguments:
    """What is trained on what; everything else is in StepJEPAConfig."""

    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True, group=DATA)
    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True, group=MODEL)
    approach: Literal["adapted", "standalone"] = option(
        "adapted", help="adapted: every option, one pass. standalone: one readable file, two passes.", group=RUN
    )
    eval_file: str | None = option(
        None, help="Held-out records: losses and cosines (standalone: eval_loss).", is_path=True, group=DATA
    )
    preset: Preset | None = option(
        None,
        help="Batch size, precision and the like for a laptop, or for one GPU of 24 or 80 GB, under all other options "
        "(`step-jepa recipes recipes/presets` prints what each sets).",
        group=RUN,
    )
    step_jepa: bool = option(False, help="Alias of --objective step_jepa.", group=RUN)
    lora: bool = option(False, help="Train a LoRA adapter (and the predictor tokens).", group=LORA)
    lora_r: int = option(16, help="Rank of the adapter.", needs=ADAPTER, group=LORA, least=1)
    lora_alpha: int = option(32, help="Scale of the adapter.", needs=ADAPTER, group=LORA, least=1)
    lora_dropout: float = option(0.0, help="Dropout of the adapter.", needs=ADAPTER, group=LORA, least=0, most=1)
    lora_target_modules: list[str] = option(
        default_factory=lambda: ["all-linear"],
        help="Modules to adapt: all-linear, or names, which commas may separate too.",
        needs=ADAPTER,
        group=LORA,
    )
    load_in_4bit: bool = option(False, help="QLoRA: load the base model in 4 bits (CUDA).", group=LORA)
    overwrite: bool = option(False, help="Write into an output folder that is not empty.", group=RUN)
    estimate: bool = option(False, help="Print the memory that the run needs on a device, by part, and end.", group=RUN)
    engine: ParallelismName = option(
        "ddp", help="With --estimate: what would train on several devices.", needs=ESTIMATE, group=RUN
    )
    processes: int = option(1, help="With --estimate: one for each device.", needs=ESTIMATE, group=RUN, least=1)
    json: bool = option(False, help="JSON on stdout: figures of the run, or its estimate.", group=RUN)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)

    @classmethod
    def defaults_beside(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the preset sets."""
        name = str(values.get("preset"))
        return preset_settings(name) if name in get_args(Preset) else {}


def preset_settings(name: str) -> dict[str, Any]:
    """The options that a preset sets, which all others go before."""
    return from_file(SHIPPED / "recipes" / "presets" / f"{name}.yaml")


def peft_config(args: TrainArguments) -> LoraConfig | None:
    """The adapter that the arguments ask for. Raises UserError."""
    if not args.lora:
        return None
    with library_refusals(ValueError):
        return LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=modules_to_adapt(args.lora_target_modules),
            task_type="CAUSAL_LM",
        )


def modules_to_adapt(names: list[str]) -> str | list[str]:
    """What --lora_target_modules means to PEFT."""
    modules = ",".join(names).split(",")
    return "all-linear" if modules == ["all-linear"] else modules


def quantization_config(args: TrainArguments, *, keep_adapter: bool) -> Any:
    """4-bit NormalFloat with bfloat16 computation (QLoRA, arXiv 2305.14314)."""
    check_quantised(args, keep_adapter=keep_adapter)
    if not args.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def check_quantised(args: TrainArguments, *, keep_adapter: bool) -> None:
    """Raises UserError for what cannot be done to weights in 4 bits."""
    if args.load_in_4bit and not args.lora:
        raise UserError("4-bit weights are frozen: add --lora to --load_in_4bit")
    if args.load_in_4bit and not keep_adapter:
        raise UserError("a 4-bit model cannot be merged without loss: add --keep_adapter to --load_in_4bit")


def check_together(args: TrainArguments, config: StepJEPAConfig) -> None:
    """Raises UserError for options that contradict each other, and for those that nothing reads."""
    for reason in _contradictions(args, config):
        raise UserError(reason)
    if args.eval_file and config.eval_strategy == "no":
        config.eval_strategy = "epoch"
    if args.eval_file and _is_same_file(args.eval_file, args.train_file):
        logger.warning("--eval_file is --train_file: held-out figures are of rows that were trained on")


def _is_same_file(one: str, other: str) -> bool:
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)


def _contradictions(args: TrainArguments, config: StepJEPAConfig) -> Iterator[str]:
    if not config.output_dir:
        yield "--output_dir is empty: say where the results go"
    if args.step_jepa and "step_jepa" not in config.objective:
        named = " ".join(config.objective)
        yield f"--step_jepa and --objective {named} contradict each other: leave one out"
    if config.keep_adapter and not args.lora:
        yield "--keep_adapter is read by --lora alone: add that, or leave it out"
    for each in changed(config) if not args.eval_file else []:
        if each.name in ("diagnostics_rows", "diagnostics_steps") and getattr(config, each.name):
            yield f"--{each.name} is read with --eval_file alone: add that, or leave it out"
    if config.streaming and config.dataset_num_proc > 1 and not args.eval_file:
        yield "--dataset_num_proc tokenises before training, and --streaming tokenises rows as they come: leave one out"
    for name in ("eval_on_start", "eval_strategy") if not args.eval_file else ():
        if getattr(config, name) not in (False, "no"):
            yield f"--{name} needs --eval_file: add that, or leave it out"
