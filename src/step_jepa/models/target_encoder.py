"""The target encoder: a slow copy of the trained parameters, which reads the targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from step_jepa.batches.views import at_least_float32


class TargetEncoder(nn.Module):
    """An exponential moving average of the trained parameters, moved once per optimisation step (BYOL, arXiv
    2006.07733), in float32 at least, as bfloat16 would round the moves away. With decay 1 it stays what it was: the
    base model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.decay, self.names = decay, list(trained)
        for name, value in trained.items():
            self.register_buffer(_key(name), at_least_float32(value.detach()).clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's parameters."""
        trained = dict(model.named_parameters())
        for name in self.names:
            average = self.get_buffer(_key(name))
            average.lerp_(trained[name].detach().to(average), 1 - self.decay)

    @torch.no_grad()
    def forward(self, model: nn.Module, **inputs: Any) -> Any:
        """What the model gives with these parameters, without dropout."""
        with evaluating(model), self._in_place_of_trained(model):
            return model(**inputs)

    @contextmanager
    def _in_place_of_trained(self, model: nn.Module) -> Iterator[None]:
        """Its parameters in the model."""
        trained = dict(model.named_parameters())
        originals = {name: trained[name].data for name in self.names}
        try:
            for name in self.names:
                trained[name].data = self.get_buffer(_key(name)).to(originals[name])
            yield
        finally:
            for name, data in originals.items():
                trained[name].data = data


def _key(name: str) -> str:
    """A parameter's name as that of a buffer, which has no dots."""
    return name.replace(".", "/")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout, and then as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
