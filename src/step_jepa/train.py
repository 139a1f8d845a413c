"""`step-jepa train`: fine-tune a model on a file of conversations, by either implementation."""

import logging
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from rich.console import Console
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from step_jepa import standalone
from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches import attention
from step_jepa.data.sources import read_records
from step_jepa.errors import Interrupted, UserError
from step_jepa.models.export import export
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.run_files import ROWS_FILE
from step_jepa.training.config import save_options, unknown_to_standalone
from step_jepa.training.run_metadata import save_settings

LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")

console = Console(highlight=False)
logger = logging.getLogger(__name__)


@dataclass
class TrainArguments:
    """What is trained on what; everything else is in StepJEPAConfig."""

    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    approach: Literal["adapted", "standalone"] = field(
        default="adapted",
        metadata={"help": "adapted: every option, one pass. standalone: one readable file, two passes."},
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "Held-out records: losses and cosines (standalone: eval_loss)."}
    )
    step_jepa: bool = field(default=False, metadata={"help": "Alias of --objective step_jepa."})
    lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter (and the predictor tokens)."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter."})
    lora_target_modules: str = field(
        default="all-linear", metadata={"help": "Modules to adapt: all-linear, or names separated by commas."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: load the base model in 4 bits (CUDA)."})
    overwrite: bool = field(default=False, metadata={"help": "Write into an output folder that is not empty."})


def peft_config(args: TrainArguments) -> LoraConfig | None:
    """The adapter that the arguments ask for."""
    if not args.lora:
        changed = [name for name in LORA_OPTIONS if getattr(args, name) != args.__dataclass_fields__[name].default]
        if changed:
            raise UserError(f"--{changed[0]} is for an adapter: add --lora, or leave it out")
        return None
    modules: Any = args.lora_target_modules
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=modules if modules == "all-linear" else modules.split(","),
        task_type="CAUSAL_LM",
    )


def quantization_config(args: TrainArguments, *, keep_adapter: bool) -> Any:
    """4-bit NormalFloat with bfloat16 computation (QLoRA, arXiv 2305.14314)."""
    if not args.load_in_4bit:
        return None
    if not args.lora:
        raise UserError("4-bit weights are frozen: add --lora to --load_in_4bit")
    if not keep_adapter:
        raise UserError("a 4-bit model cannot be merged without loss: add --keep_adapter to --load_in_4bit")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def checkpoint_to_resume(config: StepJEPAConfig) -> str | None:
    """The folder that --resume_from_checkpoint means: its own, or with True the last complete one of the output folder.

    Raises UserError where there is none, or where nothing is left to train."""
    wanted = str(config.resume_from_checkpoint or "false")
    if wanted.lower() in ("false", "no"):
        return None
    given = wanted.lower() not in ("true", "yes")
    last = last_checkpoint([Path(wanted)] if given else Path(str(config.output_dir)).glob("checkpoint-*"))
    if last is None:
        where = wanted if given else config.output_dir
        raise UserError(f"{where} holds no complete checkpoint to resume from: leave out --resume_from_checkpoint")
    if 0 < config.max_steps <= steps_of(last):
        raise UserError(f"{last} has all of the {config.max_steps} steps: raise --max_steps to train on")
    return last


def last_checkpoint(folders: Iterable[Path]) -> str | None:
    """The complete one that has most steps."""
    complete = [str(folder) for folder in folders if (folder / TRAINER_STATE_NAME).exists()]  # what is written last
    return max(complete, key=steps_of, default=None)


def steps_of(checkpoint: str) -> int:
    """Optimisation steps of a complete checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step


def check_output_dir(folder: str, *, overwrite: bool, resume: bool) -> None:
    """Raises UserError rather than mix a run with what the folder holds."""
    path = Path(folder)
    if path.is_file():
        raise UserError(f"{folder} is a file: give another --output_dir")
    if path.is_dir() and any(path.iterdir()) and not (overwrite or resume):
        raise UserError(
            f"{folder} is not empty: give another --output_dir, --overwrite, or --resume_from_checkpoint True"
        )


def run(args: TrainArguments, config: StepJEPAConfig) -> None:
    """Train, evaluate on the held-out file, export. Raises UserError."""
    if not config.output_dir:
        raise UserError("--output_dir is empty: say where the results go")
    resume = checkpoint_to_resume(config)
    check_output_dir(config.output_dir, overwrite=args.overwrite, resume=bool(resume))
    if args.step_jepa and "step_jepa" not in config.objective:
        raise UserError(
            f"--step_jepa and --objective {' '.join(config.objective)} contradict each other: leave one out"
        )
    if args.eval_file and config.eval_strategy == "no":
        config.eval_strategy = "epoch"
    build = standalone_trainer if args.approach == "standalone" else adapted_trainer
    try:
        trainer = build(args, config)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:  # what Trainer and the libraries refuse
        raise UserError(" ".join(str(error).split())[:300]) from None
    if not resume and trainer.is_world_process_zero():
        for old in Path(config.output_dir).glob("checkpoint-*"):  # --overwrite: a later resume must not find them
            shutil.rmtree(old)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        again = "--resume_from_checkpoint True goes on from the last checkpoint"
        advice = again if get_last_checkpoint(config.output_dir) else "there is no checkpoint to go on from"
        raise Interrupted(f"interrupted at step {trainer.state.global_step}: {advice}") from None
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        if not resume or trainer.state.global_step > steps_of(resume):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot resume from {resume}: are these the options of that run? ({reason})") from None
    if args.approach == "adapted":
        trainer.save_model()
    elif trainer.is_world_process_zero():
        _save_standalone(trainer, args, config)
    trainer.save_state()
    if trainer.is_world_process_zero():
        console.print(f"model, tokenizer and trainer_state.json lie in {config.output_dir}")


def _save_standalone(trainer: Any, args: TrainArguments, config: StepJEPAConfig) -> None:
    folder, model = str(config.output_dir), trainer.accelerator.unwrap_model(trainer.model)
    export(model, trainer.processing_class, folder, keep_adapter=config.keep_adapter)
    save_options(config, folder)
    sources = {name: getattr(args, name) for name in ("approach", "model_name", "train_file", "eval_file")}
    save_settings(folder, config, model, sources, {"examples": len(trainer.train_dataset)})
    Path(folder, ROWS_FILE).unlink(missing_ok=True)  # of an adapted run that is overwritten


def adapted_trainer(args: TrainArguments, config: StepJEPAConfig) -> StepJEPARepresentationTrainer:
    """The recommended implementation, on files."""
    return StepJEPARepresentationTrainer(
        model=args.model_name,
        args=config,
        train_dataset=args.train_file,
        eval_dataset=args.eval_file,
        peft_config=peft_config(args),
        quantization_config=quantization_config(args, keep_adapter=config.keep_adapter),
    )


def standalone_trainer(args: TrainArguments, config: StepJEPAConfig) -> standalone.StepJEPATrainer:
    """The teaching implementation, on files. Raises UserError for what it does not do."""
    foreign = unknown_to_standalone(config)
    if config.objective not in (["step_jepa"], ["none"]):
        foreign["objective"] = " ".join(config.objective)
    if config.loss not in standalone.LOSSES:
        foreign["loss"] = config.loss
    if config.lbd == "auto":
        foreign["lbd"] = config.lbd
    if foreign:
        options = ", ".join(f"--{name} {value}" for name, value in foreign.items())
        raise UserError(f"standalone has no {options}: use --approach adapted")
    lbd = float(config.lbd) if config.objectives else 0.0
    set_seed(config.seed)  # the adapter's start is drawn before the trainer is made
    model, tokenizer = setup_model_and_tokenizer(
        args.model_name,
        peft_config=peft_config(args),
        quantization_config=quantization_config(args, keep_adapter=config.keep_adapter),
        **config.setup_arguments(),
    )
    if lbd:
        attention.check(model)
    return standalone.StepJEPATrainer(
        model=model,
        args=config,
        train_dataset=_standalone_examples(args.train_file, tokenizer, config),
        eval_dataset=_standalone_examples(args.eval_file, tokenizer, config) if args.eval_file else None,
        data_collator=partial(standalone.collate, pad_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        lbd=lbd,
        gamma=config.gamma,
        loss=config.loss,
    )


def _standalone_examples(file: str, tokenizer: Any, config: StepJEPAConfig) -> list[standalone.Example]:
    examples, longest = [], config.max_length or sys.maxsize
    for index, record in enumerate(read_records(file)):
        try:
            examples.append(
                standalone.encode(tokenizer, record["messages"], record["steps"], longest, config.skip_answer_step)
            )
        except ValueError as error:
            raise UserError(f"example {index} of {file}: {error}") from None
    kept = [example for example in examples if example is not None]
    if not kept:
        raise UserError(f"{file}: no whole step fits into max_length = {config.max_length}: raise it")
    single = sum(not example.second_step[1] for example in kept)
    logger.info(
        "%d examples, %d left out, as not one whole step fits into max_length; %d without a pair of steps",
        *(len(kept), len(examples) - len(kept), single),
    )
    return kept
