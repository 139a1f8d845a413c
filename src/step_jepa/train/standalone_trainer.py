"""The teaching implementation on files, with what a run leaves beside its checkpoints."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME

from step_jepa import standalone
from step_jepa.adapted import StepJEPAConfig
from step_jepa.batches import attention
from step_jepa.data.reading import read_records
from step_jepa.data.splits import TRAIN, VALIDATION, Splits
from step_jepa.errors import UserError, library_refusals
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.options import changed, facts
from step_jepa.plurals import counted
from step_jepa.run_files.identity import examples_digest
from step_jepa.train.arguments import TrainArguments, peft_config, quantization_config
from step_jepa.training.checkpoints import check_complete, check_resumed, say_other_schedule, without_known_keys
from step_jepa.training.preemption import PreemptibleTrainer
from step_jepa.training.progress import shows_progress
from step_jepa.training.run_metadata import save_settings, settings_of
from step_jepa.training.run_rows import check_row_count
from step_jepa.training.safeguards import FiniteNumbers
from step_jepa.training.saved_options import save_options
from step_jepa.training.sharding import asks_for_deepspeed, asks_for_fsdp
from step_jepa.training.validation import validate

logger = logging.getLogger(__name__)


class StandaloneTrainer(standalone.StepJEPATrainer, PreemptibleTrainer):
    """The teaching implementation, with what a run leaves beside its checkpoints, and is compared with on resume.

    settings  see `run_metadata`
    """

    args: StepJEPAConfig
    train_dataset: Any

    def __init__(self, *args: Any, sources: dict[str, str | None], **kwargs: Any) -> None:
        super().__init__(*args, callbacks=[FiniteNumbers()], **kwargs)
        shows_progress(self)
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


def unknown_to_standalone(config: Any) -> dict[str, Any]:
    """Options with another value than their default that the standalone implementation does not have."""
    return {each.name: getattr(config, each.name) for each in changed(config) if not facts(each).standalone}


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
        "%s, %d left out, as not one whole step fits into max_length; %d without a pair of steps",
        *(counted(len(kept), "example"), len(examples) - len(kept), single),
    )
    return kept
