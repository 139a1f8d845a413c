"""Views: read from the states of a row, and where the target comes from.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from step_jepa.batches.collate import Batch

TargetReader = Literal["plain", "stop_gradient", "ema"]
PredictorHead = Literal["identity", "linear"]


@dataclass
class Views:
    """predicted, target: (P, H). objective, problem, step: int64 (P,)."""

    predicted: Tensor
    target: Tensor
    objective: Tensor
    problem: Tensor
    step: Tensor

    def __getitem__(self, chosen: Any) -> "Views":
        return Views(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.predicted)

    def of(self, objective: int) -> "Views":
        """Those of one objective."""
        return self[self.objective == objective]

    def cpu(self) -> "Views":
        """Detached, in float32, on the CPU."""
        floats = {"predicted": self.predicted.detach().float(), "target": self.target.detach().float()}
        moved = replace(self, **floats)
        return Views(*(getattr(moved, name).cpu() for name in self.__dataclass_fields__))

    @staticmethod
    def cat(parts: "list[Views]") -> "Views":
        return Views(*(torch.cat([getattr(part, name) for part in parts]) for name in Views.__dataclass_fields__))


def full(states: Tensor) -> Tensor:
    """At least float32."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def read(states: Tensor, batch: Batch) -> Views:
    """states (B, L, H) -> the batch's views, in at least float32."""
    view, row, column = batch["reads"].unbind(1)
    found = full(states[row, column])
    both = found.new_zeros(2 * len(batch["pairs"]), states.shape[-1])
    both = both.index_add(0, view, batch["weights"].to(found)[:, None] * found)
    _, objective, problem, step = batch["pairs"].unbind(1)
    return Views(both[0::2], both[1::2], objective, problem, step)


def random_targets(views: Views, seed: int) -> Views:
    """A fixed random direction per step, as long as the view that it stands in for; from (seed, problem, step)."""
    drawn = torch.empty_like(views.target)
    for place, (problem, step) in enumerate(zip(views.problem.tolist(), views.step.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(Random(f"{seed} {problem} {step}").getrandbits(63))
        drawn[place] = torch.randn(drawn.shape[1], generator=generator).to(drawn)
    length = torch.linalg.vector_norm(views.target.detach(), dim=-1, keepdim=True)
    return replace(views, target=torch.nn.functional.normalize(drawn, dim=-1) * length)


def gathered(parts: list[tuple[Views, Tensor]]) -> tuple[Views, Tensor]:
    """Views and distances (P,) of all ranks, by objective, problem and step."""
    parts = gather_object(parts)
    views, distance = Views.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
    # The loader fills its last batch up over ranks with rows that were there: keep the first of each.
    keys = torch.stack([views.objective, views.problem, views.step], 1).tolist()
    first = {tuple(key): place for place, key in reversed(list(enumerate(keys)))}
    order = torch.tensor([first[key] for key in sorted(first)], dtype=torch.long)
    return views[order], distance[order]


def trajectories(pairs: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Consecutive states of the trunk (S, H), the problem (S,) and the place (S,) of each on its problem's way. A pair
    holds two of them; pairs are in order."""
    begins = torch.ones(len(pairs), dtype=torch.bool)
    begins[1:] = pairs.problem[1:] != pairs.problem[:-1]
    first = begins.nonzero()[:, 0]
    place = torch.arange(len(pairs)) - first[begins.long().cumsum(0) - 1] + 1
    states = torch.cat([pairs.predicted[begins], pairs.target])
    return states, torch.cat([pairs.problem[begins], pairs.problem]), torch.cat([torch.zeros_like(first), place])


class TargetEncoder(nn.Module):
    """A slow copy of the trained parameters, which reads the targets: an exponential moving average of them, moved once
    per optimisation step (BYOL, arXiv 2006.07733), in float32 at least, as bfloat16 would round the moves away. With
    decay 1 it stays what it was: the base model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.decay, self.names = decay, list(trained)
        for name, value in trained.items():
            self.register_buffer(_key(name), full(value.detach()).clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        trained = dict(model.named_parameters())
        for name in self.names:
            slow = self.get_buffer(_key(name))
            slow.lerp_(trained[name].detach().to(slow), 1 - self.decay)

    @torch.no_grad()
    def forward(self, model: nn.Module, **inputs: Any) -> Any:
        """What the model gives with these parameters, without dropout."""
        with evaluating(model), self._standing_in(model):
            return model(**inputs)

    @contextmanager
    def _standing_in(self, model: nn.Module) -> Iterator[None]:
        """Its parameters in place of the model's. (functional_call loses PEFT's token rows on tied models.)"""
        trained = dict(model.named_parameters())
        own = {name: trained[name].data for name in self.names}
        try:
            for name in self.names:
                trained[name].data = self.get_buffer(_key(name)).to(own[name])
            yield
        finally:
            for name, data in own.items():
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
