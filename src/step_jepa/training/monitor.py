"""Diagnostics during training: of the views of a few held-out rows, always the same, every so many steps."""

import logging
import math
from typing import Any

import torch
from transformers import TrainerCallback

from step_jepa.batches.attention import reading
from step_jepa.batches.batch import Batch
from step_jepa.models.sharding import is_sharded, reshard
from step_jepa.models.target_encoder import evaluating
from step_jepa.training.balance import gradient_norms
from step_jepa.training.held_out import held_out_part

logger = logging.getLogger(__name__)
BATCH = 4  # rows read at once, and rows whose gradients are measured
RISE = 0.01  # of the centred margin, below which it has not risen


class Monitor(TrainerCallback):
    """Logs them before the first step, every `diagnostics_steps`, and after the last one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.warned = trainer, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.diagnostics_steps == 0 or state.global_step >= state.max_steps:
            due = control.should_log, control.should_evaluate, control.should_save
            self.look(state.global_step)
            control.should_log, control.should_evaluate, control.should_save = due  # logging takes them for done

    def look(self, step: int) -> None:
        """Measure, log, and warn once where the loss falls for another reason than the pairing."""
        trainer = self.trainer
        with trainer.sums.paused(), trainer.compute_loss_context_manager():
            figures = self.figures()
            if not (is_sharded(trainer.model) or trainer.is_deepspeed_enabled):
                figures |= self.gradients()
        trainer.log({f"diagnostics_{name}": value for name, value in figures.items()})
        first = self.first()
        if proves_nothing(first, figures) and not self.warned and trainer.args.should_log:
            self.warned = True
            logger.warning(
                "step %d: the JEPA loss fell from %.4f to %.4f, but the centred margin of paired over unpaired views "
                "did not rise (%.4f to %.4f): the views move together, the pairing is not learned",
                step,
                first["jepa_loss"],
                figures["jepa_loss"],
                first["centred_margin"],
                figures["centred_margin"],
            )

    def first(self) -> dict[str, float]:
        """The run's first figures that later ones can be held against; centred losses begin raw."""
        first_step = 1 if self.trainer.jepa.centred else 0
        for entry in self.trainer.state.log_history:
            if "diagnostics_jepa_loss" in entry and entry["step"] >= first_step:
                return {name.removeprefix("diagnostics_"): value for name, value in entry.items()}
        return {}

    def batches(self) -> list[Batch]:
        """This rank's share of the rows; ranks have equally many."""
        trainer, rows = self.trainer, self.trainer.eval_dataset
        rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
        args, count = trainer.args, min(trainer.args.diagnostics_rows, len(rows))
        ranks = args.world_size
        share = range(args.process_index, args.process_index + math.ceil(count / ranks) * ranks, ranks)
        chosen = [rows[place % count] for place in share]
        size = min(BATCH, args.per_device_train_batch_size)
        return [
            trainer._prepare_inputs(trainer.data_collator(chosen[start : start + size]))
            for start in range(0, len(chosen), size)
        ]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """What the views of all these rows show."""
        trainer, forward = self.trainer, self.trainer.representation.forward
        with evaluating(trainer.model):
            outputs = [forward(batch) for batch in self.batches()]
            step = trainer.state.global_step
            figures: dict[str, float] = trainer.figures(
                [held_out_part(output, trainer.jepa, step) for output in outputs]
            )
        reshard(trainer.model)
        return figures

    def gradients(self) -> dict[str, float]:
        """Gradient norms of gamma * LM loss and of the JEPA loss, before lbd, on the first of these rows."""
        trainer, batch = self.trainer, self.batches()[0]
        forward, device = trainer.representation.forward, trainer.args.device
        fork = torch.random.fork_rng([device] if device.type == "cuda" else [])  # dropout must not disturb training
        with fork, reading(trainer.model, batch):
            lm, jepa, _ = trainer.means_of_batch(forward.training(batch))
            lm_norm, jepa_norm = gradient_norms(trainer.model, (lm, jepa))
        return {"grad_norm_lm": lm_norm, "grad_norm_jepa": jepa_norm}


def proves_nothing(first: dict[str, float], now: dict[str, float]) -> bool:
    """The JEPA loss fell by a tenth or more, and the centred margin, where it had room to rise, did not."""
    if not {"jepa_loss", "centred_margin"} <= now.keys() & first.keys():
        return False
    fell = now["jepa_loss"] < 0.9 * first["jepa_loss"]
    had_room = first["centred_margin"] < 0.9
    return fell and had_room and now["centred_margin"] < first["centred_margin"] + RISE
