"""The folder that a run writes into: what it may hold, what is deleted there, and whether there is room."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from step_jepa.errors import UserError
from step_jepa.models.export import is_exported, is_folder_of
from step_jepa.run_files.names import LOCK_FILE, ROWS_FILE, RUN_FILE
from step_jepa.training.checkpoints import checkpoints_in, fault_of, last_checkpoint

WRITTEN = (TRAINER_STATE_NAME, RUN_FILE, ROWS_FILE)  # into the output folder, beside the export
# How Python, safetensors and torch.save say that a disk is full
FULL = re.compile(r"No space left|Disk quota exceeded|os error 28|inline_container|iostream error")


def check_output_dir(folder: Path, model: str, *, overwrite: bool, resume: bool) -> None:
    """Raises UserError rather than mix a run with what the folder holds, or train where it cannot be saved."""
    held = [path for path in folder.iterdir() if path.name != LOCK_FILE]
    if held and not (overwrite or resume):
        raise UserError(
            f"{folder} is not empty: give another --output_dir, --overwrite, or --resume_from_checkpoint True"
        )
    if any(is_folder_of(place, model) for place in (folder, *checkpoints_in(folder))):
        raise UserError(f"{folder} holds the model that is trained, which would be replaced: give another --output_dir")
    for path in held:
        if path.is_dir() and (is_exported(path) or path.name in WRITTEN):
            raise UserError(f"{path} is a folder, in the place of a file that is written: move it away")


def remove_run(folder: Path) -> None:
    """Checkpoints and state of a run that is overwritten, which a later resume must not find."""
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    for checkpoint in checkpoints_in(folder):
        if checkpoint.is_symlink():
            checkpoint.unlink()
        else:
            shutil.rmtree(checkpoint)


@contextmanager
def enough_room(folder: Path) -> Iterator[None]:
    """Raises UserError where the disk is full, whichever way a library says so; the checkpoint that was being written
    is taken away."""
    start = time.time()
    try:
        yield
    except Exception as error:  # every library has its own
        if not FULL.search(str(error)):
            raise
        files = [path for path in folder.rglob("*") if path.is_file()]
        begun, free = _begun_checkpoint(folder, start), shutil.disk_usage(folder).free
        written = begun or max(files, key=_changed, default=folder)
        if begun is not None:
            shutil.rmtree(begun, ignore_errors=True)
        raise UserError(f"no room to write {written}, {_megabytes(free)} are left: {_way_on(folder)}") from error


def _begun_checkpoint(folder: Path, start: float) -> Path | None:
    """The last checkpoint, where it was begun since the start and is not complete."""
    last = max(checkpoints_in(folder), key=_changed, default=None)
    return last if last is not None and _changed(last) >= start and fault_of(last) else None


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _way_on(folder: Path) -> str:
    last = last_checkpoint(checkpoints_in(folder))
    if last is None:
        return "make room, or give another --output_dir; there is no complete checkpoint"
    size = _megabytes(sum(path.stat().st_size for path in Path(last).rglob("*")))
    return f"make room ({size} a checkpoint), then --resume_from_checkpoint True goes on from {last}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
