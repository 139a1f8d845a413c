"""Reading what a run left; what is damaged is named."""

import json
import os
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError, safe_open

from step_jepa.errors import UserError
from step_jepa.run_files.names import OPTIONS_FILE


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


def check_fields(value: Any, path: Path, **kinds: Any) -> None:
    """Raises UserError, naming the file, for anything but an object with these fields, each of its kind (a type, or
    several as isinstance takes them)."""
    fields = value if isinstance(value, dict) else {}
    for name, kind in kinds.items():
        if name not in fields or not isinstance(fields[name], kind):
            raise UserError(f"{path} is damaged, its {name} is missing or wrong: move it away")


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


def read_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def run_options(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """All options of the run that a model comes from; nothing where no run left them. Raises UserError."""
    path = Path(folder, OPTIONS_FILE)
    return read_json(path) if path.exists() else {}


def read_summary(path: Path) -> dict[str, Any]:
    """What `evaluate` left. Raises UserError for a file that is damaged."""
    summary = read_json(path, settings=dict, n=int, accuracy=(int, float, NoneType), ci95=list)
    check_fields(summary["settings"], path, model_name=str, test_file=str)
    return summary
