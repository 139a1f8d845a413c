"""What one forward pass gives, as sums: over the steps since the last log, and over the rows of an evaluation.

Axes: B rows, N labelled tokens, P pairs, H hidden size.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Terms:
    """What one forward pass gives: nll (N,), token_row (N,), predicted (P, H), target (P, H), pair_row (P,)."""

    nll: Tensor
    token_row: Tensor
    predicted: Tensor
    target: Tensor
    pair_row: Tensor


class Meter:
    """Sums since the last log, on the device: nll, tokens, distance, pairs, cosine, tokens read."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.since = torch.zeros(6, device=device), 0.0

    def start(self) -> None:
        """The clock runs from the first batch that is asked for."""
        self.since = self.since or time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation does not count as training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began if self.since else 0.0

    def add(self, terms: Terms, distance: Tensor, batch: dict[str, Tensor]) -> None:
        with torch.no_grad():
            cosine = F.cosine_similarity(terms.predicted, terms.target, dim=-1).sum()
            counts = [len(terms.nll), distance.sum(), len(distance), cosine, (batch["branch"] >= 0).sum()]
            self.sums += torch.stack([torch.as_tensor(x, device=self.sums.device) for x in (terms.nll.sum(), *counts)])

    def read(self, accelerator: Any) -> dict[str, float]:
        nll, tokens, distance, pairs, cosine, read = accelerator.reduce(self.sums, "sum").tolist()
        now = time.perf_counter()
        logs = {"tokens_per_second": read / (now - self.since)}
        if tokens:
            logs |= {"lm_loss": nll / tokens, "pairs": pairs}
        if pairs:
            logs |= {"jepa_loss": distance / pairs, "view_cosine": cosine / pairs}
        self.sums.zero_()
        self.since = now
        return logs


def row_sums(terms: Terms, distance: Tensor, rows: int, width: int) -> Tensor:
    """(B, 5 + 2H): nll, tokens, distance, pairs, cosine, and the sums of the unit predicted and unit target views."""
    sums = torch.zeros(rows, 5 + 2 * width, device=terms.nll.device)
    sums[:, :2].index_add_(0, terms.token_row, torch.stack([terms.nll, torch.ones_like(terms.nll)], 1))
    if len(distance):
        predicted, target = F.normalize(terms.predicted, dim=-1), F.normalize(terms.target, dim=-1)
        cosine = (predicted * target).sum(-1)
        pairs = torch.stack([distance, torch.ones_like(distance), cosine], 1)
        sums[:, 2:].index_add_(0, terms.pair_row, torch.cat([pairs, predicted, target], 1))
    return sums


def figures(sums: Tensor) -> dict[str, float]:
    """Means from the sums over all rows. The mean cosine over all unpaired views needs only the two sums of unit
    views: sum over i != j of p_i . t_j = (sum p) . (sum t) - sum p_i . t_i."""
    nll, tokens, distance, pairs, cosine = sums[:5].tolist()
    means = {"lm_loss": nll / max(tokens, 1)}
    if pairs:
        means |= {"jepa_loss": distance / pairs, "pairs": int(pairs), "cosine_paired": cosine / pairs}
    if pairs > 1:
        predicted, target = sums[5:].chunk(2)
        means["cosine_unpaired"] = (float(predicted @ target) - cosine) / (pairs * (pairs - 1))
    return means
