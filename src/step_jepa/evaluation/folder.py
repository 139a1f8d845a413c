"""The output folder of an evaluation: what was answered so far, under a line that says to what, and how one goes on."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Generation
from step_jepa.files import write_whole
from step_jepa.training.config import OPTIONS_FILE
from step_jepa.training.models import resolve

PREDICTIONS, PARTIAL, SUMMARY = "predictions.jsonl", "predictions.partial.jsonl", "summary.json"
VIEWS = "views.safetensors"
REMEDY = "give another --output_dir, or --overwrite"

Answers = dict[tuple[int, int], Generation]  # by record and sample


def resume(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> Answers:
    """The answers that an interrupted call left in the folder. Changes nothing there. Raises UserError rather than mix
    or replace results."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: give another --output_dir")
    if overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return {}
    if (folder / SUMMARY).exists() or not (folder / PARTIAL).exists():
        state = "holds finished results" if (folder / SUMMARY).exists() else "is not empty"
        raise UserError(f"{folder} {state}: {REMEDY}")
    # What follows the last line break was being written when the process died.
    begun, *done = map(json.loads, (folder / PARTIAL).read_text(encoding="utf-8").split("\n")[:-1])
    if differing := [name for name in identity if begun.get(name) != identity[name]]:
        raise UserError(f"{folder} holds answers begun with another {', '.join(differing)}: {REMEDY}")
    return {(row["index"], row["sample"]): Generation(**row) for row in done}


def begin(folder: Path, identity: dict[str, Any], done: Answers) -> None:
    """The folder with the answers so far, and without results that are being replaced."""
    write_whole(folder / PARTIAL, lines([identity, *map(asdict, done.values())]))
    for name in (SUMMARY, PREDICTIONS, VIEWS):
        (folder / name).unlink(missing_ok=True)


def keep(folder: Path, generations: Iterable[Generation], done: Answers) -> None:
    """Put each answer, as it comes, into the folder and into `done`."""
    with (folder / PARTIAL).open("a", encoding="utf-8") as partial:
        for generation in generations:
            done[generation.index, generation.sample] = generation
            print(lines([asdict(generation)]), end="", file=partial, flush=True)


def written(model_name: str, *, besides: str | None = None) -> float | None:
    """When the newest file of a model's folder was written, in seconds since the epoch; None for one on the hub.

    besides   the name of a file that is not the model's, should it lie there"""
    home = Path(resolve(model_name))
    files = [path for path in home.iterdir() if path.is_file() and path.name != besides] if home.is_dir() else []
    return max((path.stat().st_mtime for path in files), default=None)


def digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal records in the same order."""
    return hashlib.sha256(_json(records).encode()).hexdigest()


def run_options(model_name: str) -> dict[str, Any]:
    """All options of the run that a model comes from; nothing where no run left them. Raises UserError."""
    path = Path(resolve(model_name), OPTIONS_FILE)
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is not the JSON that a run writes: move it away") from None


def lines(rows: Iterable[Any]) -> str:
    """JSON lines."""
    return "".join(_json(row) + "\n" for row in rows)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
