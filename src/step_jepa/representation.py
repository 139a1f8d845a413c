"""RepresentationTrainer: LLM-JEPA on the trunk-and-branches mechanism, and what every objective shares.

    loss = gamma * mean over labelled tokens of the step + lbd * mean over pairs of the step ( distance )

Axes: B rows, L tokens of a row, N labelled tokens, P pairs, H hidden size, V rows of the base model's vocabulary.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from step_jepa import branches, masks
from step_jepa.collate import BranchCollator, PlainCollator, PlannedRows, Planner, without_branches
from step_jepa.dataset import PreparedData, load_and_prepare_dataset
from step_jepa.errors import UserError
from step_jepa.losses import LOSSES, Loss, infonce
from step_jepa.models import base_rows, export, predictor_ids, setup_model_and_tokenizer
from step_jepa.tokens import IGNORED


@dataclass
class RepresentationConfig(TrainingArguments):
    """TrainingArguments, and the options of the JEPA term."""

    lbd: float = field(default=0.1, metadata={"help": "Weight of the JEPA loss; with 0 nothing is added to plain SFT."})
    gamma: float = field(default=1.0, metadata={"help": "Weight of the language-model loss."})
    predictors: int = field(
        default=1, metadata={"help": "K, the predictor tokens; with 0 the state of the last text token predicts."}
    )
    loss: Loss = field(default="cosine", metadata={"help": "Distance between the predicted and the target view."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of infonce."})
    jepa_ratio: float = field(
        default=1.0,
        metadata={"help": "Share of optimisation steps that carry the JEPA loss; others are plain SFT."},
    )
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
            if getattr(self, name) < 0:
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


@dataclass
class Terms:
    """What one forward pass gives: nll (N,), token_row (N,), predicted (P, H), target (P, H), pair_row (P,)."""

    nll: Tensor
    token_row: Tensor
    predicted: Tensor
    target: Tensor
    pair_row: Tensor


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
        if args.label_smoothing_factor and self.has_objective(args):
            raise UserError("label_smoothing_factor has no meaning beside a JEPA loss: leave it out")
        if args.n_gpu > 1:
            raise UserError("several devices in one process: start with torchrun, or show it one device")
        set_seed(args.seed)
        self.branching = self.has_objective(args)
        model, tokenizer = setup_model_and_tokenizer(
            model,
            processing_class=processing_class,
            predictors=args.predictors if self.branching else 0,
            peft_config=peft_config,
            quantization_config=quantization_config,
            model_init_kwargs=args.model_init_kwargs,
            seed=args.seed,
        )
        self.args, self.model = args, model
        self.data = {"train": self._prepared(train_dataset, tokenizer), "eval": self._prepared(eval_dataset, tokenizer)}
        rows = {name: self._rows(data) for name, data in self.data.items()}
        if self.branching:
            masks.check(model)
            self.loss_is_scaled_for_ga = True
        super().__init__(
            model=model,
            args=args,
            data_collator=(BranchCollator if self.branching else PlainCollator)(tokenizer.pad_token_id),
            train_dataset=rows["train"],
            eval_dataset=rows["eval"],
            processing_class=tokenizer,
            callbacks=[*(callbacks or []), *([_TellEpoch(rows["train"])] if rows["train"] else [])],
            optimizers=optimizers,
        )
        self._meter = _Meter(self.args.device)
        self._step_tokens = self._step_pairs = 1

    # What an objective says

    @staticmethod
    def has_objective(args: Any) -> bool:
        """Whether rows carry branches; without them training is `Trainer`'s own."""
        return args.lbd > 0

    def planner(self) -> Planner:
        """(example, rng) -> row with its branches."""
        return partial(branches.llm_jepa, predictors=predictor_ids(self.model))

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(P, H) twice -> (P,)."""
        if self.args.loss == "infonce":
            return infonce(predicted, target, self.args.temperature)
        return LOSSES[self.args.loss](predicted, target)

    # Data

    def _prepared(self, data: Any, tokenizer: Any) -> PreparedData | None:
        if data is None or isinstance(data, PreparedData):
            return data
        return load_and_prepare_dataset(data, tokenizer, max_length=self.args.max_length)

    def _rows(self, data: PreparedData | None) -> PlannedRows | None:
        plan = self.planner() if self.branching else branches.trunk
        return PlannedRows(data.examples, plan, self.args.seed) if data else None

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimisation step; tokens and pairs are counted over all of them and all ranks."""
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
            empty = logits.new_empty(0, model_width(self.model))
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
        sums = _row_sums(terms, distance, len(inputs["labels"]), model_width(self.model))
        return terms.nll.mean(), sums, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Held-out figures: the LM loss is weighted by tokens, the JEPA loss and the cosines by pairs."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        figures = _figures(torch.from_numpy(output.predictions).double().sum(0))
        figures["loss"] = self.args.gamma * figures["lm_loss"] + self.args.lbd * figures.get("jepa_loss", 0.0)
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Checkpoints stay whole, to be resumed; what is saved for use has the base model's rows (models.export)."""
        if _internal_call or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            model = self.accelerator.unwrap_model(self.model)
            export(model, self.processing_class, folder, keep_adapter=self.args.keep_adapter)


class _TellEpoch(TrainerCallback):
    """Random choices follow the epoch; the rows learn it before the loader's workers start to read ahead."""

    def __init__(self, rows: PlannedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.epoch.fill_(int(state.epoch or 0))


class _Meter:
    """Sums since the last log, on the device: nll, tokens, distance, pairs, cosine, tokens read."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.since = torch.zeros(6, device=device), time.perf_counter()

    def add(self, terms: Terms, distance: Tensor, batch: dict[str, Tensor]) -> None:
        with torch.no_grad():
            cosine = F.cosine_similarity(terms.predicted, terms.target, dim=-1).sum()
            counts = [len(terms.nll), distance.sum(), len(distance), cosine, (batch["branch"] >= 0).sum()]
            self.sums += torch.stack([torch.as_tensor(x, device=self.sums.device) for x in (terms.nll.sum(), *counts)])

    def read(self, accelerator: Any) -> dict[str, float]:
        nll, tokens, distance, pairs, cosine, read = accelerator.reduce(self.sums, "sum").tolist()
        now = time.perf_counter()
        logs = {"tokens_per_second": read / (now - self.since)}
        if tokens:
            logs |= {"lm_loss": nll / tokens, "pairs": pairs}
        if pairs:
            logs |= {"jepa_loss": distance / pairs, "view_cosine": cosine / pairs}
        self.sums.zero_()
        self.since = now
        return logs


def model_width(model: Any) -> int:
    """H."""
    return model.config.get_text_config().hidden_size


def _row_sums(terms: Terms, distance: Tensor, rows: int, width: int) -> Tensor:
    """(B, 5 + 2H): nll, tokens, distance, pairs, cosine, and the sums of the unit predicted and unit target views."""
    sums = torch.zeros(rows, 5 + 2 * width, device=terms.nll.device)
    sums[:, :2].index_add_(0, terms.token_row, torch.stack([terms.nll, torch.ones_like(terms.nll)], 1))
    if len(distance):
        predicted, target = F.normalize(terms.predicted, dim=-1), F.normalize(terms.target, dim=-1)
        cosine = (predicted * target).sum(-1)
        pairs = torch.stack([distance, torch.ones_like(distance), cosine], 1)
        sums[:, 2:].index_add_(0, terms.pair_row, torch.cat([pairs, predicted, target], 1))
    return sums


def _figures(sums: Tensor) -> dict[str, float]:
    """Means from the sums over all rows. The mean cosine over all unpaired views needs only the two sums of unit
    views: sum over i != j of p_i . t_j = (sum p) . (sum t) - sum p_i . t_i."""
    nll, tokens, distance, pairs, cosine = sums[:5].tolist()
    figures = {"lm_loss": nll / max(tokens, 1)}
    if pairs:
        figures |= {"jepa_loss": distance / pairs, "pairs": int(pairs), "cosine_paired": cosine / pairs}
    if pairs > 1:
        predicted, target = sums[5:].chunk(2)
        figures["cosine_unpaired"] = (float(predicted @ target) - cosine) / (pairs * (pairs - 1))
    return figures
