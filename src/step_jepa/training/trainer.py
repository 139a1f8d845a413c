"""RepresentationTrainer: the language-model loss and a JEPA term, on the trunk-and-branches mechanism.

    loss = gamma * mean over labelled tokens of the step
         + lbd * sum over objectives of weight * mean over its pairs of the step ( distance )

Axes: B rows, L tokens of a row, N labelled tokens, P pairs, H hidden size, V rows of the base model's vocabulary.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput
from transformers.utils.quantization_config import QuantizationConfigMixin

from step_jepa.batches.attention import reading
from step_jepa.batches.batch import Batch, row_count, tokens_read, without_branches
from step_jepa.batches.entropy_filter import kept_pairs
from step_jepa.batches.even_ranks import fill_with_blanks
from step_jepa.batches.planned_rows import PlannedRows, PlannedStream
from step_jepa.data.dataset import DataSource, SplitData
from step_jepa.data.example import IGNORED
from step_jepa.data.template import check_same_template, today
from step_jepa.errors import library_refusals
from step_jepa.models.export import export
from step_jepa.models.forward import ForwardOutput
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import check_checkpoint, load_predictors, save_predictor_rows, trained_predictors
from step_jepa.models.sharding import reshard
from step_jepa.rows.controls import CONTROL_MEANINGS
from step_jepa.training.balance import EVERY, balanced, gradient_norms
from step_jepa.training.checkpoints import check_complete, check_resumed, say_other_schedule, without_known_keys
from step_jepa.training.compute import floating_point_ops
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.held_out import HeldOutPart, figures_of, gathered, held_out_part, row_sums
from step_jepa.training.hub import HubTrainer
from step_jepa.training.jepa_loss import JepaLoss
from step_jepa.training.jepa_options import COMPAT
from step_jepa.training.metrics import MetricSums, Observation
from step_jepa.training.model_card import write_card
from step_jepa.training.monitor import Monitor
from step_jepa.training.preemption import PreemptibleTrainer
from step_jepa.training.progress import closing_bars, shows_progress
from step_jepa.training.representation import Representation
from step_jepa.training.row_preview import save_rows
from step_jepa.training.run_metadata import named, save_settings, settings_of
from step_jepa.training.run_rows import RunRows
from step_jepa.training.safeguards import FiniteNumbers
from step_jepa.training.saved_options import save_options
from step_jepa.training.sharding import ShardingBackend, check_saved_sharding, check_sharding
from step_jepa.training.tracked import Tracked
from step_jepa.training.validation import validate

logger = logging.getLogger(__name__)


class RepresentationTrainer(HubTrainer, PreemptibleTrainer):
    """Predict the representation of the answer from that of the user's text (LLM-JEPA, arXiv 2509.14252).

    Args:
        model: hub id, folder, or module (then with `processing_class`).
        args: options; the objectives are those that they name.
        train_dataset: records with `messages` (and `steps`), a file that `prepare` reads, or PreparedData; an
            IterableDataset is read as it comes, with max_steps.
        eval_dataset: the same, held out, and counted; or several by name, as for `transformers.Trainer`.
        processing_class: the tokenizer, if not the model's own.
        peft_config: of an adapter to train instead of the model.
        quantization_config: of a model given by name.
        callbacks: as for `transformers.Trainer`.
        optimizers: as for `transformers.Trainer`.

    Raises:
        UserError: for options that contradict each other, and for data and models that cannot serve.
    """

    args: RepresentationConfig
    model: Any  # as a launcher wraps it
    train_dataset: Any
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: RepresentationConfig,
        train_dataset: DataSource | None = None,
        eval_dataset: DataSource | dict[str, DataSource] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        quantization_config: QuantizationConfigMixin | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        sources = {"model_name": model, "train_file": train_dataset, "eval_file": eval_dataset}
        self._sources = {"approach": "adapted", **{name: named(source) for name, source in sources.items()}}
        validate(args, adapter=peft_config is not None, quantised=quantization_config is not None)
        args.chat_template_date = args.chat_template_date or today()
        set_seed(args.seed)
        model, tokenizer = setup_model_and_tokenizer(
            model,
            processing_class=processing_class,
            peft_config=peft_config,
            quantization_config=quantization_config,
            **args.setup_arguments(),
        )
        self.args, self.model = args, model
        self.representation = Representation(model, tokenizer, args, seed=args.seed)
        self._run_rows = RunRows(self.representation, args)
        train_rows, eval_rows = self._training_rows(train_dataset), self._evaluation_rows(eval_dataset)
        self._batch_sampler = self._run_rows.budgeted_batches(train_rows)
        if self.divides_loss or "undivided_loss" in args.switches:
            self.loss_is_scaled_for_ga = True
        if self.jepa.state.head is not None:
            args.ddp_find_unused_parameters = False  # it is used after the forward pass, where DDP does not look
        self._tracked = Tracked(self)
        every_step = [FiniteNumbers(), _EveryStep(self, train_rows)] if train_rows is not None else []
        with library_refusals(ValueError, RuntimeError, ImportError):
            super().__init__(
                model=model,
                args=args,
                data_collator=self.representation.collator,
                train_dataset=train_rows,
                eval_dataset=eval_rows,
                processing_class=tokenizer,
                callbacks=[*(callbacks or []), *every_step, self._tracked],
                optimizers=optimizers,
            )
        check_sharding(args, self.accelerator, model)
        self._sharding = ShardingBackend(args, self.accelerator, model)
        self._set_up_jepa_term()
        if self.branching and eval_rows and args.diagnostics_steps:
            self.add_callback(Monitor(self))
        shows_progress(self)
        self._say_what_is_special()

    def _set_up_jepa_term(self) -> None:
        """What lives on the device, and what an optimisation step begins with."""
        device = self.args.device
        self.jepa.state.to(device)
        if not self.is_fsdp_enabled:  # else once the model is sharded
            self.representation.begin_target_encoder()
        self.sums = MetricSums(self.jepa.names, self.jepa.weights, device)
        self._step_tokens = torch.ones((), device=device)
        self._step_pairs = torch.ones(len(self.jepa.terms), device=device)
        self._measure_balance = False
        self._held_out: list[HeldOutPart] = []

    def _say_what_is_special(self) -> None:
        if self.args.should_log:
            if self.branching and self.args.control != "none":
                logger.info("control %s: %s", self.args.control, CONTROL_MEANINGS[self.args.control])
            if reason := self.representation.reason_to_pad:
                logger.info("rows are padded and attention is dense: %s", reason)
            for name in sorted(self.args.switches):
                logger.info("compat %s: %s", name, COMPAT[name])

    @property
    def branching(self) -> bool:
        """Whether there is a JEPA term."""
        return self.representation.branching

    @property
    def divides_loss(self) -> bool:
        """Whether the loss is divided here by what the step has of tokens and pairs, and not by `Trainer`."""
        return self.branching or self.representation.flat

    @property
    def jepa(self) -> JepaLoss:
        """The JEPA term."""
        return self.representation.jepa

    # Data

    def _training_rows(self, data: DataSource | None) -> PlannedRows | PlannedStream | None:
        return self._run_rows.training(data)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._batch_sampler or super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader[Any]:
        loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        if is_training and self._batch_sampler is None:
            fill_with_blanks(loader)
        return loader

    def _evaluation_rows(self, data: Any) -> Any:
        """Of one data set; of a dictionary of them, by their names; the name of one that is there stays as it is."""
        if data is None or isinstance(data, PlannedRows) or self._is_name(data):
            return data
        if isinstance(data, dict) and not isinstance(data, SplitData):
            return {name: self._evaluation_rows(each) for name, each in data.items()}
        return self._run_rows.evaluation(data)

    def _is_name(self, data: Any) -> bool:
        """Whether `Trainer` asks for one of several evaluation sets."""
        known = getattr(self, "eval_dataset", None)
        return isinstance(data, str) and isinstance(known, dict) and data in known

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`."""
        with closing_bars(self):
            return super().train(*args, **kwargs)

    def evaluate(
        self,
        eval_dataset: DataSource | dict[str, DataSource] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Held-out figures, of the trainer's eval_dataset or of other records; of each of several."""
        return super().evaluate(self._evaluation_rows(eval_dataset), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: DataSource, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """The same figures of other records; `predictions` float32 (N, 2): of each, the sum of its tokens' nll, and
        their number."""
        rows: Any = self._evaluation_rows(test_dataset)
        return super().predict(rows, ignore_keys, metric_key_prefix)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimisation step; tokens and pairs are counted over all of them and all ranks."""
        self.sums.start()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.branching:
            if Random(f"{self.args.seed} jepa_ratio {self.state.global_step}").random() >= self.args.jepa_ratio:
                batches = [without_branches(batch) for batch in batches]
            # Not found while there was no pair: it is measured again in the next step.
            due = self.state.global_step % EVERY == 0 or not self.jepa.state.lbd
            self._measure_balance = self.args.lbd == "auto" and bool(due)
        if self.divides_loss:
            self._count_step(batches, device)
        return batches, items

    def _count_step(self, batches: list[Batch], device: torch.device) -> None:
        """What the step's losses are means over: a plain mean over each micro-batch would weigh them unequally."""
        tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        pairs = torch.zeros(len(self.jepa.terms), dtype=torch.long, device=device)
        if self.branching:
            count = self.representation.forward.entropy_filter
            objectives = torch.cat([batch["pair_objective"][kept_pairs(batch, count)] for batch in batches]).to(device)
            pairs = torch.bincount(objectives, minlength=len(self.jepa.terms))
        counts = torch.cat([torch.tensor([tokens], device=device), pairs])
        counts = self.accelerator.reduce(counts, "sum").clamp(min=1)
        self._step_tokens, self._step_pairs = counts[0], counts[1:]

    # Loss

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        checkpoint = resume_from_checkpoint if self.is_deepspeed_enabled else None  # which it loads here by itself
        if checkpoint is not None:
            self._check_resumed(checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[no-untyped-call]
        assert self.model is self.representation.model  # it is sharded in place
        self.representation.begin_target_encoder()
        if checkpoint is not None:
            with self._own_parameters_whole():
                self.jepa.state.resume(checkpoint)
        return prepared

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward, both with the batch's kind of attention: checkpointed layers run in both."""
        with reading(self.model, inputs):
            return super().training_step(model, inputs, num_items_in_batch)

    def means(self, output: ForwardOutput, tokens: Tensor | int, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma * LM loss over so many tokens, JEPA loss over so many pairs of each objective, distances (P,)."""
        distances = self.jepa.distances(output.views, self.state.global_step)
        lm = self.args.gamma * output.nll.sum() / tokens
        return lm, self.jepa.total(output.views, distances, pairs), distances

    def means_of_batch(self, output: ForwardOutput) -> tuple[Tensor, Tensor, Tensor]:
        """The same over the micro-batch's own tokens and pairs."""
        return self.means(output, max(len(output.nll), 1), self.jepa.count(output.views))

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the step's loss. Without branches it is `Trainer`'s own."""
        undivided = "undivided_loss" in self.args.switches
        if not self.branching and not undivided:
            self.sums.count_tokens(tokens_read(inputs))
            if not self.representation.flat:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            nll = self.representation.forward(inputs, model).nll
            loss = nll.sum() / self._step_tokens * self.accelerator.num_processes
            return (loss, {"loss": loss}) if return_outputs else loss
        forward = self.representation.forward
        output = forward.training(inputs, model) if self.branching else forward(inputs, model)
        if undivided:
            lm, jepa, distances = self.means_of_batch(output)
        else:
            lm, jepa, distances = self.means(output, self._step_tokens, self._step_pairs)
        if self._measure_balance:
            self._balance(lm, jepa)
        loss = lm + self.lbd * jepa
        self.sums.add(Observation(output, distances, self.jepa.negatives(output.views), inputs))
        self.jepa.accumulate(output.views)
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
        return floating_point_ops(
            inputs, parameters, target_encoder=self.representation.forward.target_encoder is not None
        )

    def store_flos(self) -> None:
        """Called before each log and each checkpoint, and at the end: the tokens are counted there too."""
        super().store_flos()
        self.state.num_input_tokens_seen += self.sums.take_tokens(self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss since the last log, over all ranks, to the training logs."""
        if "loss" in logs:
            logs |= {"lm_loss": logs["loss"]} | self.sums.read(self.accelerator)
            logs["flops"] = float(self.state.total_flos)
            if self.args.lbd == "auto":
                logs["lbd"] = float(self.jepa.state.lbd)
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor, None]:
        """Sums per row instead of means per batch, so that the closing figures do not depend on the batching."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.representation.forward(inputs, model)
            if self.branching:
                self._held_out.append(held_out_part(output, self.jepa, self.state.global_step))
        return output.nll.mean(), row_sums(output, row_count(inputs)), None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Held-out figures: the LM loss is weighted by tokens, what the views show by pairs."""
        self._held_out = []
        with closing_bars(self), self.sums.paused():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
            reshard(self.model)  # else only a backward pass does
            assert isinstance(output.predictions, np.ndarray)
            assert output.metrics is not None
            nll, tokens = torch.from_numpy(output.predictions).double().sum(0).tolist()
            figures = {"lm_loss": nll / max(tokens, 1)} | self.figures(self._held_out)
        figures["loss"] = self.args.gamma * figures["lm_loss"] + self.lbd * figures.get("jepa_loss", 0.0)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def figures(self, parts: list[HeldOutPart]) -> dict[str, float]:
        """What the views of all ranks show, see `held_out.figures_of`."""
        return figures_of(gathered(parts), self.jepa) if self.branching else {}

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Checkpoints are as they train, to be resumed; what is saved for use is merged (models/export.py)."""
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if self.args.should_save:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)  # written last: until then the folder is not whole
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)  # what is uploaded is `push_to_hub`'s business
        else:
            self._export(folder)
        with self._own_parameters_whole():
            self._write_beside(folder)

    def _export(self, folder: str) -> None:
        """What is sharded is gathered by all ranks; one writes."""
        model = self.accelerator.unwrap_model(self.model)
        sharded = self._sharding.shards(model)
        if sharded:
            model = self._sharding.gathered(model, self.model_wrapped)
        if self.args.should_save and model is not None:
            export(model, self.processing_class, folder, keep_adapter=self.args.keep_adapter, expendable=sharded)

    def _own_parameters_whole(self) -> AbstractContextManager[None]:
        """Around what is read from beside the model's files, or written there."""
        return self._sharding.whole(getattr(self.model, name, None) for name in ("predictor_tokens", "predictor_head"))

    def _write_beside(self, folder: str) -> None:
        model = self.accelerator.unwrap_model(self.model)
        rows = trained_predictors(model) if hasattr(model, "predictor_tokens") else None
        self.jepa.state.save(folder, write=self.args.should_save)
        if self.args.should_save:
            if rows is not None:
                save_predictor_rows(rows, folder)
            save_options(self.args, folder)
            save_settings(folder, self._settings())
            if self.train_dataset is not None:
                save_rows(folder, self.train_dataset, self.processing_class, self.model, self.jepa.names)
            write_card(folder, self.state.log_history)

    def _settings(self) -> dict[str, Any]:
        settings = settings_of(self.args, self.model, self._sources, self._run_rows.counts, self._run_rows.digest)
        return settings | {"tracked": self._tracked.places}

    def _check_resumed(self, checkpoint: str) -> None:
        check_complete(checkpoint)
        check_saved_sharding(checkpoint, self._sharding.checkpoint_form)
        check_resumed(self.args, self._settings(), checkpoint)
        say_other_schedule(self.args, checkpoint)
        if isinstance(self.train_dataset, PlannedStream) and self.args.should_log:
            logger.info(
                "a stream has no places: its rows up to the checkpoint are read and tokenised again, and skipped"
            )
        check_same_template(self.processing_class, checkpoint)
        check_checkpoint(self.model, checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._check_resumed(resume_from_checkpoint)
        self.representation.begin_target_encoder()
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_beside(resume_from_checkpoint)

    def _load_beside(self, checkpoint: str) -> None:
        reshard(self.model)
        load_predictors(self.model, checkpoint)
        self.jepa.state.resume(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(without_known_keys(self.model, load_result))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        with self._own_parameters_whole():
            self._load_beside(str(self.state.best_model_checkpoint))


class _EveryStep(TrainerCallback):
    """The rows learn the epoch before the loader's workers start to read ahead; what the JEPA term keeps moves."""

    def __init__(self, trainer: RepresentationTrainer, rows: PlannedRows | PlannedStream) -> None:
        self.trainer, self.rows = trainer, rows

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if isinstance(self.rows, PlannedRows):
            self.rows.epoch.fill_(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.jepa.state.after_step(self.trainer.model)
