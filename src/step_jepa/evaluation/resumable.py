"""Resumable output: what was answered so far, under a line that says to what, and how one goes on."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Generation
from step_jepa.run_files import (
    PARTIAL_FILE,
    PREDICTIONS_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
    json_lines,
    unfinished_files,
    write_whole,
)

REMEDY = "give another --output_dir, or --overwrite"

Answers = dict[tuple[int, int], Generation]  # by record and sample


def resume(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> Answers:
    """The answers that an interrupted call left in the folder. Changes nothing there. Raises UserError rather than mix
    or replace results."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: give another --output_dir")
    if overwrite or not folder.is_dir() or set(folder.iterdir()) <= set(unfinished_files(folder / PARTIAL_FILE)):
        return {}
    if (folder / SUMMARY_FILE).exists() or not (folder / PARTIAL_FILE).exists():
        state = "holds finished results" if (folder / SUMMARY_FILE).exists() else "is not empty"
        raise UserError(f"{folder} {state}: {REMEDY}")
    # What follows the last line break was being written when the process died.
    header, *rows = map(json.loads, (folder / PARTIAL_FILE).read_text(encoding="utf-8").split("\n")[:-1])
    if differing := [name for name in identity if header.get(name) != identity[name]]:
        raise UserError(f"{folder} holds answers begun with another {', '.join(differing)}: {REMEDY}")
    return {(row["index"], row["sample"]): Generation(**row) for row in rows}


def start(folder: Path, identity: dict[str, Any], answers: Answers) -> None:
    """Make the folder hold the answers so far, under what they are answers to, and no results that are replaced."""
    write_whole(folder / PARTIAL_FILE, json_lines([identity, *map(asdict, answers.values())]))
    for name in (SUMMARY_FILE, PREDICTIONS_FILE, VIEWS_FILE):
        (folder / name).unlink(missing_ok=True)


def append(folder: Path, generations: Iterable[Generation], answers: Answers) -> None:
    """Put each answer, as it comes, into the folder and among the answers."""
    with (folder / PARTIAL_FILE).open("a", encoding="utf-8") as partial:
        for generation in generations:
            answers[generation.index, generation.sample] = generation
            print(json_lines([asdict(generation)]), end="", file=partial, flush=True)
