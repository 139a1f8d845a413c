"""When two models or two data sets are the same."""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from step_jepa.run_files.names import NOT_OF_THE_MODEL


def last_modified(folder: str | os.PathLike[str]) -> float | None:
    """When the newest file of a model's folder was written, in seconds since the epoch, its card and results beside it
    left out; None for one on the hub."""
    home = Path(folder)
    files = [path for path in home.iterdir() if path.is_file()] if home.is_dir() else []
    return max((path.stat().st_mtime for path in files if path.name not in NOT_OF_THE_MODEL), default=None)


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


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """The names of the settings that are not there as they are wanted; what is missing there is None."""
    return ", ".join(name for name in wanted if there.get(name) != wanted[name])
