"""The files of a run: their names, reading and writing them whole, and the identity of a model and of data."""

import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

import psutil
from filelock import SoftFileLock, Timeout
from safetensors import SafetensorError, safe_open

from step_jepa.errors import UserError

# Beside a model
OPTIONS_FILE = "step_jepa.json"  # objective, control and all options of the JEPA term
RUN_FILE = "run.json"  # the other settings, and counts of the data
ROWS_FILE = "rows.json"  # the first training rows
STATE_FILE = "jepa.safetensors"  # what the JEPA term carries from step to step
CARD_FILE = "README.md"  # what a person reads of all that
PREDICTORS_FILE = "predictors.safetensors"  # the embeddings of the predictor tokens, (K, H)
# In the folder of `evaluate`
PREDICTIONS_FILE = "predictions.jsonl"
PARTIAL_FILE = "predictions.partial.jsonl"
SUMMARY_FILE = "summary.json"
VIEWS_FILE = "views.safetensors"
# In the folder of `pairing`
PAIRING_FILE, PAIRING_TABLE = "pairing.json", "pairing.md"
SURPRISE_FILE, SURPRISE_PICTURE = "surprise.jsonl", "surprise.png"
SURPRISE_PARTIAL = "surprise.partial.json"  # what an interrupted call has measured
# In the folder of `experiment` and `ab`
RESULTS_FILE, RESULTS_TEXT, RESULTS_CSV, RESULTS_PICTURE = "results.json", "results.md", "results.csv", "results.png"
EXPERIMENT_FILE = "experiment.yaml"
CELL_FILE = "cell.json"
# In any folder that a process writes into
LOCK_FILE = ".step-jepa.lock"
# What may lie beside a model and is not of it
_OF_SURPRISE = (SURPRISE_FILE, SURPRISE_PICTURE, SURPRISE_PARTIAL)
RESULTS = (
    PREDICTIONS_FILE,
    PARTIAL_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
    PAIRING_FILE,
    PAIRING_TABLE,
    *_OF_SURPRISE,
    CARD_FILE,
    LOCK_FILE,
)

_HOST = socket.gethostname().partition(".")[0]


def write_whole(path: Path, content: bytes | str | Iterable[str]) -> None:
    """Write bytes, or text, perhaps in parts, in UTF-8; the folder is made. The file appears whole or not at all: one
    that was there is replaced at the end only. An OSError has the file's name, which that of a full disk lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in unfinished_files(path):
        abandoned.unlink(missing_ok=True)
    begun = unfinished(path)
    try:
        if isinstance(content, bytes):
            begun.write_bytes(content)
        else:
            with begun.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines([content] if isinstance(content, str) else content)
        os.replace(begun, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        begun.unlink(missing_ok=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder for files that are to appear in `folder` together, at the end. One that is there in a file's place is
    replaced, a link too; nothing is touched where writing fails."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = unfinished(folder / "export")
    try:
        stage.mkdir()
        yield stage
        for file in filter(Path.is_file, stage.rglob("*")):
            target = folder / file.relative_to(stage)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def unfinished(path: Path) -> Path:
    """What this process writes before it is called `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_HOST}.tmp")


def unfinished_files(path: Path) -> list[Path]:
    """What processes left that were killed while they wrote the file; a process that still runs may be writing it, or
    one of another machine that shares the disk."""
    files = path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    return [file for file in files if not _is_being_written(file)]


def remove_unfinished(folder: Path) -> None:
    """Take away what killed processes left in the folder."""
    for abandoned in folder.glob(".*.tmp"):
        if abandoned.is_dir() and not _is_being_written(abandoned):
            shutil.rmtree(abandoned)
        elif not _is_being_written(abandoned):
            abandoned.unlink()


def _is_being_written(file: Path) -> bool:
    process, _, host = file.name.split(".")[-2].partition("@")
    is_ours = process.isdigit() and len(process) < 10  # larger numbers are no process, and psutil does not take them
    return not is_ours or host not in ("", _HOST) or psutil.pid_exists(int(process))


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write the value whole; what JSON does not know is written as text."""
    write_whole(path, json.dumps(value, indent=indent, default=str) + "\n")


def read_json(path: Path, **kinds: Any) -> dict[str, Any]:
    """The object that a run wrote. Raises UserError for a file that holds none, and as `check_fields` does."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not the JSON that a run writes: move it away")
    check_fields(value, path, **kinds)
    return value


def is_whole(path: Path) -> bool:
    """Whether a file of JSON, or of tensors as safetensors keeps them, was written to its end; no tensor is read."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, "np"):
                pass
    except (ValueError, RecursionError, OSError, SafetensorError):
        return False
    return True


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


def check_fields(value: Any, path: Path, **kinds: Any) -> None:
    """Raises UserError, naming the file, for anything but an object with these fields, each of its kind (a type, or
    several as isinstance takes them)."""
    fields = value if isinstance(value, dict) else {}
    for name, kind in kinds.items():
        if name not in fields or not isinstance(fields[name], kind):
            raise UserError(f"{path} is damaged, its {name} is missing or wrong: move it away")


def read_summary(path: Path) -> dict[str, Any]:
    """What `evaluate` left. Raises UserError for a file that is damaged."""
    summary = read_json(path, settings=dict, n=int, accuracy=(int, float, NoneType), ci95=list)
    check_fields(summary["settings"], path, model_name=str, test_file=str)
    return summary


def json_lines(rows: Iterable[Any]) -> str:
    """One line of JSON for each row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def run_options(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """All options of the run that a model comes from; nothing where no run left them. Raises UserError."""
    path = Path(folder, OPTIONS_FILE)
    return read_json(path) if path.exists() else {}


def cache_folder() -> Path:
    """Where what can be made again is kept, of one user."""
    home = os.path.expanduser("~")
    without_home = Path(tempfile.gettempdir(), f"cache-{os.getuid()}") if home == "~" else None  # as in some containers
    return Path(os.environ.get("XDG_CACHE_HOME") or without_home or Path(home, ".cache"), "step-jepa")


# Identity


def last_modified(folder: str | os.PathLike[str]) -> float | None:
    """When the newest file of a model's folder was written, in seconds since the epoch, its card and results beside it
    left out; None for one on the hub."""
    home = Path(folder)
    files = [path for path in home.iterdir() if path.is_file() and path.name not in RESULTS] if home.is_dir() else []
    return max((path.stat().st_mtime for path in files), default=None)


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal records in the same order."""
    return hashlib.sha256(json.dumps(records, ensure_ascii=False).encode()).hexdigest()


def examples_digest(examples: Iterable[Any]) -> str:
    """Equal for the same tokens and labels in the same order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", [len(example.input_ids), *example.input_ids, *example.labels]).tobytes())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Equal for equal files."""
    about = path.stat()
    return _file_digest(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
