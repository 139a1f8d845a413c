"""RepresentationTrainer: LLM-JEPA on the trunk-and-branches mechanism, and what every objective shares.

    loss = gamma * mean over labelled tokens of the step
         + lbd * sum over objectives of weight * mean over its pairs of the step ( distance )

Axes: B rows, L tokens of a row, N labelled tokens, P pairs, H hidden size, V rows of the base model's vocabulary.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftConfig
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, set_seed

from step_jepa.batches import attention
from step_jepa.batches.collate import Batch, BranchCollator, PlainCollator, PlannedRows, without_branches
from step_jepa.batches.views import TargetEncoder, Views, full, gathered, random_targets, read, trajectories
from step_jepa.data.dataset import PreparedData, load_and_prepare_dataset
from step_jepa.data.tokens import IGNORED, Encoding
from step_jepa.errors import UserError, library_refusals
from step_jepa.losses.distances import Criterion
from step_jepa.models.export import export
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import base_rows, predictor_ids
from step_jepa.objectives import OBJECTIVES, StepJEPA
from step_jepa.objectives.planner import Planner, unchanged
from step_jepa.rows import controls
from step_jepa.rows.branches import TRUNK
from step_jepa.training import diagnostics
from step_jepa.training.balance import EVERY, balanced, gradient_norms
from step_jepa.training.compute import floating_point_ops, shorten
from step_jepa.training.config import COMPAT, RepresentationConfig, check_resumed, save_options
from step_jepa.training.jepa_loss import JepaLoss
from step_jepa.training.jepa_state import JepaState
from step_jepa.training.metrics import ForwardOutput, MetricSums, jepa_losses, row_sums
from step_jepa.training.monitor import Monitor
from step_jepa.training.row_preview import save_rows
from step_jepa.training.run_metadata import named, save_settings
from step_jepa.training.validation import refuse

logger = logging.getLogger(__name__)

# The trunk's own states at the ends of steps, which cost nothing to look at: how straight do they move?
TRAJECTORY = StepJEPA(choice="all", target="context", skip_answer_step=False)


class RepresentationTrainer(Trainer):
    """Predict the representation of the answer from that of the user's text (LLM-JEPA, arXiv 2509.14252).

    model             hub id, folder, or module (then with `processing_class`)
    train_dataset     records with `messages` (and `steps`), a file that `prepare` reads, or PreparedData
    The objectives are those that the config names."""

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
        given = {"model_name": model, "train_file": train_dataset, "eval_file": eval_dataset}
        self._sources = {"approach": "adapted", **{name: named(thing) for name, thing in given.items()}}
        self._counts: dict[str, int] = {}
        kinds = [OBJECTIVES[name] for name, _ in args.objectives]
        self.branching = bool(kinds)
        predicting = any(kind.predicts for kind in kinds)
        refuse(args, adapter=peft_config is not None, quantised=quantization_config is not None, predicting=predicting)
        set_seed(args.seed)
        model, tokenizer = setup_model_and_tokenizer(
            model,
            processing_class=processing_class,
            predictors=args.predictors if predicting else None,
            train_predictors="frozen_predictors" not in args.switches,
            predictor_head=args.predictor_head if predicting else "identity",
            peft_config=peft_config,
            quantization_config=quantization_config,
            model_init_kwargs=args.model_init_kwargs,
            config_overrides=args.config_overrides or {} if args.pretrain else None,
            plain=args.plain,
            seed=args.seed,
        )
        self.args, self.model = args, model
        self.objectives = [kind.from_config(args, predictor_ids(model)) for kind in kinds]
        self.layer = _layer(model, args.layer)
        self.jepa = self._jepa_loss()
        frozen = self.branching and args.control == "frozen_target"
        self._target_encoder = (
            TargetEncoder(model, 1.0) if frozen else self.jepa.state.target_encoder
        )  # who reads the targets, if not the model
        train_rows, eval_rows = self.rows(train_dataset, tokenizer, learning=True), self.rows(eval_dataset, tokenizer)
        if self.branching or "undivided_loss" in args.switches:
            self.loss_is_scaled_for_ga = True
        if self.jepa.state.head is not None:
            args.ddp_find_unused_parameters = False  # it is used after the forward pass, where DDP does not look
        with library_refusals(ValueError, RuntimeError, ImportError):
            super().__init__(
                model=model,
                args=args,
                data_collator=(BranchCollator if self.branching else PlainCollator)(tokenizer.pad_token_id),
                train_dataset=train_rows,
                eval_dataset=eval_rows,
                processing_class=tokenizer,
                callbacks=[*(callbacks or []), *([_EveryStep(self, train_rows)] if train_rows else [])],
                optimizers=optimizers,
            )
        self.jepa.state.to(self.args.device)
        if self._target_encoder is not None:
            self._target_encoder.to(self.args.device)
        if self.branching and eval_rows and args.diagnostics_steps:
            self.add_callback(Monitor(self))
        self._sums = MetricSums(self.jepa.names, self.jepa.weights, self.args.device)
        self._step_tokens = torch.ones((), device=self.args.device)
        self._step_pairs = torch.ones(len(self.objectives), device=self.args.device)
        self._measure_balance = False
        self._held_out: list[tuple[Views, Tensor]] = []
        self._say_what_is_special()

    def _jepa_loss(self) -> JepaLoss:
        args, names = self.args, [name for name, _ in self.args.objectives]
        criteria = [
            Criterion(
                loss=objective.loss or args.loss,
                temperature=args.temperature,
                negatives=args.negatives,
                regulariser=args.regulariser,
                regulariser_weight=args.regulariser_weight,
                seed=args.seed,
            )
            for objective in self.objectives
        ]
        centred = [name for name, criterion in zip(names, criteria, strict=True) if criterion.centred]
        target_encoder = TargetEncoder(self.model, args.ema_decay) if names and args.target_encoder == "ema" else None
        width = self.model.config.get_text_config().hidden_size
        state = JepaState(centred, width, getattr(self.model, "predictor_head", None), target_encoder)
        if folder := names and (getattr(self.model, "loaded_from", None) or self.model.name_or_path):
            state.load(folder)
        return JepaLoss(names, [weight for _, weight in args.objectives], criteria, state)

    def _say_what_is_special(self) -> None:
        if self.args.should_log:
            if self.branching and self.args.control != "none":
                logger.info("control %s: %s", self.args.control, controls.MEANING[self.args.control])
            for name in sorted(self.args.switches):
                logger.info("compat %s: %s", name, COMPAT[name])

    # Data

    def rows(self, data: Any, tokenizer: Any = None, *, learning: bool = False) -> PlannedRows | None:
        """What the loader reads, from records, a file, or PreparedData. A control is for learning only. Raises
        UserError."""
        if data is None or isinstance(data, PlannedRows):
            return data
        if not isinstance(data, PreparedData):
            data = load_and_prepare_dataset(
                data, tokenizer or self.processing_class, max_length=self.args.max_length, encoding=self._encoding()
            )
        if self.args.should_log:
            logger.log(logging.WARNING if data.cut or data.left_out else logging.INFO, "%s", data)
        rows = PlannedRows(data.examples, self.planner(data.examples, learning=learning))
        pairs = self._check(rows, learning=learning)
        if learning:
            steps = sum(len(example.steps) for example in data.examples)
            self._counts = {"examples": len(rows), "steps": steps, "pairs": pairs}
            self._counts |= {"cut": data.cut, "left_out": data.left_out}
        return rows

    def _encoding(self) -> Encoding:
        switches = self.args.switches
        return Encoding(
            turns=any(objective.turns for objective in self.objectives),
            train_all=self.args.train_all,
            unlabelled_end="unlabelled_end" in switches,
            double_bos="double_bos" in switches,
        )

    def planner(self, examples: list, *, learning: bool) -> Planner:
        """What makes rows of examples: with the run's control for learning, with all that is measured otherwise."""
        args = self.args
        if not learning:
            trajectory = [TRAJECTORY] if self.branching else []
            return Planner([*self.objectives, *trajectory], args.seed)
        sampler = controls.NegativeSampler(examples) if args.control == "shuffled_pairs" else None
        return Planner(self.objectives, args.seed, args.control, args.redraw, sampler)

    def _check(self, rows: PlannedRows, *, learning: bool) -> int:
        """The number of pairs. Says what is left out, and shortens the run for `same_flop`. Raises UserError where the
        data cannot serve an objective, or the model cannot take what is_branch on the rows."""
        pairs = tokens = 0
        branching = False
        for index in range(len(rows) if self.branching else 0):
            row = rows[index]
            pairs, tokens = pairs + len(row.pairs), tokens + len(row.input_ids)
            branching |= row.branch[-1] != TRUNK
        if branching:
            attention.check(self.model)
        if not (learning and self.branching):
            return pairs
        for objective in self.objectives:
            objective.check(rows.examples)
        same = unchanged(rows.plan, rows.examples)
        if same and same == pairs:
            raise UserError(f"--control {self.args.control} changes no pair of this data: give other examples, or more")
        if self.args.same_flop:
            plain = sum(len(example.input_ids) for example in rows.examples)
            shorten(self.args, plain, tokens, target_encoder=self._target_encoder is not None)
        if self.args.should_log:
            self._say_what_is_left_out(rows, pairs, same)
        return pairs

    def _say_what_is_left_out(self, rows: PlannedRows, pairs: int, same: int) -> None:
        if left_out := sum(objective.left_out(rows.examples) for objective in self.objectives):
            logger.info("%d pairs whose target is just the answer are left out (skip_answer_step)", left_out)
        if same:
            logger.warning("control %s leaves %d of %d pairs as they are", self.args.control, same, pairs)
        if not pairs:
            logger.warning("no row has a pair of views: there is only a language-model loss")

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Held-out figures, of the eval_dataset of the trainer or of other records."""
        return super().evaluate(self.rows(eval_dataset), ignore_keys, metric_key_prefix)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimisation step; tokens and pairs are counted over all of them and all ranks."""
        self._sums.start()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.branching:
            if Random(f"{self.args.seed} jepa_ratio {self.state.global_step}").random() >= self.args.jepa_ratio:
                batches = [without_branches(batch) for batch in batches]
            tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
            pairs = torch.cat([batch["pairs"][:, 1] for batch in batches]).to(device)
            pairs = torch.bincount(pairs, minlength=len(self.objectives))
            counts = torch.cat([torch.tensor([tokens], device=device), pairs])
            counts = self.accelerator.reduce(counts, "sum").clamp(min=1)
            self._step_tokens, self._step_pairs = counts[0], counts[1:]
            self._measure_balance = self.args.lbd == "auto" and (
                self.state.global_step % EVERY == 0 or not self.jepa.state.lbd  # not found while there was no pair
            )
        return batches, items

    # Loss

    def terms(self, model: nn.Module, batch: Batch) -> ForwardOutput:
        """One forward pass over rows with or without branches. Logits are made where labels are, of V tokens."""
        labels = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]  # the label that each token predicts
        labelled = labels != IGNORED
        out = model(logits_to_keep=labelled, **self._inputs(batch))
        logits = full(out.logits[..., : base_rows(self.model)])
        nll = F.cross_entropy(logits, labels[labelled], reduction="none")
        return ForwardOutput(
            nll, labelled.nonzero()[:, 0], self._views(out, batch) if "reads" in batch else _no_views(logits)
        )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = {"input_ids": batch["input_ids"], "use_cache": False}
        if "reads" in batch:
            inputs["output_hidden_states"] = [self.layer]
        if "branch" not in batch:
            return inputs | {"attention_mask": batch["attention_mask"]}
        places = (batch["branch"], batch["visible_length"], batch["position_ids"])
        return inputs | {
            "attention_mask": attention.attention_mask(self.model, *places),
            "position_ids": batch["position_ids"],
        }

    def _views(self, out: Any, batch: Batch) -> Views:
        views = read(out.hidden_states[self.layer], batch)
        head = self.jepa.state.head
        if head is None:
            return views
        heads = torch.tensor([*(objective.predicts for objective in self.objectives), False], device=self.args.device)
        through = head(views.predicted)  # also without pairs: all ranks must use all parameters
        return replace(views, predicted=torch.where(heads[views.objective][:, None], through, views.predicted))

    def learning_views(self, views: Views, batch: Batch) -> Views:
        """The views that the loss is taken on: their targets are read as target_encoder and control say."""
        if self.args.control == "random_target":
            return random_targets(views, self.args.seed)
        if self._target_encoder is not None:
            some = torch.zeros_like(batch["labels"], dtype=torch.bool)
            some[0, 0] = True  # one row of logits: none are wanted, but not all models can make none
            out = self._target_encoder(self.model, logits_to_keep=some, **self._inputs(batch))
            return replace(views, target=read(out.hidden_states[self.layer], batch).target)
        return replace(views, target=views.target.detach()) if self.args.target_encoder != "plain" else views

    def distances(self, views: Views) -> Tensor:
        """(P,): each pair's loss by its objective's criterion; 0 for pairs of no objective."""
        return self.jepa.distances(views, step=self.state.global_step)

    def means(self, terms: ForwardOutput, tokens: Tensor | int, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma * LM loss over so many tokens, JEPA loss over so many pairs of each objective, distances (P,)."""
        distances = self.distances(terms.views)
        lm = self.args.gamma * terms.nll.sum() / tokens
        return lm, self.jepa.total(terms.views, distances, pairs), distances

    def own_means(self, terms: ForwardOutput) -> tuple[Tensor, Tensor, Tensor]:
        """The same over the micro-batch's own tokens and pairs."""
        return self.means(terms, max(len(terms.nll), 1), self.jepa.count(terms.views))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's loss. Without branches it is `Trainer`'s own."""
        undivided = "undivided_loss" in self.args.switches
        if not self.branching and not undivided:
            self._sums.count(inputs["attention_mask"].sum())
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        terms = self.terms(model, inputs)
        if self.branching:
            terms = replace(terms, views=self.learning_views(terms.views, inputs))
        if undivided:
            lm, jepa, distances = self.own_means(terms)
        else:
            lm, jepa, distances = self.means(terms, self._step_tokens, self._step_pairs)
        if self._measure_balance:
            self._balance(lm, jepa)
        loss = lm + self.lbd * jepa
        self._sums.add(terms, distances, self.jepa.negatives(terms.views), inputs)
        self.jepa.carry(terms.views)
        if not undivided:
            loss = loss * self.accelerator.num_processes  # ranks are averaged, the counts are of all of them
        return (loss, {"loss": loss}) if return_outputs else loss

    @property
    def lbd(self) -> float:
        """The weight of the JEPA loss as it is now."""
        if self.args.control == "no_loss":
            return 0.0
        return float(self.jepa.state.lbd if self.args.lbd == "auto" else self.args.lbd)

    def _balance(self, lm: Tensor, jepa: Tensor) -> None:
        """On a step's first micro-batch."""
        self._measure_balance = False
        lm_norm, jepa_norm = gradient_norms(self.model, (lm, jepa))
        self.jepa.state.lbd.fill_(balanced(self.lbd, lm_norm, jepa_norm, self.args.lbd_ratio))

    def floating_point_ops(self, inputs: Batch) -> int:
        """Of a step on this batch, without padding and attention."""
        parameters = self.model.num_parameters(exclude_embeddings=True)
        return floating_point_ops(inputs, parameters, target_encoder=self._target_encoder is not None)

    def store_flos(self) -> None:
        """Called before each log and each checkpoint, and at the end: the tokens are counted there too."""
        super().store_flos()
        self.state.num_input_tokens_seen += self._sums.take_tokens(self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss since the last log, over all ranks, to the training logs."""
        if "loss" in logs:
            logs |= {"lm_loss": logs["loss"]} | self._sums.read(self.accelerator)
            logs["flops"] = float(self.state.total_flos)
            if self.args.lbd == "auto":
                logs["lbd"] = float(self.jepa.state.lbd)
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Sums per row instead of means per batch, so that the closing figures do not depend on the batching."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            terms = self.terms(model, inputs)
            distance = self.distances(terms.views)
        self._held_out.append((terms.views.cpu(), distance.cpu()))
        return terms.nll.mean(), row_sums(terms, len(inputs["labels"])), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Held-out figures: the LM loss is weighted by tokens, what the views show by pairs."""
        self._held_out = []
        with self._sums.paused():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
            assert isinstance(output.predictions, np.ndarray)
            assert output.metrics is not None
            nll, tokens = torch.from_numpy(output.predictions).double().sum(0).tolist()
            means = {"lm_loss": nll / max(tokens, 1)} | self.figures(self._held_out)
        means["loss"] = self.args.gamma * means["lm_loss"] + self.lbd * means.get("jepa_loss", 0.0)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def figures(self, held_out: list[tuple[Views, Tensor]]) -> dict[str, float]:
        """jepa_loss, pairs, and the diagnostics of every objective's views, from each rank's (views, distances). Names
        of the first objective stand alone, others carry theirs."""
        self.held_out, distances = gathered(held_out)
        counts, names = self.jepa.count(self.held_out).tolist(), self.jepa.names
        if not sum(counts):
            return {}
        sums = [float(distances[self.held_out.objective == number].double().sum()) for number in range(len(names))]
        found = {"pairs": sum(counts)} | jepa_losses(names, self.jepa.weights, list(zip(sums, counts, strict=True)))
        for number, name in enumerate(names):
            own = self.held_out.of(number)
            shown = diagnostics.summary(own.predicted, own.target, own.problem)
            found |= {key if number == 0 else f"{name}_{key}": value for key, value in shown.items()}
        straight = diagnostics.latent_error(*trajectories(self.held_out.of(len(names))))
        return found | {name: value for name, value in straight.items() if not math.isnan(value)}

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Checkpoints stay whole, to be resumed; what is saved for use has the base model's rows (models.export)."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # without branches only: nothing to cut
        folder = output_dir or self.args.output_dir
        if _internal_call or sharded:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            export(model, self.processing_class, folder, keep_adapter=self.args.keep_adapter)
        if self.args.should_save:
            self.jepa.state.save(folder)
            save_options(self.args, folder)
            save_settings(folder, self.args, self.model, self._sources, self._counts)
            if self.train_dataset is not None:
                save_rows(folder, self.train_dataset, self.processing_class, self.model, self.jepa.names)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_resumed(self.args, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.jepa.state.resume(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.jepa.state.resume(str(self.state.best_model_checkpoint))


def _no_views(like: Tensor) -> Views:
    none = torch.zeros(0, dtype=torch.long, device=like.device)
    return Views(like.new_empty(0, 1), like.new_empty(0, 1), none, none, none)


def _layer(model: Any, layer: int) -> int:
    """Its place among the hidden states, 0 being the embeddings. Raises UserError."""
    count = model.config.get_text_config().num_hidden_layers
    if not -count <= layer <= count:
        raise UserError(f"layer = {layer}: the model has {count}: give -{count} to -1, or 0 to {count}")
    return layer if layer >= 0 else count + 1 + layer


class _EveryStep(TrainerCallback):
    """The rows learn the epoch before the loader's workers start to read ahead; what the JEPA term carries moves."""

    def __init__(self, trainer: RepresentationTrainer, rows: PlannedRows) -> None:
        self.trainer, self.rows = trainer, rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.epoch.fill_(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.jepa.state.after_step(self.trainer.model)
