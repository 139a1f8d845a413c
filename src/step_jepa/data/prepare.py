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
from step_jepa.data.sources import limit_of, raw_records
from step_jepa.errors import UserError
from step_jepa.run_files import write_whole


@dataclass(kw_only=True)
class PrepareArguments(ReadArguments):
    """Arguments of `step-jepa prepare`."""

    input_file: str = field(
        metadata={
            "help": "A .jsonl or .json file, a hub data set or local folder, or gsm_symbolic or chains (generated)."
        }
    )
    output_file: str = field(metadata={"help": "Where the JSON lines go; rejects go to its .rejected.jsonl."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output_file."})


def run(args: PrepareArguments) -> None:
    """Prepare `input_file` into `output_file`, and print what was kept.

    Records that cannot be used go to `output_file` with the suffix `.rejected.jsonl` in place of its own (out.jsonl:
    out.rejected.jsonl), as {"line", "reason", "record"}; there is no such file if there are none. Files appear whole or
    not at all. Raises UserError for unusable arguments and sources, and if no record can be used.
    """
    output, rejects = _paths(args)
    rejected: list[dict[str, Any]] = []
    lengths: list[int] = []
    kept = _sort_out(args, rejected, lengths)
    first = next(kept, None)
    if first is not None:
        write_whole(output, map(_line, chain([first], kept)))
    if rejected:
        write_whole(rejects, map(_line, rejected))
    else:
        rejects.unlink(missing_ok=True)
    if first is None:
        raise UserError(f"{args.input_file}: none of {len(rejected)} records can be used; {rejects} says why")
    Console().print(_summary(lengths, rejected))


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


def _sort_out(args: PrepareArguments, rejected: list[dict[str, Any]], lengths: list[int]) -> Iterator[Record]:
    """The usable records; adds to `rejected` those that are not, and to `lengths` the steps of those that are."""
    limit = limit_of(args.input_file, args)
    for line, raw in tqdm(raw_records(args.input_file, args), desc="preparing", unit=" records", delay=0.5):
        try:
            record = to_record(raw, args)
        except Rejected as error:
            rejected.append({"line": line, "reason": str(error), "record": _parsed(raw)})
            continue
        lengths.append(record["total_steps"])
        yield record
        if len(lengths) == limit:
            return


def _parsed(raw: Any) -> Any:
    """A line as the JSON that it is, so that it can be mended; as text where it is none."""
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except ValueError:
        return raw


def _line(record: Any) -> str:
    return json.dumps(record, default=str) + "\n"


def _summary(lengths: list[int], rejected: list[dict[str, Any]]) -> Table:
    table = Table(show_header=False)
    table.add_row("read", str(len(lengths) + len(rejected)))
    table.add_row("written", str(len(lengths)))
    for reason, count in Counter(item["reason"].partition(":")[0] for item in rejected).most_common():
        table.add_row(Text(f"rejected: {reason}"), str(count))
    table.add_row("steps per example (min / median / max)", f"{min(lengths)} / {median(lengths):g} / {max(lengths)}")
    table.add_row("answers of one step (no pair to learn from)", str(lengths.count(1)))
    return table
