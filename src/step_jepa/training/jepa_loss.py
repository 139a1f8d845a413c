"""The JEPA term of the loss: of every objective its distance, weighted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step_jepa.batches.views import Views
from step_jepa.losses.criterion import Criterion
from step_jepa.losses.distances import negative_count
from step_jepa.training.jepa_state import JepaState


@dataclass
class WeightedObjective:
    """An objective's place in the loss: its name, its weight, and the criterion of its pairs."""

    name: str
    weight: float
    criterion: Criterion


@dataclass
class JepaLoss:
    """The sum over objectives of weight * mean distance, with the state that it keeps from step to step."""

    terms: Sequence[WeightedObjective]
    state: JepaState

    @property
    def names(self) -> list[str]:
        """Of the objectives, in the order of `Views.objective`."""
        return [term.name for term in self.terms]

    @property
    def weights(self) -> list[float]:
        """Of the objectives."""
        return [term.weight for term in self.terms]

    @property
    def centred(self) -> bool:
        """Whether any loss subtracts running means."""
        return any(term.criterion.spec.centred for term in self.terms)

    @property
    def contrastive(self) -> bool:
        """Whether any loss contrasts a pair with others."""
        return any(term.criterion.spec.contrastive for term in self.terms)

    def distances(self, views: Views, global_step: int) -> Tensor:
        """(P,): each pair's loss by its objective's criterion, in optimisation step `global_step`."""
        distances = views.predicted.new_zeros(len(views))
        for number, term in enumerate(self.terms):
            chosen = views.of(number)
            predicted, target = self.state.centred(term.name, chosen)
            of_term = term.criterion(predicted, target, chosen.problem, global_step=global_step)
            distances = distances.masked_scatter(views.objective == number, of_term.to(distances))
        return distances

    def total(self, views: Views, distances: Tensor, pairs: Tensor) -> Tensor:
        """Sum over objectives of weight * sum of distances / pairs, the pairs (objectives,) that it is a mean over."""
        per_pair = torch.tensor(self.weights, device=distances.device) / pairs.clamp(min=1)
        return (distances * per_pair[views.objective].to(distances)).sum()

    def count(self, views: Views) -> Tensor:
        """(objectives,): how many pairs each has here."""
        return torch.bincount(views.objective, minlength=len(self.terms))

    def negatives(self, views: Views) -> Tensor:
        """How many negatives each pair of a contrastive objective has."""
        counts = [
            negative_count(views.of(number).problem, term.criterion.negatives)
            for number, term in enumerate(self.terms)
            if term.criterion.spec.contrastive
        ]
        return torch.cat(counts) if counts else views.objective.new_empty(0)

    def accumulate(self, views: Views) -> None:
        """Add a micro-batch's part to the running means."""
        for number, term in enumerate(self.terms):
            self.state.accumulate(term.name, views.of(number))
