"""What a run computes, counted in floating-point operations, and how much shorter it must be to cost what SFT costs."""

import logging
from typing import Any

from step_jepa.batches.batch import Batch, tokens_read
from step_jepa.plurals import counted

logger = logging.getLogger(__name__)
TRAINED, READ = 6, 2  # operations per parameter and token (arXiv 2001.08361, section 2.1)


def floating_point_ops(batch: Batch, parameters: int, *, target_encoder: bool) -> int:
    """Of a step on this batch: forward and backward, and where a second model reads the targets its forward pass.
    Padding and attention are not counted; under LoRA the gradients of frozen weights are, though they are not made."""
    return (TRAINED + READ * target_encoder) * int(tokens_read(batch)) * parameters


def shorten(args: Any, plain: int, branching: int, *, target_encoder: bool) -> None:
    """As many epochs or steps as plain fine-tuning's compute pays for, given the tokens of all rows without and with
    branches."""
    cost = branching / plain * (TRAINED + READ * target_encoder) / TRAINED
    factor = 1 / (args.jepa_ratio * cost + 1 - args.jepa_ratio)
    if args.max_steps > 0:
        args.max_steps = max(1, round(args.max_steps * factor))
    args.num_train_epochs *= factor
    length = counted(args.max_steps, "step") if args.max_steps > 0 else f"{args.num_train_epochs:.3g} epochs"
    logger.info("same_flop: a step costs %.3f of a plain one, so this run has %s", 1 / factor, length)
