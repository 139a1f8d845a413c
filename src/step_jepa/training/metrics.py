"""What is logged of training, as sums since the last log, over micro-batches and ranks.

Axes: N labelled tokens, P pairs, H hidden size.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.batches.batch import Batch, tokens_read
from step_jepa.errors import UserError
from step_jepa.models.forward import ForwardOutput


@dataclass
class Observation:
    """What a metric may look at, of one micro-batch, without gradients.

    output      of the forward pass, its views being those that the loss is taken on
    distances   (P,), the JEPA loss of each pair
    negatives   int64, how many negatives each pair of a contrastive objective has
    batch       that was read
    """

    output: ForwardOutput
    distances: Tensor
    negatives: Tensor
    batch: Batch


@dataclass(frozen=True)
class Metric:
    """A figure of the training log: the ratio of two sums over all micro-batches and ranks since the last log. It is
    left out where the second sum is 0.

    parts   of an observation, what is added to either sum: numbers or tensors ()
    """

    name: str
    parts: Callable[[Observation], tuple[Any, Any]]


METRICS: dict[str, Metric] = {}
LOGGED_BESIDE = (
    "loss",
    "jepa_loss",
    "pairs",
    "tokens_per_second",
    "flops",
    "lbd",
    "grad_norm",
    "learning_rate",
    "epoch",
)


def register_metric(metric: Metric) -> Metric:
    """Have a figure logged by every trainer with a JEPA term that is made from now on (without one, the loss is
    `transformers.Trainer`'s own, and nothing is looked at). Raises UserError for a name that is taken."""
    if metric.name in METRICS or metric.name in LOGGED_BESIDE:
        raise UserError(f"metric {metric.name} is there already: give another name")
    METRICS[metric.name] = metric
    return metric


def _lm_loss(seen: Observation) -> tuple[Any, Any]:
    return seen.output.nll.sum(), len(seen.output.nll)


def _view_cosine(seen: Observation) -> tuple[Any, Any]:
    views = seen.output.views
    return F.cosine_similarity(views.predicted, views.target, dim=-1).sum(), len(views)


def _negatives(seen: Observation) -> tuple[Any, Any]:
    return seen.negatives.sum(), len(seen.negatives)


for _metric in (Metric("lm_loss", _lm_loss), Metric("view_cosine", _view_cosine), Metric("negatives", _negatives)):
    register_metric(_metric)


class MetricSums:
    """Sums since the last log, on the device: of every metric, of every objective's pairs, and of tokens."""

    def __init__(self, objectives: Sequence[str], weights: Sequence[float], device: torch.device) -> None:
        self.objectives, self.weights, self.since = objectives, weights, 0.0
        self.metrics = list(METRICS.values())
        self.ratios = torch.zeros(len(self.metrics), 2, device=device)
        self.distances, self.pairs = (torch.zeros(len(objectives), device=device) for _ in range(2))
        self.batches = 0  # that were added
        # Tokens that the model reads, those of branches too: since the last log, and since `take_tokens`.
        self.tokens = torch.zeros((), device=device)
        self.untaken_tokens = torch.zeros((), dtype=torch.long, device=device)

    def start(self) -> None:
        """The clock runs from the first batch that is asked for."""
        self.since = self.since or time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation does not count as training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began if self.since else 0.0

    def count_tokens(self, read: Tensor) -> None:
        """Tokens of a micro-batch, without padding."""
        self.tokens += read
        self.untaken_tokens += read

    @torch.no_grad()
    def add(self, observation: Observation) -> None:
        """A micro-batch."""
        self.batches += 1
        self.count_tokens(tokens_read(observation.batch))
        for sums, metric in zip(self.ratios, self.metrics, strict=True):
            for place, part in enumerate(metric.parts(observation)):
                sums[place] += part
        objective, distances = observation.output.views.objective, observation.distances
        self.distances.index_add_(0, objective, distances.float())
        self.pairs.index_add_(0, objective, torch.ones_like(distances).float())

    def take_tokens(self, accelerator: Any) -> int:
        """Tokens read since the last call, over all ranks."""
        count = int(accelerator.reduce(self.untaken_tokens, "sum"))
        self.untaken_tokens.zero_()
        return count

    def read(self, accelerator: Any) -> dict[str, float]:
        """The figures of what was added since the last call, over all ranks."""
        tokens = accelerator.reduce(self.tokens, "sum").item()
        ratios = accelerator.reduce(self.ratios, "sum").tolist()
        distances, pairs = (accelerator.reduce(sums, "sum").tolist() for sums in (self.distances, self.pairs))
        now = time.perf_counter()
        logs = {"tokens_per_second": tokens / (now - self.since)}
        for metric, (over, under) in zip(self.metrics, ratios, strict=True):
            if under:
                logs[metric.name] = over / under
        if self.batches:
            logs["pairs"] = sum(pairs)
        if sum(pairs):
            logs |= jepa_losses(self.objectives, self.weights, distances, pairs)
        for sums in (self.tokens, self.ratios, self.distances, self.pairs):
            sums.zero_()
        self.since, self.batches = now, 0
        return logs


def jepa_losses(
    names: Sequence[str], weights: Sequence[float], distances: Sequence[float], pairs: Sequence[float]
) -> dict[str, float]:
    """jepa_loss, the weighted sum over objectives of their means over pairs; with several objectives each mean too.

    Args:
        names: of the objectives; the other three have an entry for each.
        weights: of each objective in the sum.
        distances: sum of distances of each.
        pairs: number of pairs of each.
    """
    means = [total / count if count else 0.0 for total, count in zip(distances, pairs, strict=True)]
    logs = {"jepa_loss": sum(weight * value for weight, value in zip(weights, means, strict=True))}
    if len(names) > 1:
        logs |= {f"{name}_loss": value for name, value in zip(names, means, strict=True)}
    return logs
