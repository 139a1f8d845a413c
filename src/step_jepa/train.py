"""`step-jepa train`: fine-tune a model on a file of conversations, by either implementation."""

import logging
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from rich.console import Console
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from step_jepa import standalone
from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches import attention
from step_jepa.data.sources import TRAIN, VALIDATION, Splits, read_records
from step_jepa.data.template import today
from step_jepa.errors import Interrupted, UserError, library_refusals
from step_jepa.models.export import export
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.options import Needs, check_bounds, check_needs, option
from step_jepa.run_files import ROWS_FILE, run_options
from step_jepa.training.config import save_options, unknown_to_standalone
from step_jepa.training.run_metadata import save_settings

DATA, MODEL, LORA, RUN = "Data", "Model", "LoRA", "Run"
ADAPTER = Needs("--lora", lambda args: args.lora)

console = Console(highlight=False)
logger = logging.getLogger(__name__)


@dataclass
class TrainArguments:
    """What is trained on what; everything else is in StepJEPAConfig."""

    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True, group=DATA)
    model_name: str = option(
        help="Hub id, folder, or smollm2 (the weights in the demo extra).", is_path=True, group=MODEL
    )
    approach: Literal["adapted", "standalone"] = option(
        "adapted", help="adapted: every option, one pass. standalone: one readable file, two passes.", group=RUN
    )
    eval_file: str | None = option(
        None, help="Held-out records: losses and cosines (standalone: eval_loss).", is_path=True, group=DATA
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

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)


def peft_config(args: TrainArguments) -> LoraConfig | None:
    """The adapter that the arguments ask for. Raises UserError."""
    if not args.lora:
        return None
    modules = ",".join(args.lora_target_modules).split(",")
    with library_refusals(ValueError):
        return LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules="all-linear" if modules == ["all-linear"] else modules,
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
    begun = run_options(resume) if resume else {}
    config.chat_template_date = config.chat_template_date or begun.get("chat_template_date") or today()
    if args.step_jepa and "step_jepa" not in config.objective:
        named = " ".join(config.objective)
        raise UserError(f"--step_jepa and --objective {named} contradict each other: leave one out")
    if args.eval_file and config.eval_strategy == "no":
        config.eval_strategy = "epoch"
    trainer = standalone_trainer(args, config) if args.approach == "standalone" else adapted_trainer(args, config)
    if not resume and trainer.is_world_process_zero():
        remove_checkpoints(config.output_dir)
    train(trainer, resume)
    save(trainer, args, config)


def remove_checkpoints(folder: str) -> None:
    """Those of a run that is overwritten, which a later resume must not find."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


class _Start(TrainerCallback):
    """Whether training has started, and so a checkpoint been read."""

    passed = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.passed = True


def train(trainer: Trainer, resume: str | None) -> None:
    """Train from the start, or from a checkpoint. Raises UserError for one that cannot be read, and Interrupted."""
    start = _Start()
    trainer.callback_handler.callbacks.insert(0, start)  # before those of ours, whose errors are no refusals
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        again = "--resume_from_checkpoint True goes on from the last checkpoint"
        advice = again if get_last_checkpoint(trainer.args.output_dir) else "there is no checkpoint to go on from"
        raise Interrupted(f"interrupted at step {trainer.state.global_step}: {advice}") from None
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        if not resume or start.passed:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot resume from {resume}: are these the options of that run? ({reason})") from error


def save(trainer: Any, args: TrainArguments, config: StepJEPAConfig) -> None:
    """The model, its tokenizer, the options and the trainer's state."""
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
    _refuse_foreign(config)
    lbd = float(config.lbd) if config.objectives else 0.0
    model, tokenizer = _standalone_model(args, config, predicting=lbd > 0)
    train_examples = _standalone_examples(args.train_file, TRAIN, tokenizer, config)
    eval_examples = _standalone_examples(args.eval_file, VALIDATION, tokenizer, config) if args.eval_file else None
    with library_refusals(ValueError, RuntimeError, ImportError):
        return standalone.StepJEPATrainer(
            model=model,
            args=config,
            train_dataset=train_examples,
            eval_dataset=eval_examples,
            data_collator=partial(standalone.collate, pad_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            lbd=lbd,
            gamma=config.gamma,
            loss=config.loss,
        )


def _refuse_foreign(config: StepJEPAConfig) -> None:
    """Raises UserError for options that the standalone implementation does not have."""
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


def _standalone_model(args: TrainArguments, config: StepJEPAConfig, *, predicting: bool) -> tuple[Any, Any]:
    """The model, with predictor tokens where it is `predicting`, and its tokenizer."""
    set_seed(config.seed)  # the adapter's start is drawn before the trainer is made
    model, tokenizer = setup_model_and_tokenizer(
        args.model_name,
        peft_config=peft_config(args),
        quantization_config=quantization_config(args, keep_adapter=config.keep_adapter),
        **config.setup_arguments(),
    )
    if predicting:
        attention.check(model)
    return model, tokenizer


def _standalone_examples(file: str, splits: Splits, tokenizer: Any, config: StepJEPAConfig) -> list[standalone.Example]:
    examples, longest = [], config.max_length or sys.maxsize
    for index, record in enumerate(read_records(file, splits)):
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
