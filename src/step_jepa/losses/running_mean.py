"""Running mean of a view, which a centred loss subtracts."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
