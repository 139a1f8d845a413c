"""A model with all that reads its views and takes losses on them: what a trainer trains, and what every other command
that reads a view uses without a Trainer."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from step_jepa.batches import attention
from step_jepa.batches.collate import BranchCollator, FlatCollator, PlainCollator
from step_jepa.batches.planned_rows import PlannedRows, PlannedStream
from step_jepa.data.dataset import DataSource, PreparedData, encoder_of, load_and_prepare_dataset, opened
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import Example
from step_jepa.data.splits import TRAIN, Splits
from step_jepa.data.stream import ExampleStream
from step_jepa.losses.criterion import Criterion
from step_jepa.models.forward import Forward
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import predictor_ids
from step_jepa.models.target_encoder import TargetEncoder
from step_jepa.objectives import OBJECTIVES, Objective
from step_jepa.objectives.base import EntropyOf
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import TRUNK
from step_jepa.rows.controls import NegativeSampler
from step_jepa.rows.least_certain import StepEntropies
from step_jepa.training.jepa_loss import JepaLoss, WeightedObjective
from step_jepa.training.jepa_options import RepresentationOptions
from step_jepa.training.jepa_state import JepaState
from step_jepa.training.step_entropies import step_entropies


class Representation:
    """Objectives, forward pass and JEPA loss of a model, by a run's options.

    model, tokenizer   as `setup_model_and_tokenizer` makes them
    options            of the JEPA term
    seed               of all random choices
    """

    def __init__(self, model: Any, tokenizer: Any, options: RepresentationOptions, *, seed: int) -> None:
        self.model, self.tokenizer, self.options, self.seed = model, tokenizer, options, seed
        kinds = [OBJECTIVES[name] for name, _ in options.objectives]
        self.objectives: list[Objective] = [kind.from_config(options, predictor_ids(model)) for kind in kinds]
        self.jepa = self._jepa_loss()
        self.forward = Forward(
            model,
            layer=options.layer,
            head=self.jepa.state.head,
            predicts=[objective.predicts for objective in self.objectives],
            target_encoder=self._target_encoder(),
            detach_targets=options.target_encoder != "plain",
            random_seed=seed if options.control == "random_target" else None,
            entropy_filter=self._entropy_filter("model"),
        )

    @classmethod
    def load(
        cls, model: Any, options: RepresentationOptions, *, seed: int, processing_class: Any = None, **loading: Any
    ) -> "Representation":
        """Of a model given by name or as a module, in evaluation mode.

        Args:
            model: hub id, folder, or module (then with `processing_class`).
            options: of the JEPA term.
            seed: of all random choices.
            processing_class: the tokenizer, if not the model's own.
            **loading: more arguments of `setup_model_and_tokenizer`, or others than the options'.

        Raises:
            UserError: where the model cannot be had.
        """
        model, tokenizer = setup_model_and_tokenizer(
            model, processing_class=processing_class, seed=seed, **options.setup_arguments() | loading
        )
        return cls(model.eval(), tokenizer, options, seed=seed)

    def begin_target_encoder(self) -> None:
        """From the model's parameters as they are now, the first time."""
        for encoder in (self.forward.target_encoder, self.jepa.state.target_encoder):
            if encoder is not None:
                encoder.begin(self.model)

    @property
    def branching(self) -> bool:
        """Whether there is a JEPA term."""
        return bool(self.objectives)

    @property
    def flat(self) -> bool:
        """Whether batches are flat and attention is in parts."""
        return self.reason_to_pad is None

    @cached_property
    def reason_to_pad(self) -> str | None:
        """Why rows are padded and attention is dense: an option that asks for it, or what the model is like."""
        return self.options.reason_to_pad or attention.obstacle(self.model)

    @property
    def collator(self) -> FlatCollator | PlainCollator | BranchCollator:
        """What makes batches of rows."""
        return FlatCollator(views=self.branching) if self.flat else self.padded_collator

    @property
    def padded_collator(self) -> PlainCollator | BranchCollator:
        """What makes batches of padded rows, whose masks can be looked at."""
        pad_id = self.tokenizer.pad_token_id
        return BranchCollator(pad_id) if self.branching else PlainCollator(pad_id)

    @property
    def encoding(self) -> Encoding:
        """How conversations are tokenised."""
        switches = self.options.switches
        return Encoding(
            turns=any(objective.turns for objective in self.objectives),
            train_turns=self.options.train_turns,
            train_all=self.options.train_all,
            unlabelled_end="unlabelled_end" in switches,
            double_bos="double_bos" in switches,
        )

    # Rows

    def prepare(self, data: DataSource, splits: Splits = TRAIN, *, num_proc: int = 1) -> PreparedData:
        """Examples from records, a file, or PreparedData.

        Args:
            data: of known length.
            splits: which split is read of data that has several, the first that there is.
            num_proc: processes that tokenise.

        Raises:
            UserError: it cannot be used.
        """
        if isinstance(data, PreparedData):
            return data
        return load_and_prepare_dataset(
            data,
            self.tokenizer,
            max_length=self.options.max_length,
            encoding=self.encoding,
            reading=self.options,
            num_proc=num_proc,
            splits=splits,
        )

    def stream(self, data: DataSource, *, buffer: int) -> PlannedStream:
        """Rows for learning as they come. Raises UserError.

        Args:
            data: anything but PreparedData.
            buffer: examples that are held to be shuffled.
        """
        source = opened(data, TRAIN, stream=True)
        encoder = encoder_of(data, self.tokenizer, self.options.max_length, self.encoding, self.options)
        examples = ExampleStream(source, encoder, buffer=buffer, seed=self.seed)
        rows = PlannedStream(examples, self.training_planner(examples.head))
        self.check_attention(PlannedRows(examples.head, rows.plan))
        return rows

    def training_planner(self, examples: Sequence[Example]) -> Planner:
        """What makes rows of examples for learning, with the run's control."""
        options = self.options
        sampler = NegativeSampler(examples) if options.control == "shuffled_pairs" else None
        entropies = self._step_entropies(examples) if self._entropy_filter("base") else None
        return Planner(self.objectives, self.seed, options.control, options.redraw, sampler, entropies)

    def _step_entropies(self, examples: Sequence[Example]) -> StepEntropies:
        return step_entropies(self.forward, self.collator, examples)

    def evaluation_planner(self) -> Planner:
        """The same for held-out figures: the true pairs, and all that diagnostics look at."""
        return Planner(self.objectives, self.seed, trajectory=self.branching)

    def evaluation_rows(self, data: DataSource) -> PlannedRows:
        """What held-out figures are taken on. Raises UserError, also where the model cannot take the rows' branches."""
        rows = PlannedRows(self.prepare(data).examples, self.evaluation_planner())
        self.check_attention(rows)
        return rows

    def check_attention(self, rows: PlannedRows) -> None:
        """Raises UserError where the model cannot take flat batches, or the branches of padded rows."""
        if self.flat:
            attention.check(self.model, flat=True)
        elif self.branching and any(rows.plan(example).branch[-1] != TRUNK for example in rows.sample):
            attention.check(self.model)

    def _jepa_loss(self) -> JepaLoss:
        options = self.options
        terms = [
            WeightedObjective(name, weight, self._criterion(objective))
            for (name, weight), objective in zip(options.objectives, self.objectives, strict=True)
        ]
        centred = [term.name for term in terms if term.criterion.spec.centred]
        average = TargetEncoder(options.ema_decay) if terms and options.target_encoder == "ema" else None
        width = self.model.config.get_text_config().hidden_size
        state = JepaState(centred, width, getattr(self.model, "predictor_head", None), average)
        if terms and (folder := getattr(self.model, "loaded_from", None) or self.model.name_or_path):
            state.load(folder, predicting=any(objective.predicts for objective in self.objectives))
        return JepaLoss(terms, state)

    def _criterion(self, objective: Objective) -> Criterion:
        options = self.options
        return Criterion(
            loss=objective.loss or options.loss,
            temperature=options.temperature,
            negatives=options.negatives,
            regulariser=options.regulariser,
            regulariser_weight=options.regulariser_weight,
            seed=self.seed,
        )

    def _entropy_filter(self, reader: EntropyOf) -> int | None:
        """How many pairs of an example are kept by the entropies of that model; None where it decides nothing."""
        counts = [objective.entropy_filter for objective in self.objectives if objective.entropy_of == reader]
        return next(filter(None, counts), None)

    def _target_encoder(self) -> TargetEncoder | None:
        """Who reads the targets, if not the model."""
        if self.branching and self.options.control == "frozen_target":
            return TargetEncoder(decay=1.0)
        return self.jepa.state.target_encoder
