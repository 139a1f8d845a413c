"""Distances of pairs of views. P pairs of this rank, N pairs of all ranks, H hidden size.

Views are (P, H) floats, of float32 or float64, which the losses keep; gradients flow to both views of a pair.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["both", "others", "same"]


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(predicted, target), in [0, 2]."""
    return 1 - F.cosine_similarity(predicted, target, dim=-1)


def l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean norm of the difference."""
    norm: Tensor = torch.linalg.vector_norm(predicted - target, dim=-1)
    return norm


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over H of the squared difference."""
    return (predicted - target).square().mean(-1)


def normalised_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance of the unit views, in [0, 2]."""
    return l2(F.normalize(predicted, dim=-1), F.normalize(target, dim=-1))


def normalised_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the unit views, 2 - 2 cos, in [0, 4] (BYOL, arXiv 2006.07733, eq. 2)."""
    return 2 * cosine(predicted, target)


# Contrast with other pairs


def infonce(
    predicted: Tensor, target: Tensor, problem: Tensor, temperature: float = 0.07, negatives: Negatives = "both"
) -> Tensor:
    """(P,): cross entropy of finding one's own target among its negatives, cosines over the temperature being logits
    (van den Oord et al., arXiv 1807.03748, eq. 4). Candidates are the targets of the micro-batch over all ranks.

    problem     (P,) int64, the example a pair comes from, unique over ranks
    negatives   all other targets, only those of other problems, or only those of the same problem
    A pair without negatives has loss 0. Not a sum over independent pairs: it changes with the batching."""
    candidates, _ = gather(F.normalize(target, dim=-1))
    negative, own = _negatives(problem, negatives)
    logits = F.normalize(predicted, dim=-1) @ candidates.T / temperature
    logits = logits.masked_fill(~negative.scatter(1, own[:, None], True), -torch.inf)
    return F.cross_entropy(logits, own, reduction="none")


def negative_count(problem: Tensor, negatives: Negatives) -> Tensor:
    """(P,) int64: how many negatives over all ranks infonce has for each pair; every rank has to call it."""
    return _negatives(problem, negatives)[0].sum(1)


def _negatives(problem: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor]:
    """(P, N) bool: whose target is a negative of whom; (P,) int64: the place of the own target among the N."""
    everyone, first = gather(problem)
    own = torch.arange(len(problem), device=problem.device) + first
    same = problem[:, None] == everyone
    allowed = {"both": torch.ones_like(same), "others": ~same, "same": same}[negatives]
    return allowed.scatter(1, own[:, None], False), own


def gather(values: Tensor) -> tuple[Tensor, int]:
    """(N, ...): the (P, ...) of all ranks in rank order, with gradients; and the index of this rank's first."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=values.device)
    counts[dist.get_rank()] = len(values)
    dist.all_reduce(counts)
    missing = int(counts.max()) - len(values)
    padded = F.pad(values, (0, 0) * (values.dim() - 1) + (0, missing))
    ranks = dist_functional.all_gather(padded)  # type: ignore[no-untyped-call]
    parts = [part[:count] for part, count in zip(ranks, counts.tolist(), strict=True)]
    return torch.cat(parts), int(counts[: dist.get_rank()].sum())
