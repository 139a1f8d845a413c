"""`step-jepa train`: fine-tune a model on a file of conversations, by either implementation."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate.utils import broadcast_object_list
from peft import LoraConfig
from rich.console import Console
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa import standalone
from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches import attention
from step_jepa.data.sources import TRAIN, VALIDATION, Splits, read_records
from step_jepa.data.template import today
from step_jepa.errors import Interrupted, UserError, library_refusals
from step_jepa.estimation.engines import EngineName
from step_jepa.estimation.estimate import estimate, show
from step_jepa.models.builtin import resolve
from step_jepa.models.export import export, is_exported
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.options import Needs, changed, check_bounds, check_needs, option
from step_jepa.parsing import SHIPPED, from_file
from step_jepa.run_files import (
    ROWS_FILE,
    examples_digest,
    locked,
    remove_unfinished,
    run_options,
)
from step_jepa.training.checkpoints import (
    check_complete,
    check_resumed,
    checkpoints_in,
    is_readable,
    last_checkpoint,
    say_other_schedule,
    state_of,
    without_known_keys,
)
from step_jepa.training.config import save_options, unknown_to_standalone
from step_jepa.training.model_card import write_card
from step_jepa.training.output_folder import check_output_dir, enough_room, remove_run
from step_jepa.training.preemption import PreemptibleTrainer, Preemption, preemptible
from step_jepa.training.run_metadata import save_settings, settings_of
from step_jepa.training.safeguards import FiniteNumbers
from step_jepa.training.validation import asks_for_deepspeed, asks_for_fsdp, check_row_count, validate

Preset = Literal["laptop", "gpu24", "gpu80"]
DATA, MODEL, LORA, RUN = "Data", "Model", "LoRA", "Run"
ADAPTER = Needs("--lora", lambda args: args.lora)
ESTIMATE = Needs("--estimate", lambda args: args.estimate)

SETUP_ERRORS = (ValueError, TypeError, RuntimeError, KeyError, OSError, ImportError, SafetensorError)

console = Console(highlight=False)
logger = logging.getLogger(__name__)


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
    engine: EngineName = option(
        "ddp", help="With --estimate: what would train on several devices.", needs=ESTIMATE, group=RUN
    )
    processes: int = option(1, help="With --estimate: one for each device.", needs=ESTIMATE, group=RUN, least=1)
    json: bool = option(False, help="With --estimate: JSON on stdout.", needs=ESTIMATE, group=RUN)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)

    @classmethod
    def defaults_beside(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the preset sets."""
        name = values.get("preset")
        return preset_settings(str(name)) if name in get_args(Preset) else {}


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
    _check_quantised(args, keep_adapter=keep_adapter)
    if not args.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _check_quantised(args: TrainArguments, *, keep_adapter: bool) -> None:
    """Raises UserError for what cannot be done to weights in 4 bits."""
    if args.load_in_4bit and not args.lora:
        raise UserError("4-bit weights are frozen: add --lora to --load_in_4bit")
    if args.load_in_4bit and not keep_adapter:
        raise UserError("a 4-bit model cannot be merged without loss: add --keep_adapter to --load_in_4bit")


def wants_checkpoint(config: StepJEPAConfig) -> bool:
    """Whether --resume_from_checkpoint asks for one."""
    return str(config.resume_from_checkpoint or "false").lower() not in ("false", "no")


def checkpoint_to_resume(config: StepJEPAConfig) -> str | None:
    """The folder that --resume_from_checkpoint means: its own, or with True the last complete one of the output folder;
    None where there is none yet.

    Raises UserError for a folder that holds none, and where one of the run's own is damaged."""
    wanted = str(config.resume_from_checkpoint)
    if not wants_checkpoint(config):
        return None
    if wanted.lower() not in ("true", "yes"):
        if not Path(wanted).is_dir():
            raise UserError(f"{wanted} holds no complete checkpoint to resume from: leave out --resume_from_checkpoint")
        check_complete(wanted)
        return wanted
    last = last_checkpoint(checkpoints_in(config.output_dir))
    if last is None:
        _check_nothing_is_lost(Path(str(config.output_dir)))
        logger.info("%s holds no checkpoint yet: training starts from the beginning", config.output_dir)
    return last


def _check_nothing_is_lost(folder: Path) -> None:
    """Raises UserError where a run that starts anew would replace what another one finished writing."""
    damaged = [checkpoint for checkpoint in checkpoints_in(folder) if (checkpoint / TRAINER_STATE_NAME).exists()]
    exported = list(filter(is_exported, folder.iterdir())) if folder.is_dir() else []
    if damaged or exported:
        raise UserError(
            f"{folder} holds no complete checkpoint to resume from, but {(damaged or exported)[0].name}, which a run "
            "from the beginning would replace: give another --output_dir, or --overwrite in place of "
            "--resume_from_checkpoint"
        )


def run(args: TrainArguments, config: StepJEPAConfig) -> None:
    """Train, evaluate on the held-out file, export. Raises UserError."""
    _check_together(args, config)
    if args.preset and config.should_log:
        _say_preset(args.preset, vars(args) | vars(config))
    if args.estimate:
        _estimate(args, config)
        return
    folder = Path(str(config.output_dir))
    config.enable_jit_checkpoint = False  # it is how every run ends at a signal
    lock = locked(folder) if config.process_index == 0 else nullcontext()
    with lock, enough_room(folder), preemptible() as preemption:
        _run_in(folder, args, config, preemption)


def _say_preset(name: str, options: Mapping[str, Any]) -> None:
    """What it sets, of which other options have left something."""
    kept = {each: value for each, value in preset_settings(name).items() if options[each] == value}
    logger.info("preset %s: %s", name, ", ".join(f"{each} {value}" for each, value in kept.items()))


def _estimate(args: TrainArguments, config: StepJEPAConfig) -> None:
    if args.approach == "standalone":
        raise UserError("--estimate knows the adapted implementation: leave out --approach standalone")
    if config.world_size > 1:
        raise UserError("--estimate is one process: start it without torchrun, and say how many --processes train")
    _check_quantised(args, keep_adapter=config.keep_adapter)
    found = estimate(
        args.model_name,
        args.train_file,
        config,
        peft_config(args),
        quantised=args.load_in_4bit,
        engine=args.engine,
        processes=args.processes,
    )
    show(found, as_json=args.json)


def _run_in(folder: Path, args: TrainArguments, config: StepJEPAConfig, preemption: Preemption) -> None:
    # Shared disks do not show all machines the same files at the same time, nor do clocks the same day.
    resume, day = broadcast_object_list([checkpoint_to_resume(config), today()])
    first = config.process_index == 0
    if first:
        remove_unfinished(folder)
        resuming = wants_checkpoint(config)
        check_output_dir(folder, resolve(args.model_name), overwrite=args.overwrite, resume=resuming)
    begun = run_options(resume) if resume else {}
    config.chat_template_date = config.chat_template_date or begun.get("chat_template_date") or day
    trainer = standalone_trainer(args, config) if args.approach == "standalone" else adapted_trainer(args, config)
    if first and not resume:
        remove_run(folder)
    if train(trainer, resume, preemption):
        save(trainer, args, config)


def _check_together(args: TrainArguments, config: StepJEPAConfig) -> None:
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


class _NothingLeft(Exception):
    """The checkpoint has all steps."""


class _Start(TrainerCallback):
    """Whether training has started, and so a checkpoint been read."""

    passed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.passed = True
        if state.global_step >= state.max_steps:
            raise _NothingLeft


def train(trainer: Trainer, resume: str | None, preemption: Preemption) -> bool:
    """Train from the start, or from a checkpoint. Whether there is something to export: not where that was done before.

    Raises:
        UserError: for what cannot be set up or read, and for numbers that are not finite.
        Interrupted: after Ctrl-C.
        Terminated: after SIGTERM or SIGUSR1.
    """
    start = _Start()
    trainer.callback_handler.callbacks[:0] = [start, preemption]  # before those of ours, whose errors are no refusals
    try:
        trainer.train(resume_from_checkpoint=resume)
    except _NothingLeft:
        return _ends_before(trainer)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted at step {trainer.state.global_step}: {_way_on(trainer.args)}") from None
    except SETUP_ERRORS as error:
        if start.passed or isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        if resume:
            reason = f"cannot resume from {resume}: are these the options of that run? ({reason})"
        raise UserError(reason) from error
    return True


def _ends_before(trainer: Any) -> bool:
    """What is left of a run that has all its steps; whether its export is still to be made."""
    steps, folder = trainer.state.global_step, Path(trainer.args.output_dir)
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    state = folder / TRAINER_STATE_NAME  # what is saved last
    exported = is_readable(state) and state_of(str(folder)).global_step == steps
    if exported:
        console.print(f"{folder} holds the model after all of the {steps} steps: raise --max_steps to train on")
    return not exported


def _way_on(args: Any) -> str:
    last = last_checkpoint(checkpoints_in(args.output_dir))
    return f"--resume_from_checkpoint True goes on from {last}" if last else "there is no checkpoint to go on from"


def save(trainer: Any, args: TrainArguments, config: StepJEPAConfig) -> None:
    """The model, its tokenizer, the options, and at last the trainer's state, which says that the export is whole."""
    folder = Path(str(config.output_dir))
    if args.approach == "adapted" and config.push_to_hub:
        trainer.push_to_hub()
    elif args.approach == "adapted":
        trainer.save_model()
    elif trainer.is_world_process_zero():
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        export(model, trainer.processing_class, folder, keep_adapter=config.keep_adapter)
        trainer.save_run(folder)
        write_card(folder, trainer.state.log_history)
        (folder / ROWS_FILE).unlink(missing_ok=True)  # of an adapted run that is overwritten
    trainer.save_state()
    if trainer.is_world_process_zero():
        console.print(f"model, tokenizer and trainer_state.json lie in {folder}")


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


class StandaloneTrainer(standalone.StepJEPATrainer, PreemptibleTrainer):
    """The teaching implementation, with what a run leaves beside its checkpoints, and is compared with on resume.

    settings  see `run_metadata`
    """

    args: StepJEPAConfig
    train_dataset: Any

    def __init__(self, *args: Any, sources: dict[str, str | None], **kwargs: Any) -> None:
        super().__init__(*args, callbacks=[FiniteNumbers()], **kwargs)
        counts, digest = {"examples": len(self.train_dataset)}, examples_digest(self.train_dataset)
        self.settings = settings_of(self.args, self.model, sources, counts, digest)

    def save_run(self, folder: str | os.PathLike[str]) -> None:
        """Options and settings."""
        save_options(self.args, folder)
        save_settings(folder, self.settings)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or str(self.args.output_dir)
        if self.args.should_save:
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)  # written last: until then the folder is not whole
            super()._save(folder, state_dict)
            self.save_run(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        check_complete(resume_from_checkpoint)
        check_resumed(self.args, self.settings, resume_from_checkpoint)
        say_other_schedule(self.args, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(without_known_keys(self.model, load_result))  # type: ignore[no-untyped-call]


def standalone_trainer(args: TrainArguments, config: StepJEPAConfig) -> StandaloneTrainer:
    """The teaching implementation, on files. Raises UserError for what it does not do."""
    _refuse_foreign(config)
    validate(config, adapter=args.lora, quantised=args.load_in_4bit)
    lbd = float(config.lbd) if config.objectives else 0.0
    model, tokenizer = _standalone_model(args, config, predicting=lbd > 0)
    train_examples = _standalone_examples(args.train_file, TRAIN, tokenizer, config)
    eval_examples = _standalone_examples(args.eval_file, VALIDATION, tokenizer, config) if args.eval_file else None
    check_row_count(config, len(train_examples))
    if lbd and not any(example.second_step[1] for example in train_examples):
        logger.warning("no row has a pair of steps: there is only a language-model loss")
    with library_refusals(ValueError, RuntimeError, ImportError):
        return StandaloneTrainer(
            model=model,
            args=config,
            train_dataset=train_examples,
            eval_dataset=eval_examples,
            data_collator=partial(standalone.collate, pad_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            lbd=lbd,
            gamma=config.gamma,
            loss=config.loss,
            sources={name: getattr(args, name) for name in ("approach", "model_name", "train_file", "eval_file")},
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
    if asks_for_fsdp(config):
        foreign["fsdp"] = True
    if config.push_to_hub:
        foreign["push_to_hub"] = True
    if asks_for_deepspeed(config):
        foreign["deepspeed"] = True
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
    for index, record in enumerate(read_records(file, splits, config)):
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
