"""What either implementation gives on all rows: losses, views and gradients.

Axes: P pairs, H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from step_jepa import standalone, terminal
from step_jepa.batches.batch import Batch
from step_jepa.training.representation import Representation


@dataclass(frozen=True)
class BatchOutput:
    """Of one batch: the sum of nll over its labelled tokens, the sum of distances over its pairs, its views (P, H)."""

    nll: Tensor
    distance: Tensor
    predicted: Tensor
    target: Tensor


@dataclass(frozen=True)
class LossWeights:
    """What a token's nll and a pair's distance count for in the means over all rows; and lbd."""

    per_token: float
    per_pair: float
    lbd: float


@dataclass(frozen=True)
class Outcome:
    """What one implementation gives on all rows: mean losses, every view (2P, H), and the gradient of the mean loss
    by parameter."""

    lm_loss: float
    jepa_loss: float
    views: Tensor
    gradients: dict[str, Tensor]


def adapted_pass(representation: Representation, batch: Batch) -> BatchOutput:
    output = representation.forward(batch)
    distances = representation.jepa.distances(output.views, global_step=0)
    return BatchOutput(output.nll.sum(), distances.sum(), output.views.predicted, output.views.target)


def standalone_pass(model: Any, loss: str, batch: Batch) -> BatchOutput:
    predicted, target = standalone.views(model, batch)
    distance = standalone.distances(predicted, target, loss).sum()
    nll, _ = standalone.language_model_pass(model, batch)
    return BatchOutput(nll, distance, predicted, target)


def outcome(
    name: str, model: Any, batches: Sequence[Batch], forward: Callable[[Batch], BatchOutput], weights: LossWeights
) -> Outcome:
    lm_loss, jepa_loss, views = 0.0, 0.0, []
    model.zero_grad()
    for batch in terminal.bar(batches, label=name, unit="batch"):
        output = forward(batch)
        (output.nll * weights.per_token + weights.lbd * output.distance * weights.per_pair).backward()
        lm_loss += output.nll.item() * weights.per_token
        jepa_loss += output.distance.item() * weights.per_pair
        views.append(torch.stack([output.predicted, output.target], 1).flatten(0, 1).detach().cpu())
    gradients = {
        parameter: value.grad.cpu().clone() for parameter, value in model.named_parameters() if value.grad is not None
    }
    model.zero_grad()
    return Outcome(lm_loss, jepa_loss, torch.cat(views), gradients)
