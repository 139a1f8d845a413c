"""`step-jepa prepare`: raw records to conversations with steps, as JSON lines. No model is known here."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from step_jepa import terminal
from step_jepa.data.conversion import format_of, parsed_record, to_reading
from step_jepa.data.format_registry import record_format
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading import raw_records, record_limit
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import Reading, has_solution, noted
from step_jepa.errors import UserError
from step_jepa.options import option
from step_jepa.plurals import counted
from step_jepa.run_files.writing import write_whole

NO_SOLUTION = "for evaluation only: a truth, but no solution"
NO_TRUTH = "without a known answer (evaluate counts them apart)"
REJECT_KEYS = ["line", "reason", "record"]


@dataclass(kw_only=True)
class PrepareArguments(ReadArguments):
    """Arguments of `step-jepa prepare`."""

    input_file: str = option(
        help="A file (.jsonl, .json, .csv, .parquet, also .gz), a pattern of files, a folder, a hub data set such as "
        "openai/gsm8k:main[train], or gsm_symbolic or chains (generated; after builtin: also where a file has that "
        "name).",
        is_path=True,
    )
    output_file: str = option(help="Where the JSON lines go; rejects go to its .rejected.jsonl.")
    overwrite: bool = option(False, help="Replace an existing output_file.")
    explain: bool = option(False, help="Print what became of each column of the first record.")
    json: bool = option(False, help="JSON on stdout instead of rows.")


def run(args: PrepareArguments, at_each: Callable[[], None] = lambda: None) -> None:
    """Prepare `input_file` into `output_file`, and print what was kept, what was changed and what was not used; at each
    record something else is called, which may end it by an exception.

    Records that cannot be used go to `output_file` with the suffix `.rejected.jsonl` in place of its own (out.jsonl:
    out.rejected.jsonl), as {"line", "reason", "record"}; there is no such file if there are none. Files appear whole or
    not at all.

    Raises:
        UserError: arguments or source are unusable, or no record can be used.
    """
    output, rejects = _paths(args)
    sorting = _Sorting()
    usable = sorting.usable_records(args, at_each)
    first = next(usable, None)
    if first is not None:
        write_whole(output, map(_line, chain([first], usable)))
    if sorting.rejected:
        write_whole(rejects, map(_line, sorting.rejected))
    else:
        rejects.unlink(missing_ok=True)
    if first is None:
        reject, count = sorting.rejected[0], counted(len(sorting.rejected), "record")
        raise UserError(
            f"{args.input_file}: none of {count} can be used; line {reject['line']}: {reject['reason']}; "
            f"{rejects} says why of each"
        )
    if args.json:
        terminal.show_json(sorting.summary())
    else:
        terminal.result(sorting.rows(), f"{counted(len(sorting.step_counts), 'record')} written to {output}.")
    if sorting.rejected:
        terminal.note(f"those that cannot be used lie in {rejects}")
    terminal.ends("", *_following(args, output))


def _following(args: PrepareArguments, output: Path) -> list[str]:
    """What one would type next: to look, then to train."""
    model = {"model_name": "smollm2"}
    if args.for_evaluation:
        return [terminal.typed("evaluate", {**model, "test_file": output, "output_dir": "scores"})]
    return [terminal.typed("inspect steps", {**model, "train_file": output}), terminal.training("smollm2", output)]


@dataclass
class _Sorting:
    """What became of the records so far.

    rejected     line, reason and record of those that cannot be used
    step_counts  of those that can, the number of steps
    counts       how many of them are of a kind, or were changed in a way
    """

    rejected: list[dict[str, Any]] = field(default_factory=list)
    step_counts: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def usable_records(self, args: PrepareArguments, at_each: Callable[[], None]) -> Iterator[Reading]:
        """As many as are wanted; what becomes of each record is noted on the way."""
        limit = record_limit(args.input_file, args)
        for line, raw in terminal.bar(raw_records(args.input_file, args), label="preparing", unit="record"):
            at_each()
            reading = self._sorted(line, raw, args)
            if reading is None:
                continue
            yield reading
            if len(self.step_counts) == limit:
                return

    def _sorted(self, line: int, raw: Any, args: PrepareArguments) -> Reading | None:
        """The record, counted; None for one that is set aside."""
        if args.explain and not self.rejected and not self.step_counts:
            _explain(raw, args)
        try:
            reading = to_reading(raw, args)
        except Rejected as error:
            self.rejected.append(dict(zip(REJECT_KEYS, (line, str(error), _mendable(raw)), strict=True)))
            return None
        self.step_counts.append(reading["total_steps"])
        self.counts.update(reading.notes)
        self.counts.update([NO_SOLUTION] if not has_solution(reading) else [])
        self.counts.update([NO_TRUTH] if reading["answer"] is None else [])
        return reading

    def summary(self) -> dict[str, Any]:
        """How many records were read, written, rejected, changed, by why; least, median and most steps; how many have
        one step."""
        counts = self.step_counts
        reasons = Counter(reject["reason"].partition(":")[0] for reject in self.rejected)
        return {
            "read": len(counts) + len(self.rejected),
            "written": len(counts),
            "rejected": dict(reasons.most_common()),
            "changed": noted(self.counts),
            "steps": [min(counts), median(counts), max(counts)],
            "one_step": counts.count(1),
        }

    def rows(self) -> dict[str, str]:
        """The same in words."""
        found = self.summary()
        least, middle, most = found["steps"]
        counts = {
            "read": found["read"],
            "written": found["written"],
            **{f"rejected: {reason}": count for reason, count in found["rejected"].items()},
            **found["changed"],
            "steps per example (min / median / max)": f"{least} / {middle:g} / {most}",
            "answers of one step (no pair to learn from)": found["one_step"],
        }
        return {name: str(count) for name, count in counts.items()}


def _explain(raw: Any, args: PrepareArguments) -> None:
    """Print the first record's columns, what is taken from each, and what it becomes."""
    parsed: Any = _mendable(raw)
    name = args.format
    roles: dict[str, str] | None = None
    outcome: dict[str, Any] = {}
    try:
        parsed = parsed_record(raw, args)
        name = name or format_of(parsed)
        reading = to_reading(raw, replace(args, for_evaluation=True))
        roles, outcome = reading.roles, {key: reading[key] for key in ("question", "steps", "answer")}
    except Rejected as error:
        outcome = {"rejected": str(error)}
    terminal.show_aside(_explanation(parsed, name, roles, outcome, dict(args.renamed_columns)))


def _explanation(
    parsed: Any, name: str | None, roles: dict[str, str] | None, outcome: dict[str, Any], theirs: dict[str, str]
) -> Table:
    title = f"format {name}, which has the keys {', '.join(sorted(record_format(name).keys))}" if name else "no format"
    about = "holds" if roles is None else "is read as"
    table = Table("column", about, title=Text(f"the first record: {title}"), min_width=40)
    unnamed = "not used" if roles else "what its format takes from it"
    for key, value in parsed.items() if isinstance(parsed, dict) else ():
        what = _kind(value) if roles is None else roles.get(key, unnamed)
        table.add_row(Text(str(theirs.get(key, key))), Text(what))
    for key, value in outcome.items():
        shown = value if key == "rejected" else json.dumps(value, ensure_ascii=False)
        table.add_row(Text(f"-> {key}"), Text(shown))
    return table


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _paths(args: PrepareArguments) -> tuple[Path, Path]:
    """Where records and rejects go. Raises UserError rather than let them replace a file by accident."""
    output, source = Path(args.output_file), Path(args.input_file)
    if not output.name or output.is_dir():
        raise UserError(f"--output_file {output} is a folder: name a file")
    rejects = output.with_suffix(".rejected.jsonl")
    if source.resolve() in (output.resolve(), rejects.resolve()):
        raise UserError(f"{source} would be overwritten by its own result: give another --output_file")
    for path in (output, rejects):
        if path.exists() and not args.overwrite and not _is_left_by_a_failure(path, output, rejects):
            raise UserError(f"{path} exists: give --overwrite to replace it, or another --output_file")
    return output, rejects


def _is_left_by_a_failure(path: Path, output: Path, rejects: Path) -> bool:
    """Whether the file holds the rejects of a call that could use no record, and so made nothing else."""
    if path != rejects or output.exists() or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        reject = _mendable(lines.readline())
    return isinstance(reject, dict) and list(reject) == REJECT_KEYS


def _mendable(raw: Any) -> Any:
    """A line as the JSON that it is, so that it can be mended; as text where it is none."""
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return raw


def _line(record: Any) -> str:
    return json.dumps(record, default=str) + "\n"
