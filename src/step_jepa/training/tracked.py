"""Where trackers keep a run: what comes after training, its evaluations and the report page, is added to it there."""

import os
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

Place = dict[str, str]


class Tracked(TrainerCallback):
    """Looks where the trackers of `report_to` have begun the run.

    places  of each of them, by which `report --report_to` finds the run
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.places: dict[str, Place] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.places = {name: look(self.trainer) for name, look in LOOKS.items() if name in args.report_to}


def _in_wandb(trainer: Trainer) -> Place:
    import wandb

    return {"project": wandb.run.project, "id": wandb.run.id}


def _in_trackio(trainer: Trainer) -> Place:
    import trackio

    run = trackio.context_vars.current_run.get()
    return {"project": run.project, "name": run.name}


def _in_tensorboard(trainer: Trainer) -> Place:
    callbacks = trainer.callback_handler.callbacks
    (callback,) = [each for each in callbacks if isinstance(each, TensorBoardCallback)]
    return {"folder": os.path.relpath(str(callback.logging_dir), str(trainer.args.output_dir))}


LOOKS: dict[str, Callable[[Trainer], Place]] = {
    "tensorboard": _in_tensorboard,
    "trackio": _in_trackio,
    "wandb": _in_wandb,
}
