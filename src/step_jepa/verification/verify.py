"""`step-jepa verify`: every check of checks.py on the user's own model and rows, as a table or as JSON."""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

from step_jepa.data.sources import read_records
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.verification.checks import CHECKS, Finding, Subject, findings

SAID = {True: "pass", False: "FAIL", None: "not made"}


@dataclass
class VerifyArguments:
    """What is verified. Raises UserError for a number out of range."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    limit: int = field(default=200, metadata={"help": "Rows whose tokens are checked."})
    rows: int = field(default=3, metadata={"help": "Rows that the model reads: the shortest with two pairs, or one."})
    predictors: int = field(default=1, metadata={"help": "K, the predictor tokens."})
    lora: bool = field(default=False, metadata={"help": "Check LoRA training instead of full fine-tuning."})
    plain: bool = field(default=False, metadata={"help": "No chat framing, as --plain of train."})
    max_length: int | None = field(default=1024, metadata={"help": "Longest trunk in tokens: how many are longer?"})
    attn_implementation: Literal["sdpa", "eager"] = field(default="sdpa", metadata={"help": "Attention backend."})
    seed: int = field(default=42, metadata={"help": "Of the predictor rows."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of a table."})

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "rows": 1, "predictors": 0, "max_length": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} = {value}: give {least} or more")


def run(args: VerifyArguments) -> int:
    """Print the findings; 1 where a check failed. Raises UserError where there is nothing to check."""
    logging.getLogger("step_jepa").setLevel(logging.ERROR)  # of trainers that the checks make
    records = list(islice(read_records(args.train_file), args.limit))
    resolve(args.model_name)
    begun = time.monotonic()
    options = {name: value for name, value in asdict(args).items() if name not in ("train_file", "limit", "json")}
    with Subject(options.pop("model_name"), records, **options) as subject:
        assert subject.tokenizer  # a model that cannot be reached is one line, and not one for each check
        progress = tqdm(findings(subject), total=len(CHECKS), desc="checks", leave=False, file=sys.stderr)
        found = dict(progress)
    failed = [name for name, finding in found.items() if finding.passed is False]
    if args.json:
        checks = [
            {"check": name, **asdict(finding), "remedy": _remedy(name, finding)} for name, finding in found.items()
        ]
        print(json.dumps({"passed": not failed, "settings": asdict(args), "checks": checks}))
    else:
        _show(args, found, time.monotonic() - begun)
    return 1 if failed else 0


def _remedy(name: str, finding: Finding) -> str | None:
    return CHECKS[name][1] if finding.passed is False else None


def _show(args: VerifyArguments, found: dict[str, Finding], seconds: float) -> None:
    table = Table(title=Text(f"{args.model_name} on {args.train_file}"))
    for column in ("check", "found", ""):
        table.add_column(column)
    styles: dict[Any, str] = {True: "green", False: "bold red", None: "dim"}
    for name, finding in found.items():
        text = Text(finding.figure)
        if remedy := _remedy(name, finding):
            text.append(f"\nwhat to do: {remedy}", "bold")
        table.add_row(name, text, Text(SAID[finding.passed], styles[finding.passed]))
    counts = {said: sum(finding.passed is passed for finding in found.values()) for passed, said in SAID.items()}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    Console(highlight=False).print(table, f"{said}, in {seconds:.0f} s")
