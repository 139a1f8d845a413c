"""Checkpoints: which are complete, and what a run shares with the one that it goes on from."""

import json
import logging
import math
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import (
    FSDP_MODEL_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)
from transformers.trainer_pt_utils import safe_globals

from step_jepa.errors import UserError
from step_jepa.options import facts, option_fields
from step_jepa.run_files.names import OPTIONS_FILE, PREDICTORS_FILE, RUN_FILE, STATE_FILE
from step_jepa.run_files.reading import is_whole, read_json
from step_jepa.training.run_metadata import BATCH, SETTINGS_OF_THE_RUN

# Patterns of names, in the order in which they are written
PARTS = ("*model*.safetensors", OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state*.pth", TRAINER_STATE_NAME)
FULL_PARTS = (f"{FSDP_MODEL_NAME}.bin", OPTIMIZER_NAME_BIN, *PARTS[2:])  # of FSDP, in one file each
BESIDE = (PREDICTORS_FILE, STATE_FILE, OPTIONS_FILE, RUN_FILE)  # where there is anything to keep
DIGESTS = {
    "training_data": "other training examples, or the same in another order",
    "base_weights": "other weights of the model",
}
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)

logger = logging.getLogger(__name__)


def last_checkpoint(folders: Iterable[Path]) -> str | None:
    """The complete one that has most steps; those that are not are said."""
    complete = []
    for folder in folders:
        if fault := fault_of(folder):
            logger.warning("%s: no checkpoint to go on from", fault)
        else:
            complete.append(str(folder))
    return max(complete, key=lambda folder: state_of(folder).global_step, default=None)


def checkpoints_in(folder: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that a trainer writes its checkpoints into."""
    found = Path(str(folder)).glob("checkpoint-*")
    return [path for path in found if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)]


def state_of(checkpoint: str) -> TrainerState:
    """Of a complete checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    return state


def has_all_steps(checkpoint: str) -> bool:
    """Whether its run, as it was then, had nothing left to train."""
    state = state_of(checkpoint)
    return state.global_step >= state.max_steps


def fault_of(checkpoint: Path) -> str | None:
    """What is missing or cannot be read; None for a complete checkpoint. Of one whose parts are folders, as FSDP and
    DeepSpeed write them, only the trainer's state is looked at."""
    parts = FULL_PARTS if (checkpoint / FULL_PARTS[0]).exists() else PARTS
    in_folders = checkpoint.is_dir() and any(path.is_dir() for path in checkpoint.iterdir())
    for pattern in (TRAINER_STATE_NAME,) if in_folders else parts:
        if not any(checkpoint.glob(pattern)):
            return f"{checkpoint / pattern} is missing"
    for pattern in (*parts, *BESIDE):
        for part in checkpoint.glob(pattern):
            if not is_readable(part):
                return f"{part} cannot be read"
    return None


def is_readable(part: Path) -> bool:
    """Whether it is whole; tensors are not read."""
    if part.suffix in (".json", ".safetensors"):
        return is_whole(part)
    try:
        with safe_globals():  # type: ignore[no-untyped-call]
            torch.load(part, weights_only=True, mmap=True, map_location="cpu")
    except UNREADABLE:
        return False
    return True


def check_complete(checkpoint: str) -> None:
    """Raises UserError for a checkpoint that a run cannot go on from as it was."""
    if fault := fault_of(Path(checkpoint)):
        raise UserError(
            f"{fault}: resume from an earlier checkpoint, or begin a new run from its weights with "
            f"--model_name {checkpoint}"
        )


def check_resumed(config: Any, settings: Mapping[str, Any], checkpoint: str) -> None:
    """Whether a run goes on with what it was begun with: options that do not say that they are free on resume, and
    what run.json tells of the trajectory.

    Args:
        config: of the run as it is now.
        settings: of the run as it is now, see `run_metadata`.
        checkpoint: that it goes on from.

    Raises:
        UserError: for the first difference.
    """
    fixed = [each.name for each in option_fields(config) if not facts(each).free_on_resume]
    _compare(checkpoint, OPTIONS_FILE, fixed, vars(config))
    _compare(checkpoint, RUN_FILE, SETTINGS_OF_THE_RUN, settings)
    _compare_batches(config, checkpoint, settings)


def _compare_batches(config: Any, checkpoint: str, settings: Mapping[str, Any]) -> None:
    """Other ranks may share the rows of a step in another way, as long as they are the same."""
    path = Path(checkpoint, RUN_FILE)
    before = read_json(path) if path.exists() else {}
    if not all(name in before for name in BATCH) or all(before[name] == settings[name] for name in BATCH):
        return
    if math.prod(before[name] for name in BATCH) != math.prod(settings[name] for name in BATCH):
        _compare(checkpoint, RUN_FILE, BATCH, settings)
    if config.should_log:
        logger.warning(
            "%s is of %d rows x %d micro-batches x %d ranks a step, and goes on with %d x %d x %d: the rows of a step "
            "stay the same; dropout draws other numbers, and what looks at all pairs of a micro-batch (infonce, "
            "regularisers) looks at %d rows, not %d",
            *(checkpoint, *(before[name] for name in BATCH), *(settings[name] for name in BATCH)),
            *(_seen_at_once(settings), _seen_at_once(before)),
        )


def _seen_at_once(settings: Mapping[str, Any]) -> int:
    return int(settings["per_device_train_batch_size"] * settings["world_size"])


def say_other_schedule(config: Any, checkpoint: str) -> None:
    """Say that a learning rate which follows the number of steps does not go on as it was, where that is another."""
    before, now = state_of(checkpoint).max_steps, config.max_steps
    if now > 0 and now != before and not config.lr_scheduler_type.startswith("constant") and config.should_log:
        logger.warning(
            "%s is of a run of %d steps: the %s schedule is made anew over %d steps, from the second step on; the "
            "first still has the learning rate that the checkpoint ended with",
            *(checkpoint, before, str(config.lr_scheduler_type.value), now),
        )


def without_known_keys(model: Any, loaded: Any) -> Any:
    """What `Trainer` says of a checkpoint that was loaded, without missing keys of parameters that are stored
    elsewhere: our own, beside the model's files, and those that are tied to another.

    Args:
        model: that it was loaded into.
        loaded: a named tuple of missing_keys and unexpected_keys.
    """
    elsewhere = {*(model._keys_to_ignore_on_save or ()), *getattr(model, "all_tied_weights_keys", ())}
    return loaded._replace(missing_keys=[key for key in loaded.missing_keys if key not in elsewhere])


def _compare(checkpoint: str, file: str, names: Iterable[str], values: Mapping[str, Any]) -> None:
    path = Path(checkpoint, file)
    before = read_json(path) if path.exists() else {}
    now = json.loads(json.dumps({name: values[name] for name in names}, default=str))
    for name in now:
        if name in before and before[name] != now[name]:
            difference = DIGESTS.get(name, f"{name} = {before[name]!s:.60}, not {now[name]!s:.60}")
            raise UserError(
                f"{checkpoint} was begun with {difference}: give the same, or begin a new run from its weights with "
                f"--model_name {checkpoint}"
            )
