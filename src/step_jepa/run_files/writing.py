"""Writing files whole or not at all, whoever else writes."""

import glob
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

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


def json_lines(rows: Iterable[Any]) -> str:
    """One line of JSON for each row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
