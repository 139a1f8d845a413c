"""The options of a run: those of the JEPA term (jepa_options.py) with TrainingArguments, for whoever trains."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments

from step_jepa.errors import UserError, library_refusals
from step_jepa.objectives import OBJECTIVES
from step_jepa.options import MOST_SEED, Needs, option, option_fields, without_secrets
from step_jepa.training.jepa_options import RepresentationOptions, is_of_others, needs_jepa_term

_STREAMED = Needs("--streaming", lambda config: config.streaming)
_DIAGNOSED = Needs("--diagnostics_steps above 0", lambda config: config.diagnostics_steps)
_ROWS, _EPOCHS = 8, 3.0  # defaults of TrainingArguments

# The least that makes sense of numbers that TrainingArguments takes as they come
LEAST = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1}
LEAST |= {"learning_rate": 0, "max_grad_norm": 0, "weight_decay": 0}


@dataclass
class RepresentationConfig(RepresentationOptions, TrainingArguments):
    """TrainingArguments, and the options of the JEPA term."""

    diagnostics_steps: int = option(
        100,
        help="Log diagnostics of held-out views every so many steps; 0: never.",
        group="Logging",
        least=0,
        free_on_resume=True,
    )
    diagnostics_rows: int = option(
        16,
        help="Held-out rows that they are taken on.",
        group="Logging",
        least=2,
        needs=_DIAGNOSED,
        free_on_resume=True,
    )
    logging_steps: float = option(
        10,
        help="Log every so many steps, or this share of them.",
        group="Logging",
        free_on_resume=True,
        standalone=True,
    )
    keep_adapter: bool = option(
        False,
        help="Export the LoRA adapter alone instead of the merged model.",
        group="LoRA",
        free_on_resume=True,
        standalone=True,
    )
    model_init_kwargs: dict[str, Any] | str | None = option(
        None,
        help="Arguments of from_pretrained for a model given by name, as JSON.",
        group="Model",
        free_on_resume=True,
        standalone=True,
    )
    dataset_num_proc: int = option(
        1, help="Processes that tokenise data of more than 1000 rows.", group="Data", least=1, free_on_resume=True
    )
    streaming: bool = option(
        False, help="Read training data as it comes, with --max_steps: nothing is counted or kept.", group="Data"
    )
    shuffle_buffer: int = option(
        1000,
        help="Examples of a stream that are held, of which one is drawn each time; 1: in their order.",
        group="Data",
        least=1,
        needs=_STREAMED,
    )
    pretrain: bool = option(False, help="Random weights, from the model's configuration.", group="Model")
    config_overrides: dict[str, Any] | str | None = option(
        None, help="With pretrain: fields of the configuration, as JSON.", group="Model"
    )

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "config_overrides"]

    def __post_init__(self) -> None:
        RepresentationOptions.__post_init__(self)
        self._check_training_arguments()
        with library_refusals(ValueError, ImportError):
            TrainingArguments.__post_init__(self)  # type: ignore[no-untyped-call]
        for name in ("model_init_kwargs", "config_overrides"):
            if not isinstance(getattr(self, name), dict | None):
                raise UserError(f"{name} = {getattr(self, name)}: give JSON such as '{{\"name\": 1}}'")
        self.dataloader_pin_memory &= torch.cuda.is_available()
        self.remove_unused_columns = False  # rows are made by the collator, from fields that no model knows

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, as into training_args.bin."""
        return without_secrets(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """What loggers are told."""
        told = super().to_dict()  # type: ignore[no-untyped-call]
        if "last_token" in told:
            told["last_token"] = getattr(self, "last_token")  # noqa: B009 - an objective's; its name is like a secret's
        return without_secrets(told)

    def _check_training_arguments(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{each.name} = {value}: give a finite number")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)}: give {least} or more")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"seed = {self.seed}: give 0 to {MOST_SEED}")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise UserError("there is nothing to train: give --max_steps or --num_train_epochs more than 0")

    @property
    def reason_to_pad(self) -> str | None:
        """Also what Trainer computes by itself from padded rows, and wrappers that flat batches were not tried with."""
        others = ("label_smoothing_factor", "neftune_noise_alpha", "torch_compile")
        return super().reason_to_pad or next((f"--{name}" for name in others if getattr(self, name)), None)

    def setup_arguments(self) -> dict[str, Any]:
        overrides = self.config_overrides or {}
        return {
            **super().setup_arguments(),
            "model_init_kwargs": self.model_init_kwargs,
            "config_overrides": overrides if self.pretrain else None,
            "seed": self.seed,
        }

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.config_overrides and not self.pretrain:
            yield "--config_overrides changes a model of random weights: add --pretrain"
        if self.max_tokens_per_batch and self.per_device_train_batch_size != _ROWS:
            yield "--max_tokens_per_batch takes the place of --per_device_train_batch_size: leave one out"
        if self.streaming and self.num_train_epochs != _EPOCHS:
            yield "a stream is not counted, so it has no epochs: give --max_steps in place of --num_train_epochs"

    @classmethod
    def idle_beside(cls, given: Mapping[str, Any]) -> set[str]:
        """Names of options that nothing reads where these are given, which have the types of their fields."""
        idle = {"per_device_train_batch_size"} if given.get("max_tokens_per_batch") else set()
        idle |= {"num_train_epochs"} if given.get("streaming") else set()
        idle |= {"diagnostics_rows"} if given.get("diagnostics_steps") == 0 else set()
        names = given.get("objective") or []
        if given.get("lbd") == 0 or names in (["none"], "none"):
            idle |= {each.name for each in option_fields(cls) if needs_jepa_term(each)}
        elif names and set(names) <= set(OBJECTIVES):
            idle |= {each.name for each in option_fields(cls) if is_of_others(each, names)}
            idle |= {"loss"} if all(OBJECTIVES[name].loss for name in names) else set()
        return idle
