"""RepresentationTrainer: LLM-JEPA on the trunk-and-branches mechanism, and what every objective shares.

    loss = gamma * mean over labelled tokens of the step + lbd * mean over pairs of the step ( distance )

Axes: B rows, L tokens of a row, N labelled tokens, P pairs, H hidden size, V rows of the base model's vocabulary.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftConfig
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from step_jepa import branches, masks
from step_jepa.collate import BranchCollator, PlainCollator, PlannedRows, Planner, without_branches
from step_jepa.dataset import PreparedData, load_and_prepare_dataset
from step_jepa.errors import UserError
from step_jepa.losses import Loss, distance
from step_jepa.metrics import Meter, Terms, figures, row_sums
from step_jepa.models import base_rows, export, predictor_ids, setup_model_and_tokenizer
from step_jepa.tokens import IGNORED

logger = logging.getLogger(__name__)


@dataclass
class RepresentationConfig(TrainingArguments):
    """TrainingArguments, and the options of the JEPA term."""

    lbd: float = field(default=0.1, metadata={"help": "Weight of the JEPA loss; with 0 nothing is added to plain SFT."})
    gamma: float = field(default=1.0, metadata={"help": "Weight of the language-model loss."})
    predictors: int = field(
        default=1, metadata={"help": "K, the predictor tokens; with 0 the state of the last text token predicts."}
    )
    loss: Loss = field(
        default="cosine",
        metadata={"help": "Distance of the views; infonce wants many pairs per micro-batch."},
    )
    temperature: float = field(default=0.07, metadata={"help": "Temperature of infonce."})
    jepa_ratio: float = field(
        default=1.0,
        metadata={"help": "Share of optimisation steps that carry the JEPA loss; others are plain SFT."},
    )
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

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __post_init__(self) -> None:
        for name in ("lbd", "gamma", "predictors"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} = {getattr(self, name)}: give 0 or more")
        if not 0 <= self.jepa_ratio <= 1:
            raise UserError(f"jepa_ratio = {self.jepa_ratio}: give a share between 0 and 1")
        if self.temperature <= 0:
            raise UserError(f"temperature = {self.temperature}: give more than 0")
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length = {self.max_length}: give 1 or more")
        super().__post_init__()
        self.dataloader_pin_memory &= torch.cuda.is_available()
        self.remove_unused_columns = False  # rows are made by the collator, from fields that no model knows


class RepresentationTrainer(Trainer):
    """Predict the representation of the answer from that of the user's text (LLM-JEPA, arXiv 2509.14252).

    model             hub id, folder, or module (then with `processing_class`)
    train_dataset     records with `messages` (and `steps`), a file that `prepare` reads, or PreparedData
    A subclass says what branches hang on a row by overriding `planner`."""

    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any

    def __init__(
        self,
        model: Any,
        args: RepresentationConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        quantization_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        self.branching = self.has_objective(args)
        _refuse(args, quantised=quantization_config is not None, branching=self.branching)
        set_seed(args.seed)
        model, tokenizer = setup_model_and_tokenizer(
            model,
            processing_class=processing_class,
            predictors=args.predictors if self.branching else None,
            peft_config=peft_config,
            quantization_config=quantization_config,
            model_init_kwargs=args.model_init_kwargs,
            seed=args.seed,
        )
        self.args, self.model = args, model
        train_rows, eval_rows = self.rows(train_dataset, tokenizer), self.rows(eval_dataset, tokenizer)
        if self.branching:
            masks.check(model)
            self.loss_is_scaled_for_ga = True
        super().__init__(
            model=model,
            args=args,
            data_collator=(BranchCollator if self.branching else PlainCollator)(tokenizer.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            callbacks=[*(callbacks or []), *([_TellEpoch(train_rows)] if train_rows else [])],
            optimizers=optimizers,
        )
        self.distance = distance(args.loss, args.temperature)
        self._meter = Meter(self.args.device)
        self._step_tokens = self._step_pairs = 1

    # What an objective says

    @staticmethod
    def has_objective(args: Any) -> bool:
        """Whether rows carry branches; without them training is `Trainer`'s own."""
        return args.lbd > 0

    def planner(self) -> Planner:
        """(example, rng) -> row with its branches."""
        return partial(branches.llm_jepa, predictors=predictor_ids(self.model))

    # Data

    def rows(self, data: Any, tokenizer: Any = None) -> PlannedRows | None:
        """What the loader reads, from records, a file, or PreparedData. Raises UserError."""
        if data is None or isinstance(data, PlannedRows):
            return data
        if not isinstance(data, PreparedData):
            data = load_and_prepare_dataset(data, tokenizer or self.processing_class, max_length=self.args.max_length)
        if self.args.should_log:
            logger.log(logging.WARNING if data.cut or data.left_out else logging.INFO, "%s", data)
        rows = PlannedRows(data.examples, self.planner() if self.branching else branches.trunk, self.args.seed)
        if self.branching and self.args.should_log and not any(rows[index].pairs for index in range(len(rows))):
            logger.warning("no row has a pair to learn from: this is plain fine-tuning")
        return rows

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Held-out figures, of the eval_dataset of the trainer or of other records."""
        return super().evaluate(self.rows(eval_dataset), ignore_keys, metric_key_prefix)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimisation step; tokens and pairs are counted over all of them and all ranks."""
        self._meter.start()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.branching:
            if Random(f"{self.args.seed} jepa_ratio {self.state.global_step}").random() >= self.args.jepa_ratio:
                batches = [without_branches(batch) for batch in batches]
            tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
            pairs = sum(int((batch["pairs"][..., 0] >= 0).sum()) for batch in batches)
            counts = self.accelerator.reduce(torch.tensor([tokens, pairs], device=device), "sum")
            self._step_tokens, self._step_pairs = (max(1, int(count)) for count in counts)
        return batches, items

    # Loss

    def terms(self, model: nn.Module, batch: dict[str, Tensor]) -> Terms:
        """One forward pass over rows with or without branches. Logits are made where labels are, of V tokens."""
        labels = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]  # the label that each token predicts
        labelled = labels != IGNORED
        options: dict[str, Any] = {"attention_mask": batch.get("attention_mask")}
        if "branch" in batch:
            options = {
                "attention_mask": masks.attention_mask(
                    self.model, batch["branch"], batch["prefix"], batch["position_ids"]
                ),
                "position_ids": batch["position_ids"],
                "output_hidden_states": [-1],  # the last one, after the final norm
            }
        out = model(input_ids=batch["input_ids"], logits_to_keep=labelled, use_cache=False, **options)
        logits = out.logits[..., : base_rows(self.model)].float()
        nll = F.cross_entropy(logits, labels[labelled], reduction="none")
        token_row = labelled.nonzero()[:, 0]
        if "branch" not in batch:
            empty = logits.new_empty(0, self.model.config.get_text_config().hidden_size)
            return Terms(nll, token_row, empty, empty, token_row[:0])
        pair_row, pair = (batch["pairs"][..., 0] >= 0).nonzero(as_tuple=True)
        read = batch["pairs"][pair_row, pair]
        states = out.hidden_states[-1]
        return Terms(
            nll, token_row, states[pair_row, read[:, 0]].float(), states[pair_row, read[:, 1]].float(), pair_row
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's loss. Without branches it is `Trainer`'s own."""
        if not self.branching:
            self._meter.sums[5] += inputs["attention_mask"].sum()
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        terms = self.terms(model, inputs)
        distance = self.distance(terms.predicted, terms.target)
        loss = self.args.gamma * terms.nll.sum() / self._step_tokens + self.args.lbd * distance.sum() / self._step_pairs
        self._meter.add(terms, distance, inputs)
        loss = loss * self.accelerator.num_processes  # ranks are averaged, the counts are of all of them
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss since the last log, over all ranks, to the training logs."""
        if "loss" in logs:
            logs |= {"lm_loss": logs["loss"]} | self._meter.read(self.accelerator)
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Sums per row instead of means per batch, so that the closing figures do not depend on the batching."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            terms = self.terms(model, inputs)
            distance = self.distance(terms.predicted, terms.target)
        sums = row_sums(terms, distance, len(inputs["labels"]), self.model.config.get_text_config().hidden_size)
        return terms.nll.mean(), sums, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Held-out figures: the LM loss is weighted by tokens, the JEPA loss and the cosines by pairs."""
        with self._meter.paused():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        assert isinstance(output.predictions, np.ndarray)
        assert output.metrics is not None
        means = figures(torch.from_numpy(output.predictions).double().sum(0))
        means["loss"] = self.args.gamma * means["lm_loss"] + self.args.lbd * means.get("jepa_loss", 0.0)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Checkpoints stay whole, to be resumed; what is saved for use has the base model's rows (models.export)."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # without branches only: nothing to cut
        if _internal_call or sharded:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            model = self.accelerator.unwrap_model(self.model)
            export(model, self.processing_class, folder, keep_adapter=self.args.keep_adapter)


def _refuse(args: Any, *, quantised: bool, branching: bool) -> None:
    """Options of TrainingArguments that would give something else than they say."""
    refused = {
        "push_to_hub would upload the rows of a checkpoint: push the exported folder": args.push_to_hub,
        "train_sampling_strategy must be random or sequential": args.train_sampling_strategy
        not in ("random", "sequential"),
        "eval_do_concat_batches must stay True: figures are sums over rows": not args.eval_do_concat_batches,
        "several devices in one process: start with torchrun, or show it one device": args.n_gpu > 1,
        "a quantised model cannot be merged without loss: add --keep_adapter": quantised and not args.keep_adapter,
    }
    if branching:
        refused |= {
            "label_smoothing_factor has no meaning beside a JEPA loss: leave it out": args.label_smoothing_factor,
            "neftune_noise_alpha would put noise on isolated views: leave it out": args.neftune_noise_alpha,
            "FSDP cannot export without the predictor rows: use DDP, or objective none": args.fsdp,
            "DeepSpeed cannot export without the predictor rows: use DDP, or objective none": args.deepspeed,
        }
    for reason, given in refused.items():
        if given:
            raise UserError(reason)


class _TellEpoch(TrainerCallback):
    """Random choices follow the epoch; the rows learn it before the loader's workers start to read ahead."""

    def __init__(self, rows: PlannedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.epoch.fill_(int(state.epoch or 0))
