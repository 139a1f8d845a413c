"""`step-jepa train`: fine-tune a model on a file of conversations, by either implementation."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa import terminal
from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.data.template import today
from step_jepa.errors import Interrupted, UserError
from step_jepa.estimation.estimate import estimate, show
from step_jepa.models.builtin import resolve
from step_jepa.models.export import export
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import ROWS_FILE
from step_jepa.run_files.reading import run_options
from step_jepa.run_files.writing import remove_unfinished
from step_jepa.train.arguments import (
    TrainArguments,
    check_quantised,
    check_together,
    peft_config,
    preset_settings,
    quantization_config,
)
from step_jepa.train.resuming import checkpoint_to_resume, wants_checkpoint
from step_jepa.train.standalone_trainer import standalone_trainer
from step_jepa.training.checkpoints import checkpoints_in, is_readable, last_checkpoint, state_of
from step_jepa.training.model_card import write_card
from step_jepa.training.output_folder import check_output_dir, enough_room, remove_run
from step_jepa.training.preemption import Preemption, preemptible
from step_jepa.training.progress import outcome, sentence

SETUP_ERRORS = (ValueError, TypeError, RuntimeError, KeyError, OSError, ImportError, SafetensorError)

logger = logging.getLogger(__name__)


def run(args: TrainArguments, config: StepJEPAConfig) -> None:
    """Train, evaluate on the held-out file, export. Raises UserError."""
    check_together(args, config)
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
    check_quantised(args, keep_adapter=config.keep_adapter)
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
    if first:
        _show(folder, args)


class _NothingLeft(Exception):
    """The checkpoint has all steps."""


class _LastLog(TrainerCallback):
    """Logs the last step as well, which `logging_steps` may pass over: a run ends with its last losses."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.logging_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_log = True


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
    trainer.add_callback(_LastLog())
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
        terminal.note(f"{folder} holds the model after all of its steps ({steps}): raise --max_steps to train on")
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


def _show(folder: Path, args: TrainArguments) -> None:
    """What came of it, in a sentence or as JSON, and where it lies."""
    found = outcome(state_of(str(folder)))
    if args.json:
        terminal.show_json(found)
    else:
        terminal.result({}, sentence(found))
    test_file = args.eval_file or "TEST.jsonl"
    scores = {"model_name": folder, "test_file": test_file, "output_dir": f"{folder}-scores"}
    where = f"model, tokenizer and, with every figure, {TRAINER_STATE_NAME} lie in {folder}"
    terminal.ends(where, terminal.typed("evaluate", scores))


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
