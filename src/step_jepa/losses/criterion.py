"""The loss of a pair of views: a distance, and perhaps a regulariser beside it."""

from dataclasses import dataclass

from torch import Tensor

from step_jepa.losses.distances import Negatives
from step_jepa.losses.registry import LOSSES, LossSpec
from step_jepa.losses.regularisers import Regulariser, regularise


@dataclass(frozen=True)
class Criterion:
    """The loss of a pair: a distance of its views, and a regulariser of all views of the micro-batch over all ranks.

    loss                 a name in LOSSES; of a centred one the caller subtracts the running means
    temperature          of infonce
    negatives            of infonce
    regulariser          of the predicted and of the target views, averaged; on unit views times sqrt(H)
    regulariser_weight   of the regulariser beside the distance
    seed                 with the step it fixes the directions of sigreg
    """

    loss: str = "cosine"
    temperature: float = 0.07
    negatives: Negatives = "both"
    regulariser: Regulariser = "none"
    regulariser_weight: float = 1.0
    seed: int = 42

    @property
    def spec(self) -> LossSpec:
        """What is known of the loss."""
        return LOSSES[self.loss]

    def __call__(self, predicted: Tensor, target: Tensor, problem: Tensor, global_step: int = 0) -> Tensor:
        """(P, H), (P, H) and the (P,) int64 problems of the pairs -> (P,) losses; sigreg's directions follow from the
        optimisation step `global_step`."""
        distance = self._distance(predicted, target, problem)
        if self.regulariser == "none":
            return distance
        # Added to every pair, so that the sum over pairs / pairs of the step weighs it by pairs, and the gradients,
        # which the gather sums over ranks, come out as those of one process.
        regularised = (self._regularise(predicted, global_step) + self._regularise(target, global_step)) / 2
        return distance + self.regulariser_weight * regularised

    def _distance(self, predicted: Tensor, target: Tensor, problem: Tensor) -> Tensor:
        if self.spec.contrastive:
            return self.spec.distance(predicted, target, problem, self.temperature, self.negatives)
        return self.spec.distance(predicted, target)

    def _regularise(self, views: Tensor, global_step: int) -> Tensor:
        return regularise(views, self.regulariser, seed=self.seed, global_step=global_step)
