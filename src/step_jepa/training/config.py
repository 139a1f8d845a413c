"""The options of a run, beside those of TrainingArguments; which of them contradict each other."""

import json
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from step_jepa.batches.views import PredictorHead, TargetReader
from step_jepa.errors import UserError, library_refusals
from step_jepa.losses.distances import Loss, Negatives, Regulariser
from step_jepa.objectives import OBJECTIVES
from step_jepa.rows.controls import DRAWN, Control
from step_jepa.run_files import OPTIONS_FILE, run_options

# Deviations of the published LLM-JEPA code (docs/options.md), each to be set alone; "llm_jepa" means all of them.
COMPAT = {
    "train_all": "labels on everything but padding",
    "unlabelled_end": "tokens that equal the pad token carry no label, so that with pad = eos the end is never learned",
    "frozen_predictors": "under LoRA the predictor tokens stay as they were drawn",
    "undivided_loss": "every micro-batch weighs as much as a whole step, so gradients grow with accumulation",
    "double_bos": "the chat template's text gets the tokenizer's own special tokens once more",
}
# Options that would say nothing in plain fine-tuning, though whoever gives them there expects something of them.
OF_A_JEPA_TERM = (
    "control",
    "target_encoder",
    "predictor_head",
    "loss",
    "regulariser",
    "gamma",
    "jepa_ratio",
    "same_flop",
)


@dataclass
class RepresentationConfig(TrainingArguments):
    """TrainingArguments, and the options of the JEPA term."""

    lbd: float | str = field(
        default=0.1,
        metadata={"help": "Weight of the JEPA loss; with 0 nothing is added to plain SFT. auto: see lbd_ratio."},
    )
    lbd_ratio: float = field(
        default=0.1,
        metadata={"help": "With lbd auto: gradient norm of the JEPA term, as a share of the language model's."},
    )
    gamma: float = field(default=1.0, metadata={"help": "Weight of the language-model loss."})
    predictors: int = field(
        default=1, metadata={"help": "K, the predictor tokens; with 0 the state of the last text token predicts."}
    )
    predictor_head: PredictorHead = field(
        default="identity", metadata={"help": "What the predicted view goes through: nothing, or a linear map."}
    )
    loss: Loss = field(
        default="cosine",
        metadata={"help": "Distance of the views; infonce wants many pairs per micro-batch."},
    )
    temperature: float = field(default=0.07, metadata={"help": "Temperature of infonce."})
    negatives: Negatives = field(
        default="both", metadata={"help": "infonce: negatives of other problems, of the same problem, or both."}
    )
    regulariser: Regulariser = field(default="none", metadata={"help": "Against collapse, beside the loss."})
    regulariser_weight: float = field(default=0.1, metadata={"help": "Its weight, beside the loss's 1."})
    target_encoder: TargetReader = field(
        default="plain",
        metadata={"help": "Who reads the target: the model, the model without gradient, or its moving average."},
    )
    ema_decay: float = field(default=0.99, metadata={"help": "Decay of that average, per optimisation step."})
    layer: int = field(
        default=-1,
        metadata={"help": "Layer of the views: -1 the last, after the final norm; others are read before it."},
    )
    control: Control = field(default="none", metadata={"help": "What takes the place of the next step in training."})
    redraw: bool = field(default=False, metadata={"help": "Draw the control's random choices anew in every epoch."})
    jepa_ratio: float = field(
        default=1.0,
        metadata={"help": "Share of optimisation steps that carry the JEPA loss; others are plain SFT."},
    )
    same_flop: bool = field(
        default=False, metadata={"help": "Train so much shorter as rows with branches are longer than rows without."}
    )
    front_pred: bool = field(default=False, metadata={"help": "llm_jepa: predictor tokens before the text."})
    reverse_pred: bool = field(default=False, metadata={"help": "llm_jepa: the answer predicts the text."})
    last_token: int = field(default=-1, metadata={"help": "llm_jepa: the token of a view that is read, from its end."})
    plain: bool = field(
        default=False, metadata={"help": "No chat framing: contents by line breaks, views of contents alone."}
    )
    train_all: bool = field(default=False, metadata={"help": "Language-model loss on the prompt too."})
    compat: list[str] = field(
        default_factory=list,
        metadata={"help": f"Train as published code does: llm_jepa, or some of {', '.join(COMPAT)}."},
    )
    diagnostics_steps: int = field(
        default=100, metadata={"help": "Log diagnostics of held-out views every so many steps; 0: never."}
    )
    diagnostics_rows: int = field(default=16, metadata={"help": "Held-out rows that they are taken on."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps, or this share of them."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest trunk in tokens; longer rows keep whole steps only."}
    )
    keep_adapter: bool = field(
        default=False, metadata={"help": "Export the LoRA adapter alone instead of the merged model."}
    )
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a model given by name, as JSON."}
    )
    pretrain: bool = field(default=False, metadata={"help": "Random weights, from the model's configuration."})
    config_overrides: dict | str | None = field(
        default=None, metadata={"help": "With pretrain: fields of the configuration, as JSON."}
    )

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "config_overrides"]

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()
        self.train_all |= "train_all" in self.switches
        with library_refusals(ValueError, ImportError):
            super().__post_init__()
        for name in ("model_init_kwargs", "config_overrides"):
            _require(isinstance(getattr(self, name), dict | None), self, name, "JSON such as '{\"name\": 1}'")
        self.dataloader_pin_memory &= torch.cuda.is_available()
        self.remove_unused_columns = False  # rows are made by the collator, from fields that no model knows

    @property
    def objectives(self) -> list[tuple[str, float]]:
        """(name, weight) of each objective; none for plain fine-tuning."""
        return [("llm_jepa", 1.0)] if self.lbd else []

    @property
    def switches(self) -> set[str]:
        """Names in COMPAT that are on."""
        return set(COMPAT) if "llm_jepa" in self.compat else set(self.compat)

    def _check_ranges(self) -> None:
        if isinstance(self.lbd, str) and self.lbd != "auto":
            raise UserError(f"lbd = {self.lbd}: give a number, or auto")
        numbers = ("gamma", "predictors", "regulariser_weight", "diagnostics_steps")
        for name in numbers if self.lbd == "auto" else ("lbd", *numbers):
            _require(0 <= getattr(self, name) < math.inf, self, name, "0 or more")
        for name in ("temperature", "lbd_ratio"):
            _require(getattr(self, name) > 0, self, name, "more than 0")
        for name in ("jepa_ratio", "ema_decay"):
            _require(0 <= getattr(self, name) <= 1, self, name, "a share between 0 and 1")
        _require(self.max_length is None or self.max_length >= 1, self, "max_length", "1 or more")
        _require(self.diagnostics_rows >= 2, self, "diagnostics_rows", "2 or more")
        _require(self.last_token < 0, self, "last_token", "-1 for the last token, -2 for the one before")
        unknown = [name for name in self.compat if name not in COMPAT and name != "llm_jepa"]
        if unknown:
            raise UserError(f"compat = {unknown[0]}: give llm_jepa, or some of {', '.join(COMPAT)}")

    def _check_combinations(self) -> None:
        contradictions = {
            "--control frozen_target reads targets by the base model: leave out --target_encoder": self.control
            == "frozen_target"
            and self.target_encoder != "plain",
            "--control random_target reads no target: leave out --target_encoder": self.control == "random_target"
            and self.target_encoder != "plain",
            "--lbd auto balances against the language model's gradient: give --gamma more than 0": self.lbd == "auto"
            and not self.gamma,
            "--control no_loss has no gradient to balance: give --lbd a number": self.control == "no_loss"
            and self.lbd == "auto",
            "--redraw redraws a control's choices: add --control, or leave it out": self.redraw
            and self.control not in DRAWN,
            "--config_overrides changes a model of random weights: add --pretrain": self.config_overrides
            and not self.pretrain,
        }
        for reason, given in contradictions.items():
            if given:
                raise UserError(reason)
        self._check_idle()
        if self.objectives:
            self._check_control()
        else:
            self._check_plain()

    def _check_idle(self) -> None:
        infonce = self.loss.endswith("infonce")
        read = {
            "negatives": ("--loss infonce", infonce),
            "temperature": ("--loss infonce", infonce),
            "regulariser_weight": ("--regulariser vicreg or sigreg", self.regulariser != "none"),
            "ema_decay": ("--target_encoder ema", self.target_encoder == "ema"),
            "lbd_ratio": ("--lbd auto", self.lbd == "auto"),
        }
        for name, (reader, given) in read.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default and not given:
                raise UserError(f"--{name} is read by {reader} alone: add that, or leave it out")

    def _check_control(self) -> None:
        for home, kind in ((name, OBJECTIVES[name]) for name, _ in self.objectives):
            if self.control not in ("none", "no_loss", *kind.controls):
                raise UserError(
                    f"--control {self.control} means nothing for the objective {home}: use one of "
                    f"{', '.join(sorted({*kind.controls, 'no_loss'}))}"
                )
        if self.loss != "cosine" and all(OBJECTIVES[name].loss for name, _ in self.objectives):
            names = " ".join(name for name, _ in self.objectives)
            raise UserError(f"--loss {self.loss} is not read by {names}, which have their own: leave it out")

    def _check_plain(self) -> None:
        for name in OF_A_JEPA_TERM:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name} {getattr(self, name)} needs a JEPA term: give --lbd more than 0 and an --objective, "
                    "or leave it out"
                )


FREE_ON_RESUME = {"logging_steps", "diagnostics_steps", "diagnostics_rows", "keep_adapter", "model_init_kwargs"}
VIEW_OPTIONS = ("predictor_head", "layer", "plain", "pooling", "read", "target_sees")  # how a run reads its views


def own_options(config: RepresentationConfig) -> dict[str, Any]:
    """All options that are not TrainingArguments'."""
    others = {each.name for each in fields(TrainingArguments)} - {"logging_steps"}
    return {each.name: getattr(config, each.name) for each in fields(config) if each.name not in others}


def save_options(config: RepresentationConfig, folder: str | os.PathLike) -> None:
    """What a run was trained with, beside the model."""
    Path(folder, OPTIONS_FILE).write_text(json.dumps(own_options(config), indent=2, default=str) + "\n")


def check_resumed(config: RepresentationConfig, checkpoint: str | os.PathLike) -> None:
    """Raises UserError where a run goes on with other options than it was begun with."""
    path = Path(checkpoint, OPTIONS_FILE)
    begun = json.loads(path.read_text()) if path.exists() else {}
    now = json.loads(json.dumps(own_options(config), default=str))
    for name in begun.keys() & now.keys() - FREE_ON_RESUME:
        if begun[name] != now[name]:
            raise UserError(f"{checkpoint} was begun with {name} = {begun[name]}, not {now[name]}: give the same")


def view_options(folder: str | os.PathLike) -> dict[str, Any]:
    """How the run that a model comes from read its views; nothing where none lies beside it. Raises UserError."""
    saved = run_options(folder)
    return {name: saved[name] for name in VIEW_OPTIONS if name in saved}


def _require(fine: bool, config: Any, name: str, wanted: str) -> None:
    if not fine:
        raise UserError(f"{name} = {getattr(config, name)}: give {wanted}")
