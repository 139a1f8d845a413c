"""The answers that are measured, and what is known of them: those of a data set, or those that `evaluate` wrote."""

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from step_jepa.data import chains
from step_jepa.data.first_errors import NO_ERROR, read_with_first_error
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading import place, raw_records, read_records, record_limit
from step_jepa.data.reading_options import ReadArguments, ReadingOptions, reading_values
from step_jepa.data.records import Record, with_answer
from step_jepa.data.splits import TEST
from step_jepa.data.steps import split
from step_jepa.errors import UserError
from step_jepa.run_files.identity import records_digest
from step_jepa.run_files.names import PREDICTIONS_FILE, SUMMARY_FILE
from step_jepa.run_files.reading import check_fields, read_lines, read_summary
from step_jepa.surprise.scores import Array

Row = tuple[dict[str, Any], int, int, float, float]  # record, problem, sample, wrong, first error


@dataclass
class GivenAnswers:
    """A answers to some problems.

    records      conversations with `steps`
    problem      (A,) int: several answers can be to one problem
    sample       (A,) int: which of them
    wrong        (A,) float: 1 or 0, nan where it is not known
    first_error  (A,) float: the first wrong step from 0, -1 for none, nan where it is not known
    """

    records: list[dict[str, Any]]
    problem: Array
    sample: Array
    wrong: Array
    first_error: Array

    @classmethod
    def of(cls, rows: list[Row]) -> "GivenAnswers":
        """Of a row for each."""
        records, problem, sample, wrong, first_error = zip(*rows, strict=True)
        return cls(list(records), np.array(problem), np.array(sample), np.array(wrong), np.array(first_error))


def given_answers(source: str, reading: ReadingOptions, limit: int | None) -> GivenAnswers:
    """The answers of a source.

    Args:
        source: a folder of `evaluate`, or whatever `prepare` reads, where steps may be labelled as wrong.
        reading: how records are read; those of `evaluate` as it read them.
        limit: most records.

    Raises:
        UserError: it is missing, has changed, or cannot be used.
    """
    folder = Path(source)
    written = (folder / PREDICTIONS_FILE).exists() and (folder / SUMMARY_FILE).exists()
    rows = _of_evaluation(folder, limit) if written else _of_data(source, ReadArguments.of(reading), limit)
    if not rows:
        raise UserError(f"{source} holds no answer: give records with solutions, or a folder of `evaluate`")
    return GivenAnswers.of(rows)


def _of_data(source: str, args: ReadArguments, limit: int | None) -> list[Row]:
    rows = []
    most = limit or record_limit(source, args)
    for number, (line, raw) in enumerate(islice(raw_records(source, args, TEST), most)):
        try:
            record, error = read_with_first_error(raw, args)
        except Rejected as reason:
            raise UserError(f"{place(source, line)}: {reason}") from reason
        error = chains.first_error(record["question"], record["steps"]) if error is None else error
        wrong = np.nan if error is None else float(error != NO_ERROR)
        rows.append((dict(record), number, 0, wrong, np.nan if error is None else float(error)))
    return rows


def _of_evaluation(folder: Path, limit: int | None) -> list[Row]:
    rows = []
    records, args = _evaluated_records(folder)
    for line in read_lines(folder / PREDICTIONS_FILE)[:limit]:
        row = json.loads(line)
        check_fields(row, folder / PREDICTIONS_FILE, index=int, prediction=str)
        for sample, answer in enumerate(row.get("samples", [row])):
            text, record = answer["prediction"], records[row["index"]]
            steps = split(text, args.split_by, args.min_step_tokens) if text.strip() else []
            error = chains.first_error(record["question"], steps)
            wrong = np.nan if answer["correct"] is None else float(not answer["correct"])
            given = {**with_answer(record, text), "steps": steps}
            rows.append((given, row["index"], sample, wrong, np.nan if error is None else float(error)))
    return rows


def _evaluated_records(folder: Path) -> tuple[list[Record], ReadingOptions]:
    """What was answered there, and how it was read."""
    settings = read_summary(folder / SUMMARY_FILE)["settings"]
    names = reading_values(ReadingOptions())
    args = replace(ReadingOptions(), **{name: settings[name] for name in names if name in settings})
    source, most = settings["test_file"], settings.get("limit")
    records = list(read_records(source, TEST, args, max_examples=most, for_evaluation=True))
    if settings.get("records") not in (None, records_digest(records)):
        raise UserError(f"{source} has changed since {folder} was written: evaluate again")
    return records, args
