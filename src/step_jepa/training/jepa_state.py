"""What the JEPA term keeps from step to step beside the model: saved with it, equal on all ranks."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from step_jepa.batches.views import Views
from step_jepa.errors import UserError
from step_jepa.losses.running_mean import RunningMean
from step_jepa.models.predictors import load_tensors
from step_jepa.models.sharding import spread_like, whole
from step_jepa.models.target_encoder import TargetEncoder
from step_jepa.run_files.names import STATE_FILE

SIDES = ("predicted", "target")
_OWN, _SAVED = "target_encoder.", "twin."  # files keep the first version's name of the moving average


class JepaState(nn.Module):
    """Running means of the views of every centred objective, the predictor head, the moving average of the model that
    reads targets, and the weight that `lbd auto` has found (0 before the first measurement)."""

    lbd: Tensor

    def __init__(
        self, centred: Sequence[str], width: int, head: nn.Module | None, target_encoder: TargetEncoder | None
    ) -> None:
        super().__init__()
        keys = [f"{name}_{side}" for name, side in product(centred, SIDES)]
        self.means = nn.ModuleDict({key: RunningMean(width) for key in keys})
        self.head, self.target_encoder = head, target_encoder
        self.register_buffer("lbd", torch.zeros(()))

    def centred(self, name: str, views: Views) -> tuple[Tensor, Tensor]:
        """Predicted and target views of an objective, less their running means if it is a centred one."""
        predicted, target = self._means(name)
        return predicted(views.predicted), target(views.target)

    def accumulate(self, name: str, views: Views) -> None:
        """Add a micro-batch's part to the running means of an objective, if it is a centred one."""
        for mean, of_side in zip(self._means(name), (views.predicted, views.target), strict=True):
            if isinstance(mean, RunningMean):
                mean.add(of_side)

    def _means(self, name: str) -> list[nn.Module]:
        keys = [f"{name}_{side}" for side in SIDES]
        return [self.means[key] if key in self.means else nn.Identity() for key in keys]

    def after_step(self, model: nn.Module) -> None:
        """Once per optimisation step, on all ranks."""
        for mean in self.means.values():
            assert isinstance(mean, RunningMean)
            mean.update()
        if self.target_encoder is not None:
            self.target_encoder.update(model)

    def save(self, folder: str | os.PathLike[str], *, write: bool = True) -> None:
        """Write jepa.safetensors; nothing is written where there is nothing to keep. All ranks have to call it, of
        which one is to `write`."""
        state = {}
        for name, value in self.state_dict().items():
            gathered = whole(value.detach())
            if write:
                state[_saved_as(name)] = gathered.cpu().contiguous()
        if write:
            path = Path(folder, STATE_FILE)
            path.unlink(missing_ok=True)
            if len(state) > 1 or self.lbd:
                save_file(state, path)

    def load(self, folder: str | os.PathLike[str], *, predicting: bool) -> None:
        """Where a new run or an evaluation begins: the predictor head and the running means of the model's own run.

        Raises UserError where it has a head that predicted views went through, and there is none here."""
        path = Path(folder, STATE_FILE)
        if not path.exists():
            return
        saved = load_tensors(path)
        if predicting and "head.weight" in saved and self.head is None:
            raise UserError(f"{path} holds a predictor head: use --predictor_head linear, or move it away")
        known = self.state_dict()
        kept = {name: value for name, value in saved.items() if name.startswith(("head.", "means.")) and name in known}
        self.load_state_dict(kept, strict=False)

    def resume(self, checkpoint: str | os.PathLike[str]) -> None:
        """All of it. Raises UserError where the checkpoint is of another kind of run."""
        path, known = Path(checkpoint, STATE_FILE), self.state_dict()
        saved = load_tensors(path) if path.exists() else {"lbd": torch.zeros(())}
        saved = {_own_name(name): value for name, value in saved.items()}
        if saved.keys() != known.keys():
            differing = sorted(saved.keys() ^ known.keys())[0]
            raise UserError(f"{checkpoint} was saved with other options of the JEPA term ({differing}): give the same")
        self.load_state_dict({name: spread_like(value, known[name]) for name, value in saved.items()})


def _saved_as(name: str) -> str:
    return _SAVED + name.removeprefix(_OWN) if name.startswith(_OWN) else name


def _own_name(name: str) -> str:
    return _OWN + name.removeprefix(_SAVED) if name.startswith(_SAVED) else name
