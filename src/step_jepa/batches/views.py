"""Views: weighted sums of the states of a row.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from step_jepa.batches.batch import Batch, pair_count

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
        columns: dict[str, Tensor] = {}
        for name in Views.__dataclass_fields__:
            columns[name] = torch.cat([getattr(part, name) for part in parts])
        return Views(**columns)


def at_least_float32(states: Tensor) -> Tensor:
    """At least float32."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def read_views(states: Tensor, batch: Batch) -> Views:
    """states (B, L, H) -> the batch's views, in at least float32."""
    read = at_least_float32(states[batch["read_row"], batch["read_column"]])
    # Rows 2p and 2p + 1 are the predicted and the target view of pair p.
    views = read.new_zeros(2 * pair_count(batch), states.shape[-1])
    views = views.index_add(0, batch["read_view"], batch["read_weight"].to(read)[:, None] * read)
    return Views(
        predicted=views[0::2],
        target=views[1::2],
        objective=batch["pair_objective"],
        problem=batch["pair_problem"],
        step=batch["pair_step"],
    )


@dataclass
class Trajectories:
    """States of the trunk at the ends of steps. states: (S, H). problem, place (on its problem's trajectory): int64
    (S,)."""

    states: Tensor
    problem: Tensor
    place: Tensor

    def cpu(self) -> "Trajectories":
        """Detached, in float32, on the CPU."""
        return Trajectories(self.states.detach().float().cpu(), self.problem.cpu(), self.place.cpu())

    @staticmethod
    def cat(parts: "list[Trajectories]") -> "Trajectories":
        return Trajectories(
            torch.cat([part.states for part in parts]),
            torch.cat([part.problem for part in parts]),
            torch.cat([part.place for part in parts]),
        )


def read_trajectories(states: Tensor, batch: Batch) -> Trajectories:
    """states (B, L, H) -> those of the batch's trajectories."""
    read = at_least_float32(states[batch["state_row"], batch["state_column"]])
    return Trajectories(read, batch["state_problem"], batch["state_place"])


def no_views(like: Tensor) -> Views:
    """Of no pair, on the device of another tensor."""
    none = torch.zeros(0, dtype=torch.long, device=like.device)
    return Views(like.new_empty(0, 1), like.new_empty(0, 1), none, none, none)


def random_targets(views: Views, seed: int) -> Views:
    """A fixed random direction per step, as long as the view that it stands in for; from (seed, problem, step)."""
    drawn = torch.empty_like(views.target)
    for place, (problem, step) in enumerate(zip(views.problem.tolist(), views.step.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(Random(f"{seed} {problem} {step}").getrandbits(63))
        drawn[place] = torch.randn(drawn.shape[1], generator=generator).to(drawn)
    length = torch.linalg.vector_norm(views.target.detach(), dim=-1, keepdim=True)
    return replace(views, target=torch.nn.functional.normalize(drawn, dim=-1) * length)
