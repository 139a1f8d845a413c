"""VerificationContext: one user's model, tokenizer and rows, set up as `step-jepa train` would, for the checks.

Axes: B rows, L tokens of a row, P pairs, K predictor tokens, H hidden size.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from accelerate import PartialState
from peft import LoraConfig
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches.batch import Batch, is_flat, pair_count, to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.batches.views import Views
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.example import Example, truncate
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import base_rows, trained_predictors
from step_jepa.models.target_encoder import evaluating
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.rows.branches import TRUNK, Row
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.progress import Progress
from step_jepa.training.representation import Representation
from step_jepa.verification.compare import length_read

Side = Literal["predicted", "target"]
MOST_ROUNDS = 8
SIDES: tuple[Side, Side] = ("predicted", "target")


@dataclass(eq=False)
class VerificationContext:
    """A model, its tokenizer and rows, as `step-jepa train` would take them; set up when a check first asks for them.

    Use it as a context manager: the folders of its trainers live as long as it does.

    model_name           hub id, folder, or smollm2
    records              the rows whose tokens are checked
    source               what the records are called in messages: their file
    rows_read            how many of them the model reads: the shortest that have two pairs of steps, or else one
    predictors           K
    lora                 LoRA training instead of full fine-tuning
    target_modules       that it adapts
    plain                no chat framing
    template             options of the chat template
    max_length           longest trunk in tokens: what the model reads is cut to whole steps, as in training, and to no
                         more than MOST_READ tokens (compare.py)
    attn_implementation  attention backend
    seed                 of the predictor rows, of an adapter and of training
    """

    model_name: str
    records: Sequence[Mapping[str, Any]]
    source: str = "the data"
    rows_read: int = 3
    predictors: int = 1
    lora: bool = False
    target_modules: str | list[str] = "all-linear"
    plain: bool = False
    template: TemplateOptions | None = None
    max_length: int | None = 1024
    attn_implementation: str = "sdpa"
    seed: int = 42
    _folders: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folders.close()

    # Rows

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return load_tokenizer(self.model_name, plain=self.plain, template=self.template)

    @cached_property
    def examples(self) -> list[Example]:
        """Of all records, whole. Raises UserError."""
        return list(load_and_prepare_dataset(self.records, self.tokenizer).examples)

    @cached_property
    def chosen_records(self) -> list[Mapping[str, Any]]:
        """Those that the model reads, in their order. Raises UserError where no row has a pair."""
        self.check_pairs()
        pairs = self._pairs_within_max_length()
        paired = [place for place, count in enumerate(pairs) if count]
        shortest_first = sorted(paired, key=lambda place: (pairs[place] == 1, len(self.examples[place].input_ids)))
        return [self.records[place] for place in sorted(shortest_first[: self.rows_read])]

    def check_pairs(self) -> None:
        """Raises UserError where no row has a pair: then it is the data that cannot serve, and nothing to verify."""
        if any(map(count_pairs, self.examples)) and not any(self._pairs_within_max_length()):
            remedy = "raise it" if self.length_read == self.max_length else "of longer ones nothing is read here"
            raise UserError(f"{self.source}: no row has two steps within max_length = {self.length_read}: {remedy}")
        if not any(self._pairs_within_max_length()):
            raise UserError(
                f"{self.source}: none of the {len(self.examples)} rows that were read has two steps beside its "
                "answer, so there is no pair of views: cut the answers into steps (step-jepa prepare, with another "
                "--split_by), or read more rows (--limit)"
            )

    def _pairs_within_max_length(self) -> list[int]:
        return [count_pairs(truncate(example, self.length_read)) for example in self.examples]

    @property
    def length_read(self) -> int:
        """Most tokens of a trunk that the model reads."""
        return length_read(self.max_length)

    # The model and what it reads

    @cached_property
    def representation(self) -> Representation:
        """The model with its forward pass, all pairs. Raises UserError."""
        set_seed(self.seed)  # of the adapter
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules=self.target_modules, task_type="CAUSAL_LM")
        representation = Representation.load(
            self.model_name,
            StepJEPAOptions(plain=self.plain, **self._options),
            seed=self.seed,
            processing_class=self.tokenizer,
            peft_config=adapter if self.lora else None,
            model_init_kwargs={"attn_implementation": self.attn_implementation},
        )
        representation.model.to(PartialState().device)
        _remove_dropout(representation.model)
        return representation

    @property
    def _options(self) -> dict[str, Any]:
        return {"pairs": "all", "predictors": self.predictors, "max_length": self.length_read}

    @property
    def model(self) -> Any:
        """The one model that all checks share, in the state that earlier checks left it in."""
        return self.representation.model

    @cached_property
    def rows(self) -> PlannedRows:
        """The chosen records as training plans them. Raises UserError where the model cannot take their branches."""
        examples = self.representation.prepare(self.chosen_records).examples
        rows = PlannedRows(examples, self.representation.training_planner(examples))
        self.representation.check_attention(rows)
        return rows

    @cached_property
    def batch(self) -> Batch:
        """The chosen rows as one batch, on the model's device."""
        rows = [self.rows[place] for place in range(len(self.rows))]
        return to_device(self.representation.collator(rows), self.model.device)

    @cached_property
    def pair_rounds(self) -> list[list[int]]:
        """Pairs, sorted into rounds with at most one pair of each row: those that can be looked at together. Of long
        answers some rounds, from first to last."""
        rounds: list[list[int]] = []
        pairs_before: dict[int, int] = {}
        for pair, row in enumerate(self.rows_of_pairs):
            number = pairs_before.get(row, 0)
            pairs_before[row] = number + 1
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(pair)
        count = min(len(rounds), MOST_ROUNDS)
        return [rounds[place * (len(rounds) - 1) // max(1, count - 1)] for place in range(count)]

    @property
    def views_looked_at(self) -> str:
        """How many views the rounds have, in words."""
        count, all_views = 2 * sum(map(len, self.pair_rounds)), 2 * pair_count(self.batch)
        return f"{count} views" if count == all_views else f"{count} of {all_views} views"

    @cached_property
    def token_rows(self) -> Tensor:
        """int64 (B, L): which of the rows each token of the batch is in."""
        if is_flat(self.batch):
            return self.batch["token_row"]
        rows, length = self.batch["input_ids"].shape
        return torch.arange(rows, device=self.model.device)[:, None].expand(rows, length)

    @cached_property
    def read_places(self) -> dict[Side, Tensor]:
        """int64 (P,): where the last state that each view is read from is, in the batch's flattened (B, L)."""
        count = 2 * pair_count(self.batch)
        read = self.batch["read_row"] * self.batch["input_ids"].shape[1] + self.batch["read_column"]
        places = torch.zeros(count, dtype=torch.long, device=self.model.device)
        places = places.scatter_reduce(0, self.batch["read_view"], read, "amax")
        return {"predicted": places[0::2], "target": places[1::2]}

    @cached_property
    def rows_of_pairs(self) -> list[int]:
        """P of them: which of the rows each pair is of."""
        rows: list[int] = self.token_rows.flatten()[self.read_places["predicted"]].tolist()
        return rows

    def visible(self, pairs: Sequence[int], side: Side) -> Tensor:
        """bool (B, L): what the views of these pairs, of different rows, may see, by the method: a predicted view
        everything up to its step's end and its predictor tokens; a target its own step."""
        on_trunk, position = self.batch["branch"] == TRUNK, self.batch["position_ids"]
        visible = torch.zeros_like(self.token_rows, dtype=torch.bool)
        for pair in pairs:
            row, read = self.rows_of_pairs[pair], int(self.read_places[side][pair])
            start, stop = self.rows.examples[row].steps[int(self.batch["pair_step"][pair])]
            own = self.predictors if side == "predicted" else stop - start
            if side == "predicted":
                visible |= (self.token_rows == row) & on_trunk & (position < start)
            visible.view(-1)[read - own + 1 : read + 1] = True
        return visible

    def in_rows_of(self, pairs: Sequence[int]) -> Tensor:
        """bool (B, L): the tokens of these pairs' rows."""
        rows = torch.tensor([self.rows_of_pairs[pair] for pair in pairs], device=self.model.device)
        return torch.isin(self.token_rows, rows)

    # What the model makes of a batch, without dropout

    @torch.no_grad()
    def views(self, batch: Batch) -> Views:
        """Of all pairs."""
        with evaluating(self.model):
            return self.representation.forward(batch).views

    def views_of(self, rows: list[Row], collate: Callable[[list[Row]], Batch]) -> Views:
        """Of all pairs of rows."""
        return self.views(to_device(collate(rows), self.model.device))

    @torch.no_grad()
    def hidden_states(self, batch: Batch) -> Tensor:
        """(B, L, H): what views are read from."""
        with evaluating(self.model):
            return self.representation.forward.hidden_states(batch)

    def with_other_tokens(self, places: Tensor) -> Batch:
        """The batch with other tokens at these places, bool (B, L)."""
        ids, vocabulary = self.batch["input_ids"], base_rows(self.model)
        others = (ids + vocabulary // 3 + 1) % vocabulary
        return {**self.batch, "input_ids": torch.where(places, others, ids)}

    # Training

    def trainer(self, **options: Any) -> StepJEPARepresentationTrainer:
        """A trainer of the model as it is by now, on the chosen records, in a folder of its own.

        Args:
            **options: fields of StepJEPAConfig.
        """
        folder = self._folders.enter_context(TemporaryDirectory())
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        config = StepJEPAConfig(output_dir=folder, seed=self.seed, **self._options, **quiet, **options)
        trainer = StepJEPARepresentationTrainer(
            self.model, config, self.chosen_records, processing_class=self.representation.tokenizer
        )
        trainer.remove_callback(Progress)
        return trainer

    @cached_property
    def two_steps(self) -> "TwoSteps":
        """Two optimisation steps, with a checkpoint between."""
        half = max(1, math.ceil(len(self.chosen_records) / 2))
        options = {"per_device_train_batch_size": half, "max_steps": 2, "learning_rate": 1e-4}
        before = trained_predictors(self.model).clone()
        trainer = self.trainer(**options)
        trainer.add_callback(_SaveAfterFirstStep())
        trainer.train()
        after = trained_predictors(self.model).clone()
        return TwoSteps(trainer, options, logged_losses(trainer), before, after)


class _SaveAfterFirstStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == 1


@dataclass(frozen=True)
class TwoSteps:
    """A run of two optimisation steps.

    trainer     which made them
    options     that it was made with
    losses      of the two steps
    predictors_before, predictors_after
                (K, H), the predictor rows
    """

    trainer: StepJEPARepresentationTrainer
    options: dict[str, Any]
    losses: list[float]
    predictors_before: Tensor
    predictors_after: Tensor


def count_pairs(example: Example) -> int:
    """How many pairs of steps training would take of it."""
    return len(StepJEPA(pairs="all").kept(example))


def logged_losses(trainer: Any) -> list[float]:
    """The training loss of each logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    """Those that an optimiser moves."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def _remove_dropout(model: nn.Module) -> None:
    """Two passes of one thing can only be compared without it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - to mypy it is a module
