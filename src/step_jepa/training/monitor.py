"""Diagnostics during training: of the views of a few held-out rows, always the same, every so many steps."""

import logging
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback

from step_jepa.batches.collate import Batch, BranchCollator
from step_jepa.batches.views import evaluating
from step_jepa.training.balance import gradient_norms

logger = logging.getLogger(__name__)
BATCH = 4  # rows read at once, and rows whose gradients are measured
RISE = 0.01  # of the centred margin, below which it has not risen


class Monitor(TrainerCallback):
    """Logs them before the first step, every `diagnostics_steps`, and after the last one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.warned = trainer, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.look(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.diagnostics_steps == 0 or state.global_step >= state.max_steps:
            due = control.should_log, control.should_evaluate, control.should_save
            self.look(state.global_step)
            control.should_log, control.should_evaluate, control.should_save = due  # logging takes them for done

    def look(self, step: int) -> None:
        """Measure, log, and warn once where the loss falls for another reason than the pairing."""
        trainer = self.trainer
        with trainer._sums.paused(), trainer.compute_loss_context_manager():
            found = self.figures() | self.gradients()
        trainer.log({f"diagnostics_{name}": value for name, value in found.items()})
        first = self.first()
        if proves_nothing(first, found) and not self.warned and trainer.args.should_log:
            self.warned = True
            logger.warning(
                "step %d: the JEPA loss fell from %.4f to %.4f, but the centred margin of paired over unpaired views "
                "did not rise (%.4f to %.4f): the views move together, the pairing is not learned",
                *(step, first["jepa_loss"], found["jepa_loss"], first["centred_margin"], found["centred_margin"]),
            )

    def first(self) -> dict[str, float]:
        """The run's first figures that later ones can be held against; centred losses begin raw."""
        begun = 1 if any(criterion.centred for criterion in self.trainer.jepa.criteria) else 0
        for entry in self.trainer.state.log_history:
            if "diagnostics_jepa_loss" in entry and entry["step"] >= begun:
                return {name.removeprefix("diagnostics_"): value for name, value in entry.items()}
        return {}

    def batches(self) -> list[Batch]:
        """This rank's share of the rows; ranks have equally many."""
        trainer, rows = self.trainer, self.trainer.eval_dataset
        args, count = trainer.args, min(trainer.args.diagnostics_rows, len(rows))
        share = range(args.process_index, args.process_index + -(-count // args.world_size) * args.world_size)
        own = [rows[place % count] for place in share[:: args.world_size]]
        collate = BranchCollator(trainer.processing_class.pad_token_id)
        size = min(BATCH, args.per_device_train_batch_size)
        return [trainer._prepare_inputs(collate(own[at : at + size])) for at in range(0, len(own), size)]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """What the views of all these rows show."""
        trainer = self.trainer
        with evaluating(trainer.model):
            views = [trainer.terms(trainer.model, batch).views for batch in self.batches()]
            return trainer.figures([(each.cpu(), trainer.distances(each).cpu()) for each in views])

    def gradients(self) -> dict[str, float]:
        """Gradient norms of gamma * LM loss and of the JEPA loss, before lbd, on the first of these rows."""
        trainer, batch = self.trainer, self.batches()[0]
        device = trainer.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout must not disturb training
            terms = trainer.terms(trainer.model, batch)
            terms = replace(terms, views=trainer.learning_views(terms.views, batch))
            lm_norm, jepa_norm = gradient_norms(trainer.model, trainer.own_means(terms)[:2])
        return {"grad_norm_lm": lm_norm, "grad_norm_jepa": jepa_norm}


def proves_nothing(first: dict[str, float], found: dict[str, float]) -> bool:
    """The JEPA loss fell by a tenth or more, and the centred margin, where it had room to rise, did not."""
    if not {"jepa_loss", "centred_margin"} <= found.keys() & first.keys():
        return False
    fell = found["jepa_loss"] < 0.9 * first["jepa_loss"]
    return fell and first["centred_margin"] < 0.9 and found["centred_margin"] < first["centred_margin"] + RISE
