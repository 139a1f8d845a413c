"""The target encoder: a slow copy of the trained parameters, which reads the targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import fsdp2_canonicalize_names
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from step_jepa.batches.views import at_least_float32
from step_jepa.models.sharding import reshard


class TargetEncoder(nn.Module):
    """An exponential moving average of the trained parameters, moved once per optimisation step (BYOL, arXiv
    2006.07733), in float32 at least, as bfloat16 would round the moves away. With decay 1 it stays what it was: the
    base model. That of a sharded model is sharded likewise."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.names: list[str] = []

    def begin(self, model: nn.Module) -> None:
        """From the model's parameters as they are now; one that has begun stays as it is."""
        if self.names:
            return
        trained = {name: value for name, value in _parameters(model).items() if value.requires_grad}
        self.names = list(trained)
        for name, value in trained.items():
            self.register_buffer(_key(name), at_least_float32(value.detach()).clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's parameters."""
        trained = _parameters(model)
        for name in self.names:
            average = self.get_buffer(_key(name))
            average.lerp_(trained[name].detach().to(average.dtype), 1 - self.decay)

    @torch.no_grad()
    def forward(self, model: nn.Module, **inputs: Any) -> Any:
        """What the model gives with these parameters, without dropout. Not to be called between a forward pass of a
        sharded model and its backward pass, which needs what was gathered."""
        with evaluating(model), self._in_place_of_trained(model):
            return model(**inputs)

    @contextmanager
    def _in_place_of_trained(self, model: nn.Module) -> Iterator[None]:
        """Its parameters in the model."""
        trained = _parameters(model)
        originals = {name: _content(trained[name]) for name in self.names}
        try:
            for name in self.names:
                _put(trained[name], self.get_buffer(_key(name)).to(originals[name].dtype))
            yield
        finally:
            reshard(model)
            for name, data in originals.items():
                _put(trained[name], data)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """By the names that they have without a launcher's wrappers."""
    reshard(model)
    named: dict[str, Tensor] = fsdp2_canonicalize_names(dict(model.named_parameters()))
    return named


def _content(parameter: Tensor) -> Tensor:
    """What `_put` puts back."""
    return parameter.detach().clone() if isinstance(parameter, DTensor) else parameter.data


def _put(parameter: Tensor, data: Tensor) -> None:
    """A shard's memory is what whole parameters are gathered from: it is written into."""
    if isinstance(parameter, DTensor):
        parameter.detach().copy_(data)
    else:
        parameter.data = data


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
