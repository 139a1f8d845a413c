"""What one forward pass gives, as sums: over the steps since the last log, and over the rows of an evaluation.

Axes: B rows, N labelled tokens, P pairs, H hidden size.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.batches.collate import tokens_read
from step_jepa.batches.views import Views


@dataclass
class ForwardOutput:
    """What one forward pass gives: nll (N,), token_row (N,), and the views of its pairs."""

    nll: Tensor
    token_row: Tensor
    views: Views


class MetricSums:
    """Sums since the last log, on the device: of tokens, of pairs, and of every objective's pairs."""

    def __init__(self, objectives: Sequence[str], weights: Sequence[float], device: torch.device) -> None:
        self.objectives, self.weights, self.since = objectives, weights, 0.0
        self.tokens = torch.zeros(
            (), dtype=torch.long, device=device
        )  # read since `take_tokens`, those of branches too
        self.sums = torch.zeros(6, device=device)  # nll, tokens, tokens read, cosine, negatives, pairs that have them
        self.losses = torch.zeros(len(objectives), 2, device=device)  # distance, pairs

    def start(self) -> None:
        """The clock runs from the first batch that is asked for."""
        self.since = self.since or time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation does not count as training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began if self.since else 0.0

    def count(self, read: Tensor) -> None:
        """Tokens of a micro-batch, without padding."""
        self.sums[2] += read
        self.tokens += read

    @torch.no_grad()
    def add(self, terms: ForwardOutput, distance: Tensor, negatives: Tensor, batch: dict[str, Tensor]) -> None:
        views = terms.views
        cosine = F.cosine_similarity(views.predicted, views.target, dim=-1)
        self.count(tokens_read(batch))
        sums = (terms.nll.sum(), len(terms.nll), 0, cosine.sum(), negatives.sum(), len(negatives))
        self.sums += torch.stack([torch.as_tensor(x, device=self.sums.device) for x in sums])
        self.losses.index_add_(0, views.objective, torch.stack([distance, torch.ones_like(distance)], 1).float())

    def take_tokens(self, accelerator: Any) -> int:
        """Tokens read since the last call, over all ranks."""
        count = int(accelerator.reduce(self.tokens, "sum"))
        self.tokens.zero_()
        return count

    def read(self, accelerator: Any) -> dict[str, float]:
        """What has been added since the last call, over all ranks."""
        nll, tokens, read, cosine, negatives, contrasted = accelerator.reduce(self.sums, "sum").tolist()
        losses = accelerator.reduce(self.losses, "sum").tolist()
        now = time.perf_counter()
        logs = {"tokens_per_second": read / (now - self.since)}
        pairs = sum(count for _, count in losses)
        if tokens:
            logs |= {"lm_loss": nll / tokens, "pairs": pairs}
        if pairs:
            logs |= jepa_losses(self.objectives, self.weights, losses) | {"view_cosine": cosine / pairs}
        if contrasted:
            logs["negatives"] = negatives / contrasted
        self.sums.zero_()
        self.losses.zero_()
        self.since = now
        return logs


def jepa_losses(names: Sequence[str], weights: Sequence[float], losses: Sequence[Sequence[float]]) -> dict[str, float]:
    """jepa_loss, the weighted sum over objectives of their means over pairs; with several objectives each mean too.

    losses   (sum of distances, number of pairs) of each objective"""
    means = [distance / pairs if pairs else 0.0 for distance, pairs in losses]
    logs = {"jepa_loss": sum(weight * value for weight, value in zip(weights, means, strict=True))}
    if len(names) > 1:
        logs |= {f"{name}_loss": value for name, value in zip(names, means, strict=True)}
    return logs


def row_sums(terms: ForwardOutput, rows: int) -> Tensor:
    """(B, 2): nll and tokens of each row."""
    sums = torch.zeros(rows, 2, device=terms.nll.device)
    return sums.index_add_(0, terms.token_row, torch.stack([terms.nll, torch.ones_like(terms.nll)], 1).float())
