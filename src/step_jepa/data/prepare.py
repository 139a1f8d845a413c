"""`step-jepa prepare`: raw records to conversations with steps, as JSON lines. No model is known here."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from step_jepa.data.records import ReadArguments, Record, Rejected, to_record
from step_jepa.data.sources import raw_records, record_limit
from step_jepa.errors import UserError
from step_jepa.options import option
from step_jepa.run_files import write_whole


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


def run(args: PrepareArguments) -> None:
    """Prepare `input_file` into `output_file`, and print what was kept.

    Records that cannot be used go to `output_file` with the suffix `.rejected.jsonl` in place of its own (out.jsonl:
    out.rejected.jsonl), as {"line", "reason", "record"}; there is no such file if there are none. Files appear whole or
    not at all.

    Raises:
        UserError: arguments or source are unusable, or no record can be used.
    """
    output, rejects = _paths(args)
    sorting = _Sorting()
    usable = sorting.usable_records(args)
    first = next(usable, None)
    if first is not None:
        write_whole(output, map(_line, chain([first], usable)))
    if sorting.rejected:
        write_whole(rejects, map(_line, sorting.rejected))
    else:
        rejects.unlink(missing_ok=True)
    if first is None:
        raise UserError(f"{args.input_file}: none of {len(sorting.rejected)} records can be used; {rejects} says why")
    Console().print(sorting.summary())


@dataclass
class _Sorting:
    """What became of the records so far.

    rejected     line, reason and record of those that cannot be used
    step_counts  of those that can, the number of steps
    """

    rejected: list[dict[str, Any]] = field(default_factory=list)
    step_counts: list[int] = field(default_factory=list)

    def usable_records(self, args: PrepareArguments) -> Iterator[Record]:
        """As many as are wanted; what becomes of each record is noted on the way."""
        limit = record_limit(args.input_file, args)
        for line, raw in tqdm(raw_records(args.input_file, args), desc="preparing", unit=" records", delay=0.5):
            try:
                record = to_record(raw, args)
            except Rejected as error:
                self.rejected.append({"line": line, "reason": str(error), "record": _mendable(raw)})
                continue
            self.step_counts.append(record["total_steps"])
            yield record
            if len(self.step_counts) == limit:
                return

    def summary(self) -> Table:
        counts = self.step_counts
        table = Table(show_header=False)
        table.add_row("read", str(len(counts) + len(self.rejected)))
        table.add_row("written", str(len(counts)))
        reasons = Counter(reject["reason"].partition(":")[0] for reject in self.rejected)
        for reason, count in reasons.most_common():
            table.add_row(Text(f"rejected: {reason}"), str(count))
        table.add_row("steps per example (min / median / max)", f"{min(counts)} / {median(counts):g} / {max(counts)}")
        table.add_row("answers of one step (no pair to learn from)", str(counts.count(1)))
        return table


def _paths(args: PrepareArguments) -> tuple[Path, Path]:
    """Where records and rejects go. Raises UserError rather than let them replace a file by accident."""
    output, source = Path(args.output_file), Path(args.input_file)
    if not output.name or output.is_dir():
        raise UserError(f"--output_file {output} is a folder: name a file")
    rejects = output.with_suffix(".rejected.jsonl")
    if source.resolve() in (output.resolve(), rejects.resolve()):
        raise UserError(f"{source} would be overwritten by its own result: give another --output_file")
    for path in (output, rejects):
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists: give --overwrite to replace it, or another --output_file")
    return output, rejects


def _mendable(raw: Any) -> Any:
    """A line as the JSON that it is, so that it can be mended; as text where it is none."""
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except ValueError:
        return raw


def _line(record: Any) -> str:
    return json.dumps(record, default=str) + "\n"
