"""Diagnostics during training: of the views of a few held-out rows, always the same, every so many steps."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback

from step_jepa.balance import gradient_norms
from step_jepa.collate import Batch, BranchCollator
from step_jepa.views import evaluating

logger = logging.getLogger(__name__)
BATCH = 4  # rows read at once, and rows whose gradients are measured


class Monitor(TrainerCallback):
    """Logs them before the first step, every `diagnostics_steps`, and after the last one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.warned = trainer, False
        self.first: dict[str, float] = {}

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
        with trainer._meter.paused(), evaluating(trainer.model), trainer.compute_loss_context_manager():
            found = self.figures() | self.gradients()
        trainer.log({f"diagnostics_{name}": value for name, value in found.items()})
        self.first = self.first or found
        if self.proves_nothing(found) and not self.warned and trainer.args.should_log:
            self.warned = True
            logger.warning(
                "step %d: the JEPA loss fell from %.4f to %.4f, but the centred margin of paired over unpaired views "
                "did not rise (%.4f to %.4f): the views move together, the pairing is not learned",
                *(step, self.first["jepa_loss"], found["jepa_loss"]),
                *(self.first["centred_margin"], found["centred_margin"]),
            )

    def batches(self) -> list[Batch]:
        """This rank's share of the rows; ranks have equally many."""
        trainer, rows = self.trainer, self.trainer.eval_dataset
        args, count = trainer.args, min(trainer.args.diagnostics_rows, len(rows))
        share = range(args.process_index, args.process_index + -(-count // args.world_size) * args.world_size)
        own = [rows[place % count] for place in share[:: args.world_size]]
        collate = BranchCollator(trainer.processing_class.pad_token_id)
        return [trainer._prepare_inputs(collate(own[at : at + BATCH])) for at in range(0, len(own), BATCH)]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """What the views of all these rows show."""
        trainer = self.trainer
        views = [trainer.terms(trainer.model, batch).views for batch in self.batches()]
        return trainer.figures([(each.cpu(), trainer.distances(each).cpu()) for each in views])

    def gradients(self) -> dict[str, float]:
        """Gradient norms of the two terms of the loss on the first of these rows, as they enter the loss."""
        trainer, batch = self.trainer, self.batches()[0]
        terms = trainer.terms(trainer.model, batch)
        lm, jepa = trainer.means(terms, trainer.distances(terms.views))
        norms = gradient_norms(trainer.model, (lm, jepa))
        return {"grad_norm_lm": norms[0], "grad_norm_jepa": norms[1]}

    def proves_nothing(self, found: dict[str, float]) -> bool:
        """The JEPA loss fell by a tenth or more, and the centred margin did not rise."""
        if not {"jepa_loss", "centred_margin"} <= found.keys() & self.first.keys():
            return False
        fell = found["jepa_loss"] < 0.9 * self.first["jepa_loss"]
        return fell and found["centred_margin"] <= self.first["centred_margin"]
