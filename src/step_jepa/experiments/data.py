"""The two files that all cells read: made once, and the same as when they were asked for first."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_jepa.data import prepare
from step_jepa.data.prepare import PrepareArguments
from step_jepa.errors import UserError
from step_jepa.parsing import parse, words
from step_jepa.run_files import RESULTS_FILE, file_digest, read_lines, write_whole

FILES = {"train": "train.jsonl", "test": "test.jsonl"}
BEGUN, MADE = "begun", "made.json"
RESULTS = ("results.md", "results.csv", RESULTS_FILE)


def prepare_data(data: Mapping[str, Any], folder: Path) -> None:
    """Make train.jsonl and test.jsonl, unless they are there. Raises UserError where they were made by other options or
    from a file that has changed, where no experiment made them, and where a test problem is also trained on."""
    wanted = prepared_by(data, folder)
    identity = {part: _identity(arguments) for part, arguments in wanted.items()}
    made = folder / MADE
    if made.exists():
        found = json.loads(made.read_text(encoding="utf-8"))
        if differing := [part for part in identity if found.get(part) != identity[part]]:
            raise UserError(f"{folder} holds other data for {' and '.join(differing)}: give another --output_dir")
        return
    _claim(folder)
    for arguments in wanted.values():
        prepare.run(arguments)
    _refuse_overlap(folder)
    write_whole(made, json.dumps(identity, indent=2) + "\n")


def _claim(folder: Path) -> None:
    """Raises UserError where what an experiment writes is there already and is none of an experiment."""
    if (folder / BEGUN).exists():
        return
    for path in (*(folder / name for name in FILES.values()), *(folder.parent / name for name in RESULTS)):
        if path.exists():
            raise UserError(f"{path} is there, and no experiment made it: give another --output_dir")
    write_whole(folder / BEGUN, "")


def prepared_by(data: Mapping[str, Any], folder: Path) -> dict[str, PrepareArguments]:
    """Raises UserError for options that `prepare` refuses."""
    if set(data) != set(FILES):
        raise UserError(f"data names {', '.join(data) or 'nothing'}: give options of `prepare` for train and for test")
    return {part: _arguments(part, options, folder) for part, options in data.items()}


def _arguments(part: str, options: Any, folder: Path) -> PrepareArguments:
    if not isinstance(options, Mapping) or {"output_file", "overwrite"} & options.keys():
        raise UserError(f"data: {part} needs options of `prepare` such as input_file, without output_file")
    # A part that another shard is making at this moment is made again, and is the same.
    given = {**options, "output_file": folder / FILES[part], "overwrite": True}
    return parse("prepare", [PrepareArguments], words(given))[0]


def _identity(arguments: PrepareArguments) -> dict[str, Any]:
    source = Path(arguments.input_file)
    options = {name: value for name, value in asdict(arguments).items() if name not in ("output_file", "overwrite")}
    return {**options, "digest": file_digest(source) if source.is_file() else None}


def _refuse_overlap(folder: Path) -> None:
    trained = {_question(line) for line in read_lines(folder / FILES["train"])}
    tested = [_question(line) for line in read_lines(folder / FILES["test"])]
    both = [index for index, question in enumerate(tested) if question in trained]
    if both:
        raise UserError(
            f"{len(both)} of {len(tested)} test problems are trained on too, first example {both[0]} of the test file: "
            "leave them out"
        )


def _question(line: str) -> str:
    return str(json.loads(line)["question"])
