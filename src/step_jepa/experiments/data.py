"""The two files that all runs read: made once, and the same as when they were asked for first."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_jepa import terminal
from step_jepa.data import prepare
from step_jepa.data.prepare import PrepareArguments
from step_jepa.errors import UserError
from step_jepa.experiments.arguments import arguments_of
from step_jepa.experiments.plan import DATA_FILES
from step_jepa.run_files.identity import file_digest
from step_jepa.run_files.names import RESULTS_CSV, RESULTS_FILE, RESULTS_PICTURE, RESULTS_TEXT
from step_jepa.run_files.reading import read_json, read_lines
from step_jepa.run_files.writing import write_json

STARTED_FILE = "begun"  # this folder is an experiment's, and what lies in it may be replaced
IDENTITY_FILE = "made.json"  # both files are there, made by these options
RESULT_FILES = (RESULTS_TEXT, RESULTS_CSV, RESULTS_PICTURE, RESULTS_FILE)
OUTPUT_OPTIONS = {"output_file", "overwrite"}  # of `prepare`, which follow from the experiment


def prepare_data(data: Mapping[str, Any], folder: Path, at_each: Callable[[], None] = lambda: None) -> None:
    """Make train.jsonl and test.jsonl, unless they are there.

    Args:
        data: options of `prepare` for "train" and for "test".
        folder: where they go; the experiment's results lie beside it.
        at_each: called at each record, which it may end by an exception.

    Raises:
        UserError: where they were made by other options or from a file that has changed, where no experiment made
            them, and where a test problem is also trained on.
    """
    arguments = prepare_arguments(data, folder)
    identity = {part: _identity(options) for part, options in arguments.items()}
    if (folder / IDENTITY_FILE).exists():
        _check_identity(identity, folder)
        return
    _claim(folder)
    with terminal.as_part():
        for options in arguments.values():
            prepare.run(options, at_each)
    _check_overlap(folder)
    write_json(folder / IDENTITY_FILE, identity)


def prepare_arguments(data: Mapping[str, Any], folder: Path) -> dict[str, PrepareArguments]:
    """By part. Raises UserError for options that `prepare` refuses."""
    if set(data) != set(DATA_FILES):
        raise UserError(f"data names {', '.join(data) or 'nothing'}: give options of `prepare` for train and for test")
    return {part: _prepare_arguments(part, options, folder) for part, options in data.items()}


def _prepare_arguments(part: str, options: Any, folder: Path) -> PrepareArguments:
    if not isinstance(options, Mapping) or OUTPUT_OPTIONS & options.keys():
        raise UserError(f"data: {part} needs options of `prepare` such as input_file, without output_file")
    # A part that another shard is making at this moment is made again, and is the same.
    values = {"for_evaluation": part == "test", **options}
    values |= {"output_file": folder / DATA_FILES[part], "overwrite": True}
    (arguments,) = arguments_of("prepare", values)
    return arguments


def _identity(arguments: PrepareArguments) -> dict[str, Any]:
    source = Path(arguments.input_file)
    options = {name: value for name, value in asdict(arguments).items() if name not in OUTPUT_OPTIONS}
    return {**options, "digest": file_digest(source) if source.is_file() else None}


def _check_identity(identity: Mapping[str, Any], folder: Path) -> None:
    present = read_json(folder / IDENTITY_FILE)
    if differing := [part for part in identity if present.get(part) != identity[part]]:
        raise UserError(f"{folder} holds other data for {' and '.join(differing)}: give another --output_dir")


def _claim(folder: Path) -> None:
    """Raises UserError where what an experiment writes is there already and is none of an experiment."""
    if (folder / STARTED_FILE).exists():
        return
    data_files = [folder / name for name in DATA_FILES.values()]
    result_files = [folder.parent / name for name in RESULT_FILES]
    for path in (*data_files, *result_files):
        if path.exists():
            raise UserError(f"{path} is there, and no experiment made it: give another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STARTED_FILE).touch()


def _check_overlap(folder: Path) -> None:
    trained = set(_questions(folder / DATA_FILES["train"]))
    tested = _questions(folder / DATA_FILES["test"])
    both = [index for index, question in enumerate(tested) if question in trained]
    if both:
        raise UserError(
            f"{len(both)} of {len(tested)} test problems are trained on too, first example {both[0]} of the test file: "
            "leave them out"
        )


def _questions(path: Path) -> list[str]:
    return [str(json.loads(line)["question"]) for line in read_lines(path)]
