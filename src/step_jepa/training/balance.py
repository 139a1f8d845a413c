"""How strongly the JEPA term pulls: its gradient against the language model's, and a weight that keeps their ratio."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

EVERY = 20  # optimisation steps between two measurements
SMOOTHING = 0.5  # of the logarithm of the weight


def gradient_norms(model: nn.Module, losses: Iterable[Tensor]) -> list[float]:
    """Norm of the gradient of each loss over all trained parameters; no .grad is touched, the graph is kept.

    Over ranks it is the mean of their norms, not the norm of their mean, which noise makes smaller."""
    trained = [value for value in model.parameters() if value.requires_grad]
    squares = []
    for loss in losses:
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True) if loss.requires_grad else []
        squares.append(sum((g.detach().float().square().sum() for g in found if g is not None), torch.zeros(())))
    norms = torch.stack([torch.as_tensor(square, device=trained[0].device) for square in squares]).sqrt()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(norms)
        norms /= dist.get_world_size()
    return norms.tolist()


def balanced(weight: float, lm_norm: float, jepa_norm: float, ratio: float) -> float:
    """The weight of the JEPA loss that brings weight * jepa_norm towards ratio * lm_norm; the first time at once."""
    if not (lm_norm > 0 and jepa_norm > 0):
        return weight
    wanted = ratio * lm_norm / jepa_norm
    return wanted if not weight else weight ** (1 - SMOOTHING) * wanted**SMOOTHING
