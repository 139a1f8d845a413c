"""Held-out figures: language-model and JEPA loss, and what the views show, on rows that were not trained on.

Axes: B rows, P pairs, H hidden size.
"""

import math
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from step_jepa import terminal
from step_jepa.batches.batch import row_count, to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.batches.views import Trajectories, Views
from step_jepa.errors import UserError
from step_jepa.models.forward import ForwardOutput
from step_jepa.training import diagnostics
from step_jepa.training.jepa_loss import JepaLoss
from step_jepa.training.metrics import jepa_losses
from step_jepa.training.representation import Representation


@dataclass
class HeldOutPart:
    """What a part of the held-out rows showed, on the CPU: views, distances (P,), and trajectories."""

    views: Views
    distances: Tensor
    trajectories: Trajectories


@dataclass
class HeldOut:
    """Of all held-out rows: lm_loss, in nats per token; the other figures by name; the views that they are of."""

    lm_loss: float
    figures: dict[str, float]
    views: Views


def held_out_part(output: ForwardOutput, jepa: JepaLoss, global_step: int) -> HeldOutPart:
    """What one forward pass shows."""
    distances = jepa.distances(output.views, global_step)
    assert output.trajectories is not None
    return HeldOutPart(output.views.cpu(), distances.cpu(), output.trajectories.cpu())


def gathered(parts: list[HeldOutPart]) -> HeldOutPart:
    """Those of all ranks, in order of objective, problem and step."""
    parts = gather_object(parts)
    views = Views.cat([part.views for part in parts])
    distances = torch.cat([part.distances for part in parts])
    trajectories = Trajectories.cat([part.trajectories for part in parts])
    pairs = _first_of_each(views.objective, views.problem, views.step)
    states = _first_of_each(trajectories.problem, trajectories.place)
    in_order = Trajectories(trajectories.states[states], trajectories.problem[states], trajectories.place[states])
    return HeldOutPart(views[pairs], distances[pairs], in_order)


def _first_of_each(*keys: Tensor) -> Tensor:
    """Indices that sort by the keys. The loader fills its last batch up over ranks with rows that were there: of equal
    keys the first stays."""
    places: dict[tuple[int, ...], int] = {}
    for place, key in enumerate(torch.stack(keys, 1).tolist()):
        places.setdefault(tuple(key), place)
    return torch.tensor([places[key] for key in sorted(places)], dtype=torch.long)


def figures_of(pairs: HeldOutPart, jepa: JepaLoss) -> dict[str, float]:
    """jepa_loss, pairs, and the diagnostics of every objective's views, whose names begin with the objective's; those
    of the first objective stand alone."""
    counts = jepa.count(pairs.views).tolist()
    if not sum(counts):
        return {}
    if not (pairs.views.predicted.isfinite().all() and pairs.views.target.isfinite().all()):
        raise UserError("the held-out views are not finite: the model has diverged; lower --learning_rate")
    sums = [float(pairs.distances[pairs.views.objective == number].double().sum()) for number in range(len(counts))]
    figures: dict[str, float] = {"pairs": sum(counts)}
    figures |= jepa_losses(jepa.names, jepa.weights, sums, counts)
    for number, name in enumerate(jepa.names):
        views = pairs.views.of(number)
        prefix = f"{name}_" if number else ""
        for figure, value in diagnostics.summary(views.predicted, views.target, views.problem).items():
            figures[prefix + figure] = value
    trajectories = pairs.trajectories
    errors = diagnostics.latent_error(trajectories.states, trajectories.problem, trajectories.place)
    return figures | {name: value for name, value in errors.items() if not math.isnan(value)}


@torch.no_grad()
def held_out(representation: Representation, rows: PlannedRows, *, batch_size: int) -> HeldOut:
    """The figures of a model that is not in training, without a Trainer; the model is moved to the process's device.

    Sums are taken per row, so that figures do not depend on the batching."""
    device = PartialState().device
    representation.model.to(device).eval()
    representation.jepa.state.to(device)
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=representation.collator)
    sums: list[Tensor] = []
    parts: list[HeldOutPart] = []
    negatives = 0
    for batch in terminal.bar(loader, label="held-out losses", unit="batch"):
        moved = to_device(batch, device)
        output = representation.forward(moved)
        sums.append(row_sums(output, row_count(moved)).cpu())
        if representation.branching:
            parts.append(held_out_part(output, representation.jepa, global_step=0))
            negatives += int(representation.jepa.negatives(output.views).sum())
    nll, tokens = torch.cat(sums).double().sum(0).tolist()
    if not parts:
        return HeldOut(nll / max(tokens, 1), {}, output.views.cpu())
    pairs = gathered(parts)
    figures = figures_of(pairs, representation.jepa)
    if representation.jepa.contrastive and not negatives:
        figures.pop("jepa_loss", None)  # 0 by definition: nothing was contrasted
    return HeldOut(nll / max(tokens, 1), figures, pairs.views)


def row_sums(output: ForwardOutput, rows: int) -> Tensor:
    """(B, 2): nll and tokens of each row."""
    sums = torch.zeros(rows, 2, device=output.nll.device)
    per_token = torch.stack([output.nll, torch.ones_like(output.nll)], 1).float()
    return sums.index_add_(0, output.token_row, per_token)
