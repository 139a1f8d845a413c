"""Which checkpoint a run goes on from."""

import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from step_jepa.adapted import StepJEPAConfig
from step_jepa.errors import UserError
from step_jepa.models.export import is_exported
from step_jepa.training.checkpoints import check_complete, checkpoints_in, last_checkpoint

logger = logging.getLogger(__name__)


def wants_checkpoint(config: StepJEPAConfig) -> bool:
    """Whether --resume_from_checkpoint asks for one."""
    return str(config.resume_from_checkpoint or "false").lower() not in ("false", "no")


def checkpoint_to_resume(config: StepJEPAConfig) -> str | None:
    """The folder that --resume_from_checkpoint means: its own, or with True the last complete one of the output folder;
    None where there is none yet.

    Raises UserError for a folder that holds none, and where one of the run's own is damaged."""
    wanted = str(config.resume_from_checkpoint)
    if not wants_checkpoint(config):
        return None
    if wanted.lower() not in ("true", "yes"):
        if not Path(wanted).is_dir():
            raise UserError(f"{wanted} holds no complete checkpoint to resume from: leave out --resume_from_checkpoint")
        check_complete(wanted)
        return wanted
    last = last_checkpoint(checkpoints_in(config.output_dir))
    if last is None:
        _check_nothing_is_lost(Path(str(config.output_dir)))
        logger.info("%s holds no checkpoint yet: training starts from the beginning", config.output_dir)
    return last


def _check_nothing_is_lost(folder: Path) -> None:
    """Raises UserError where a run that starts anew would replace what another one finished writing."""
    damaged = [checkpoint for checkpoint in checkpoints_in(folder) if (checkpoint / TRAINER_STATE_NAME).exists()]
    exported = list(filter(is_exported, folder.iterdir())) if folder.is_dir() else []
    if damaged or exported:
        raise UserError(
            f"{folder} holds no complete checkpoint to resume from, but {(damaged or exported)[0].name}, which a run "
            "from the beginning would replace: give another --output_dir, or --overwrite in place of "
            "--resume_from_checkpoint"
        )
