"""One process at a time writes into a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLock, Timeout

from step_jepa.errors import UserError
from step_jepa.run_files.names import LOCK_FILE


@contextmanager
def locked(folder: Path, lock_file: str = LOCK_FILE, remedy: str = "give another --output_dir") -> Iterator[None]:
    """One process at a time writes into the folder, which is made; a process that died holds nothing.

    Args:
        folder: where what is written goes.
        lock_file: its name there; that of all processes of the folder, or of one file.
        remedy: what the user can do.

    Raises:
        UserError: another one does, or the folder is a file.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: {remedy}")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLock(folder / lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is in use by {_holder(folder / lock_file)}: {remedy}") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # nothing was written
            for path in new:
                path.rmdir()


def _holder(lock: Path) -> str:
    """Who holds it, as filelock writes it there."""
    process, host, *_ = [*lock.read_text(encoding="utf-8").split(), "?", "?"]
    return f"process {process} on {host} (if that is gone, remove {lock})"
