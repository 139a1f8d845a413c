"""Subject: one user's model, tokenizer and rows, set up as `step-jepa train` would, for checks.py to look at.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from step_jepa.adapted import untrained
from step_jepa.batches.collate import Batch
from step_jepa.batches.views import evaluating
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.sources import Record
from step_jepa.data.tokens import Example
from step_jepa.errors import UserError
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import base_rows, trained_predictors
from step_jepa.rows.branches import Row


class Subject:
    """A model, its tokenizer and rows, as `step-jepa train` would take them; set up when a check first asks for it.

    rows        how many records the model reads: the shortest that have two pairs of steps, or else one
    Use it as a context manager: it keeps folders for as long as it lives."""

    def __init__(
        self,
        model_name: str,
        records: Sequence[Record],
        *,
        rows: int = 3,
        predictors: int = 1,
        lora: bool = False,
        plain: bool = False,
        max_length: int | None = 1024,
        attn_implementation: str = "sdpa",
        seed: int = 42,
    ) -> None:
        self.model_name, self.records, self.rows, self.seed = model_name, records, rows, seed
        self.predictors, self.lora, self.plain, self.max_length = predictors, lora, plain, max_length
        self.attn_implementation = attn_implementation
        self._open = ExitStack()

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_name, plain=self.plain)

    @cached_property
    def examples(self) -> list[Example]:
        """Of all records, whole."""
        return load_and_prepare_dataset(self.records, self.tokenizer).examples

    @cached_property
    def chosen(self) -> Sequence[Record]:
        """The records that the model reads."""
        pairs = [pairs_of(example) for example in self.examples]
        paired = [place for place, count in enumerate(pairs) if count]
        if not paired:
            raise UserError("no row has two steps beside its answer: there is no pair of views")
        shortest = sorted(paired, key=lambda place: (pairs[place] == 1, len(self.examples[place].input_ids)))
        return [self.records[place] for place in sorted(shortest[: self.rows])]

    @cached_property
    def reader(self) -> Any:
        """A trainer of the model that nothing has trained yet, for forward passes."""
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        reader = self.trainer(
            self.model_name,
            processing_class=self.tokenizer,
            peft_config=adapter if self.lora else None,
            plain=self.plain,
            model_init_kwargs={"attn_implementation": self.attn_implementation},
        )
        _without_dropout(reader.model)
        return reader

    def trainer(self, model: Any, **options: Any) -> Any:
        """A trainer on the chosen rows, all pairs."""
        options = {"pairs": "all", "predictors": self.predictors, "max_length": None, "seed": self.seed} | options
        options |= {"disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        trainer = self._open.enter_context(untrained(model, data=self.chosen, **options))
        trainer.remove_callback(PrinterCallback)
        return trainer

    def trained(self, **options: Any) -> Any:
        """A trainer of the same model, as it is by now."""
        return self.trainer(self.reader.model, processing_class=self.reader.processing_class, **options)

    @cached_property
    def planned(self) -> list[Row]:
        return [self.reader.train_dataset[place] for place in range(len(self.reader.train_dataset))]

    @cached_property
    def batch(self) -> Batch:
        """The chosen rows, as the trainer hands them to the model."""
        return self.reader._prepare_inputs(self.reader.data_collator(self.planned))

    @cached_property
    def two_steps(self) -> "TwoSteps":
        """Two optimisation steps, with a checkpoint between."""
        half = max(1, math.ceil(len(self.chosen) / 2))
        options = {"per_device_train_batch_size": half, "max_steps": 2, "learning_rate": 1e-4}
        before = trained_predictors(self.reader.model).clone()
        trainer = self.trained(**options)
        trainer.add_callback(_SaveAfterFirst())
        trainer.train()
        after = trained_predictors(self.reader.model).clone()
        return TwoSteps(trainer, options, losses_of(trainer), before, after)

    # What the model makes of the batch, without dropout

    @torch.no_grad()
    def views(self, batch: Batch) -> Tensor:
        """(P, 2, H): predicted and target."""
        with evaluating(self.reader.model):
            views = self.reader.terms(self.reader.model, batch).views
        return torch.stack([views.predicted, views.target], 1)

    @torch.no_grad()
    def states(self, batch: Batch) -> Tensor:
        """(B, L, H): what views are read from."""
        with evaluating(self.reader.model):
            return self.reader.model(logits_to_keep=1, **self.reader._inputs(batch)).hidden_states[self.reader.layer]

    def with_other_tokens(self, changed: Tensor) -> Batch:
        """The batch with other tokens at these places, bool (B, L)."""
        ids, rows = self.batch["input_ids"], base_rows(self.reader.model)
        return {**self.batch, "input_ids": torch.where(changed, (ids + rows // 3 + 1) % rows, ids)}

    def read_at(self, pair: int, side: int) -> int:
        """The column of a pair's predicted (0) or target (1) view."""
        reads = self.batch["reads"]
        return int(reads[reads[:, 0] == 2 * pair + side][-1, 2])

    @cached_property
    def rounds(self) -> list[list[int]]:
        """The pairs, sorted into rounds with at most one pair of each row: those that can be looked at together."""
        rounds: list[list[int]] = []
        seen: dict[int, int] = {}
        for pair, row in enumerate(self.batch["pairs"][:, 0].tolist()):
            seen[row] = seen.get(row, -1) + 1
            if seen[row] == len(rounds):
                rounds.append([])
            rounds[seen[row]].append(pair)
        return rounds

    @cached_property
    def allowed(self) -> Tensor:
        """bool (P, 2, L): what each view may see, by the method: a predicted view everything up to its step's end and
        its predictor tokens; a target its own step."""
        batch, examples = self.batch, self.reader.train_dataset.examples
        allowed = torch.zeros(len(batch["pairs"]), 2, batch["input_ids"].shape[1], dtype=torch.bool)
        for pair, (row, _, _, step) in enumerate(batch["pairs"].tolist()):
            start, stop = examples[row].steps[step]
            predicted, target = self.read_at(pair, 0), self.read_at(pair, 1)
            allowed[pair, 0, :start] = True
            allowed[pair, 0, predicted - self.predictors + 1 : predicted + 1] = True
            allowed[pair, 1, target - (stop - start) + 1 : target + 1] = True
        return allowed.to(batch["input_ids"].device)


class _SaveAfterFirst(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == 1


@dataclass(frozen=True)
class TwoSteps:
    """losses   of the two steps; before, after: the predictor rows (K, H)"""

    trainer: Any
    options: dict[str, Any]
    losses: list[float]
    before: Tensor
    after: Tensor


def pairs_of(example: Example) -> int:
    """How many steps follow another and are not just the answer."""
    filled = [step for step, (start, stop) in enumerate(example.steps) if start < stop]
    return sum(step != example.answer for step in filled[1:])


def losses_of(trainer: Any) -> list[float]:
    """The training loss of each logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _without_dropout(model: nn.Module) -> None:
    """Two passes of one thing can only be compared without it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - to mypy it is a module
