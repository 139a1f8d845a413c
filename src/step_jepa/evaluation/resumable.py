"""Resumable output: what was answered so far, under a line that says to what, and how one goes on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Generation
from step_jepa.run_files.identity import differing
from step_jepa.run_files.names import LOCK_FILE, PARTIAL_FILE, PREDICTIONS_FILE, SUMMARY_FILE, VIEWS_FILE
from step_jepa.run_files.reading import read_lines, read_summary
from step_jepa.run_files.writing import json_lines, unfinished_files, write_whole

IDENTITY = "answers_to"  # in a summary: what the answers are answers to
REMEDY = "give another --output_dir, or --overwrite"

Answers = dict[tuple[int, int], Generation]  # by record and sample


def begun(folder: Path) -> dict[str, Any]:
    """What the results in a folder are of, finished or not; nothing where there are none that can be read."""
    partial, summary = folder / PARTIAL_FILE, folder / SUMMARY_FILE
    try:
        if partial.exists():
            return read_answers(partial)[0]
        return dict(read_summary(summary)["settings"]) if summary.exists() else {}
    except UserError:  # said by whoever goes on from there
        return {}


def finished(folder: Path, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary that a finished call left in the folder; None where there is none, or its answers serve and are to be
    judged in another way. Raises UserError for one of other settings."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        return None
    summary = read_summary(path)
    others = differing(settings, summary["settings"])
    if others and differing(identity, summary.get(IDENTITY, {})):
        raise UserError(f"{folder} holds finished results of another {others}: {REMEDY}")
    return None if others else summary


def resume(folder: Path, identity: Mapping[str, Any], samples: int, *, overwrite: bool) -> Answers:
    """The answers that an interrupted call, or a finished one, left in the folder. Changes nothing there. Raises
    UserError rather than mix or replace results, or leave out some of the answers."""
    partial, summary = folder / PARTIAL_FILE, folder / SUMMARY_FILE
    if overwrite or not folder.is_dir() or set(folder.iterdir()) <= {folder / LOCK_FILE, *unfinished_files(partial)}:
        return {}
    if summary.exists():
        identity_there, answers = read_summary(summary).get(IDENTITY, {}), _judged_answers(folder / PREDICTIONS_FILE)
    elif partial.exists():
        identity_there, answers = read_answers(partial)
    else:
        raise UserError(f"{folder} is not empty: {REMEDY}")
    if others := differing(identity, identity_there):
        raise UserError(f"{folder} holds answers begun with another {others}: {REMEDY}")
    drawn = 1 + max((sample for _, sample in answers), default=0)
    if drawn > samples:
        raise UserError(f"{folder} holds {drawn} answers to a problem: give --samples {drawn}, or --overwrite")
    return answers


def read_answers(partial: Path, remedy: str = REMEDY) -> tuple[dict[str, Any], Answers]:
    """What the answers are to, and the answers. Raises UserError, which ends with the remedy."""
    try:
        # What follows the last line break was being written when the process died.
        identity, *rows = map(json.loads, partial.read_text(encoding="utf-8").split("\n")[:-1])
        return dict(identity), {(row["index"], row["sample"]): Generation(**row) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{partial} is not what an interrupted call leaves: {remedy}") from error


def _judged_answers(predictions: Path) -> Answers:
    """Those of a finished call. Raises UserError."""
    answers: Answers = {}
    try:
        for row in map(json.loads, read_lines(predictions)):
            for number, sample in enumerate(row.get("samples", [row])):
                written = (sample[name] for name in ("prediction", "truncated", "new_tokens"))
                answers[row["index"], number] = Generation(row["index"], number, *written)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{predictions} is not what a finished call leaves: {REMEDY}") from error
    return answers


def start(folder: Path, identity: Mapping[str, Any], answers: Answers) -> None:
    """Make the folder hold the answers so far, under what they are answers to, and no results that are replaced."""
    write_answers(folder / PARTIAL_FILE, identity, answers)
    for name in (SUMMARY_FILE, PREDICTIONS_FILE, VIEWS_FILE):
        (folder / name).unlink(missing_ok=True)


def write_answers(partial: Path, identity: Mapping[str, Any], answers: Answers) -> None:
    """Make the file hold the answers so far, under what they are answers to."""
    write_whole(partial, json_lines([identity, *map(asdict, answers.values())]))


def append(partial: Path, generations: Iterable[Generation], answers: Answers) -> None:
    """Put each answer, as it comes, into the file and among the answers."""
    with partial.open("a", encoding="utf-8") as file:
        for generation in generations:
            answers[generation.index, generation.sample] = generation
            print(json_lines([asdict(generation)]), end="", file=file, flush=True)
