"""The JEPA term of the loss: of every objective its distance, weighted; with what it carries from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.batches.views import Views
from step_jepa.losses.distances import Criterion, negative_count
from step_jepa.training.jepa_state import JepaState


@dataclass
class JepaLoss:
    """names, weights, criteria: of each objective. Pairs of no objective, which are only looked at, weigh nothing."""

    names: Sequence[str]
    weights: Sequence[float]
    criteria: Sequence[Criterion]
    state: JepaState

    def distances(self, views: Views, step: int) -> Tensor:
        """(P,): each pair's loss by its objective's criterion; 0 for pairs of no objective."""
        found = views.predicted.new_zeros(len(views))
        for number, (name, criterion) in enumerate(zip(self.names, self.criteria, strict=True)):
            own = views.of(number)
            predicted, target = self.state.centred(name, own)
            each = criterion(predicted, target, own.problem, step=step)
            found = found.masked_scatter(views.objective == number, each.to(found))
        return found

    def total(self, views: Views, distances: Tensor, pairs: Tensor) -> Tensor:
        """Sum over objectives of weight * sum of distances / pairs, the pairs (objectives,) that it is a mean over."""
        per_pair = torch.tensor(self.weights, device=distances.device) / pairs.clamp(min=1)
        return (distances * F.pad(per_pair, (0, 1))[views.objective].to(distances)).sum()

    def count(self, views: Views) -> Tensor:
        """(objectives,): how many pairs each has here."""
        return torch.bincount(views.objective, minlength=len(self.names))[: len(self.names)]

    def negatives(self, views: Views) -> Tensor:
        """How many negatives each pair of a contrastive objective has."""
        counts = [
            negative_count(views.of(number).problem, criterion.negatives)
            for number, criterion in enumerate(self.criteria)
            if criterion.loss.endswith("infonce")
        ]
        return torch.cat(counts) if counts else views.objective.new_empty(0)

    def carry(self, views: Views) -> None:
        """A micro-batch's part of the running means."""
        for number, name in enumerate(self.names):
            self.state.add(name, views.of(number))
