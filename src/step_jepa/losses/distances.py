"""Pairs of views -> one loss per pair. P pairs of this rank, N pairs of all ranks, H hidden size.

Views are (P, H) floats, of float32 or float64, which the losses keep; gradients flow to both views of a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Literal["cosine", "centred_cosine", "l2", "mse", "normalised_l2", "normalised_mse", "infonce", "centred_infonce"]
Negatives = Literal["both", "others", "same"]
Regulariser = Literal["none", "sigreg", "vicreg"]


# Distances of a pair


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(predicted, target), in [0, 2]."""
    return 1 - F.cosine_similarity(predicted, target, dim=-1)


def l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean norm of the difference."""
    return torch.linalg.vector_norm(predicted - target, dim=-1)


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over H of the squared difference."""
    return (predicted - target).square().mean(-1)


def normalised_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance of the unit views, in [0, 2]."""
    return l2(F.normalize(predicted, dim=-1), F.normalize(target, dim=-1))


def normalised_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the unit views, 2 - 2 cos, in [0, 4] (BYOL, arXiv 2006.07733, eq. 2)."""
    return 2 * cosine(predicted, target)


_INDEPENDENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "l2": l2,
    "mse": mse,
    "normalised_l2": normalised_l2,
    "normalised_mse": normalised_mse,
}


# Contrast with other pairs


def infonce(
    predicted: Tensor, target: Tensor, problem: Tensor, temperature: float = 0.07, negatives: Negatives = "both"
) -> Tensor:
    """(P,): cross entropy of finding one's own target among its negatives, cosines over the temperature being logits
    (van den Oord et al., arXiv 1807.03748, eq. 4). Candidates are the targets of the micro-batch over all ranks.

    problem     (P,) int64, the example a pair comes from, unique over ranks
    negatives   all other targets, only those of other problems, or only those of the same problem
    A pair without negatives has loss 0. Not a sum over independent pairs: it changes with the batching."""
    candidates, _ = _gather(F.normalize(target, dim=-1))
    negative, own = _negatives(problem, negatives)
    logits = F.normalize(predicted, dim=-1) @ candidates.T / temperature
    logits = logits.masked_fill(~negative.scatter(1, own[:, None], True), -torch.inf)
    return F.cross_entropy(logits, own, reduction="none")


def negative_count(problem: Tensor, negatives: Negatives) -> Tensor:
    """(P,) int64: how many negatives over all ranks infonce has for each pair; every rank has to call it."""
    return _negatives(problem, negatives)[0].sum(1)


def _negatives(problem: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor]:
    """(P, N) bool: whose target is a negative of whom; (P,) int64: the place of the own target among the N."""
    everyone, first = _gather(problem)
    own = torch.arange(len(problem), device=problem.device) + first
    same = problem[:, None] == everyone
    allowed = {"both": torch.ones_like(same), "others": ~same, "same": same}[negatives]
    return allowed.scatter(1, own[:, None], False), own


def _gather(values: Tensor) -> tuple[Tensor, int]:
    """(N, ...): the (P, ...) of all ranks in rank order, with gradients; and the index of this rank's first."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=values.device)
    counts[dist.get_rank()] = len(values)
    dist.all_reduce(counts)
    missing = int(counts.max()) - len(values)
    padded = F.pad(values, (0, 0) * (values.dim() - 1) + (0, missing))
    ranks = dist_functional.all_gather(padded)
    parts = [part[:count] for part, count in zip(ranks, counts.tolist(), strict=True)]
    return torch.cat(parts), int(counts[: dist.get_rank()].sum())


# Regularisers of a set of views


def vicreg(views: Tensor) -> Tensor:
    """(N, H) -> scalar: variance and covariance terms of VICReg (arXiv 2105.04906, eqs. 1-4) in the ratio of its
    weights, 25 to 1, the variance term having weight 1. Fewer than 2 views: 0."""
    if len(views) < 2:
        return views.sum() * 0
    covariance = torch.cov(views.T)
    hinge = F.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    off_diagonal = 2 * covariance.triu(1).square().sum()
    return hinge + off_diagonal / views.shape[1] / 25


def sigreg(views: Tensor, generator_seed: int, directions: int = 256) -> Tensor:
    """(N, H) -> scalar: how far the views are from N(0, I), as LeJEPA measures it (SIGReg, arXiv 2511.08544).

    Mean over random unit directions of the Epps-Pulley statistic of the projected views against N(0, 1),
    N * integral of |ecf(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, by the trapezoid rule on 17 points of [-5, 5].
    For views that are N(0, I) it is about sqrt(2 pi) (1 - 1 / sqrt(3)) = 1.06. Fewer than 2 views: 0."""
    if len(views) < 2:
        return views.sum() * 0
    generator = torch.Generator().manual_seed(generator_seed)  # on the CPU: the same on every rank and device
    drawn = torch.randn(views.shape[1], directions, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, 5, 9, dtype=torch.float64).to(views)  # the integrand is even: twice the half
    gaussian = (-t.square() / 2).exp()
    angles = (views @ F.normalize(drawn, dim=0).to(views))[..., None] * t  # (N, directions, 9)
    error = (angles.cos().mean(0) - gaussian).square() + angles.sin().mean(0).square()
    return len(views) * 2 * torch.trapezoid(error * gaussian, t).mean()


def _spread(views: Tensor) -> Tensor:
    """(N, H): the views of all ranks at length sqrt(H), so that the coordinates of an isotropic set have variance 1."""
    everyone, _ = _gather(views)
    return F.normalize(everyone, dim=-1) * views.shape[-1] ** 0.5


# The JEPA loss


@dataclass(frozen=True)
class Criterion:
    """The loss of a pair: a distance of its views, and a regulariser of all views of the micro-batch over all ranks.

    loss                 one of Loss; for centred_X the caller subtracts running means, the rest is as for X
    temperature          of infonce
    negatives            of infonce
    regulariser          of the predicted and of the target views, averaged; on unit views times sqrt(H)
    regulariser_weight   of the regulariser beside the distance
    seed                 with the step it fixes the directions of sigreg
    """

    loss: Loss = "cosine"
    temperature: float = 0.07
    negatives: Negatives = "both"
    regulariser: Regulariser = "none"
    regulariser_weight: float = 1.0
    seed: int = 42

    @property
    def centred(self) -> bool:
        """Whether the caller has to subtract the running means of the views."""
        return self.loss.startswith("centred_")

    @property
    def needs_batch(self) -> bool:
        """Whether the loss of a pair depends on other pairs; then every rank has to call, even without pairs."""
        return self.loss.endswith("infonce") or self.regulariser != "none"

    def __call__(self, predicted: Tensor, target: Tensor, problem: Tensor, step: int = 0) -> Tensor:
        """(P, H), (P, H) and the (P,) int64 problems of the pairs -> (P,) losses. `step` is the optimisation step."""
        distance = self._distance(predicted, target, problem)
        if self.regulariser == "none":
            return distance
        # Added to every pair, so that the sum over pairs / pairs of the step weighs it by pairs, and the gradients,
        # which the gather sums over ranks, come out as those of one process.
        regularised = (self._regularise(predicted, step) + self._regularise(target, step)) / 2
        return distance + self.regulariser_weight * regularised

    def _distance(self, predicted: Tensor, target: Tensor, problem: Tensor) -> Tensor:
        name = self.loss.removeprefix("centred_")
        if name == "infonce":
            return infonce(predicted, target, problem, self.temperature, self.negatives)
        return _INDEPENDENT[name](predicted, target)

    def _regularise(self, views: Tensor, step: int) -> Tensor:
        views = _spread(views)
        if self.regulariser == "vicreg":
            return vicreg(views)
        return sigreg(views, Random(f"{self.seed} sigreg {step}").getrandbits(63))


class RunningMean(nn.Module):
    """Running mean of a view over optimisation steps, equal on all ranks, without gradients.

    average   (H,) float32, exponential average of the means of the steps, from zero
    weight    () float32, the sum of its weights; average / weight is the mean (bias correction of Adam,
              arXiv 1412.6980, sec. 3), zero before the first update
    Keep it out of a module that DDP wraps: DDP would copy rank 0's pending sums to all ranks."""

    average: Tensor
    weight: Tensor
    _sum: Tensor
    _count: Tensor

    def __init__(self, width: int, momentum: float = 0.9) -> None:
        super().__init__()
        assert 0 <= momentum < 1
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("_sum", torch.zeros(width), persistent=False)
        self.register_buffer("_count", torch.zeros(1), persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """(P, H) -> (P, H): the views minus the mean, in their dtype."""
        mean = self.average / self.weight.clamp(min=torch.finfo(torch.float32).tiny)
        return views - mean.to(views.dtype)

    @torch.no_grad()
    def add(self, views: Tensor) -> None:
        """Remembers the (P, H) views of a micro-batch for the next update; P may be 0."""
        self._sum += views.sum(0, dtype=torch.float32)
        self._count += len(views)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean by the views added on all ranks since the last update, if any; every rank has to call it."""
        pending = torch.cat([self._sum, self._count])
        if dist.is_initialized():
            dist.all_reduce(pending)
        total, count = pending[:-1], pending[-1]
        if count > 0:
            self.average.lerp_(total / count, 1 - self.momentum)
            self.weight.lerp_(torch.ones_like(self.weight), 1 - self.momentum)
        self._sum.zero_()
        self._count.zero_()
