"""A callback that ends training rather than go on for nothing, where a number is no longer finite."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from step_jepa.errors import UserError
from step_jepa.models.sharding import whole
from step_jepa.training.checkpoints import checkpoints_in, last_checkpoint

logger = logging.getLogger(__name__)

REMEDY = "lower --learning_rate, raise --warmup_steps, or clip gradients with --max_grad_norm"


class FiniteNumbers(TrainerCallback):
    """Raises UserError at the first gradient, held-out loss or weight that is not finite, before anything is saved.
    Warns once of a gradient that is zero: nothing is learnt from there on, as after steps far too long."""

    def __init__(self) -> None:
        self._warned = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # The loss scaler of fp16 leaves out such steps itself; DeepSpeed has made its step by now.
        if gradients and not args.fp16:
            norm = self._check(gradients, args, state.global_step + 1, "the gradient")
            self._warn_of_zero(norm, args, state.global_step + 1)

    def _warn_of_zero(self, norm: Tensor, args: Any, step: int) -> None:
        # Without a language-model loss, a step has none where it has no pair.
        if not self._warned and args.gamma > 0 and not norm:
            self._warned = True
            logger.warning(
                "the gradient of step %d is exactly zero: the model learns nothing (unless no token of the step has a "
                "label) and may be ruined: %s",
                *(step, REMEDY),
            )

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if control.should_save or control.should_training_stop:
            trained = (parameter.detach() for parameter in model.parameters() if parameter.requires_grad)
            self._check(trained, args, state.global_step, "a trained weight")

    on_epoch_end = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        for name, value in (metrics or {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                raise _diverged(args, state.global_step, name)

    @staticmethod
    def _check(tensors: Iterable[Tensor], args: Any, step: int, what: str) -> Tensor:
        """Their norm."""
        norm = whole(get_total_norm(list(tensors)))
        if not torch.isfinite(norm):
            raise _diverged(args, step, what)
        return norm


def _diverged(args: Any, step: int, what: str) -> UserError:
    checkpoint = last_checkpoint(checkpoints_in(args.output_dir))
    there = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
    return UserError(f"{what} of step {step} is not finite, and nothing is exported ({there}): {REMEDY}")
