"""Regularisers of a set of views, against collapse. N views of all ranks, H hidden size."""

from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.losses.distances import gather

Regulariser = Literal["none", "sigreg", "vicreg"]


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


def regularise(views: Tensor, name: Regulariser, *, seed: int, global_step: int) -> Tensor:
    """(P, H) views of this rank -> scalar of the views of all ranks, at length sqrt(H), so that the coordinates of an
    isotropic set have variance 1. Seed and optimisation step fix the directions of sigreg."""
    everyone, _ = gather(views)
    scaled = F.normalize(everyone, dim=-1) * views.shape[-1] ** 0.5
    if name == "vicreg":
        return vicreg(scaled)
    return sigreg(scaled, Random(f"{seed} sigreg {global_step}").getrandbits(63))
