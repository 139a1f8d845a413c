"""Pairs of views -> one loss per pair. P pairs, H hidden size; float32 in, (P,) out, gradients to both."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["cosine", "l2", "mse", "infonce"]
Distance = Callable[[Tensor, Tensor], Tensor]


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(predicted, target), in [0, 2]."""
    return 1 - F.cosine_similarity(predicted, target, dim=-1)


def l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean norm of the difference."""
    return torch.linalg.vector_norm(predicted - target, dim=-1)


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over H of the squared difference."""
    return (predicted - target).square().mean(-1)


def infonce(predicted: Tensor, target: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross entropy of finding one's own target among the targets of all pairs of the micro-batch, over all ranks
    (van den Oord et al., arXiv 1807.03748, eq. 4). Not a sum over independent pairs: it changes with the batching."""
    candidates, first = _gather(F.normalize(target, dim=-1))
    logits = F.normalize(predicted, dim=-1) @ candidates.T / temperature
    own = torch.arange(len(predicted), device=predicted.device) + first
    return F.cross_entropy(logits, own, reduction="none")


def _gather(views: Tensor) -> tuple[Tensor, int]:
    """(P_all, H): the views of all ranks in rank order, with gradients; and the index of this rank's first."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return views, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=views.device)
    counts[dist.get_rank()] = len(views)
    dist.all_reduce(counts)
    padded = F.pad(views, (0, 0, 0, int(counts.max()) - len(views)))
    ranks = dist_functional.all_gather(padded)
    parts = [part[:count] for part, count in zip(ranks, counts.tolist(), strict=True)]
    return torch.cat(parts), int(counts[: dist.get_rank()].sum())


_INDEPENDENT: dict[str, Distance] = {"cosine": cosine, "l2": l2, "mse": mse}


def distance(loss: Loss, temperature: float = 0.07) -> Distance:
    """The function of that name: (P, H) twice -> (P,)."""
    return partial(infonce, temperature=temperature) if loss == "infonce" else _INDEPENDENT[loss]
