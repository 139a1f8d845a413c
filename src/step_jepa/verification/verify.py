"""`step-jepa verify`: every check on the user's own model and rows, as a table or as JSON."""

import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from step_jepa import terminal
from step_jepa.data.reading import read_records, say_what_was_read
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.options import MOST_SEED, Needs, check_bounds, check_needs, option
from step_jepa.train.arguments import modules_to_adapt
from step_jepa.verification.checks import CHECKS, CheckResult, check_results
from step_jepa.verification.context import VerificationContext

VERDICTS = {True: "pass", False: "FAIL", None: "not made"}
STYLES: dict[bool | None, str] = {True: "green", False: "bold red", None: "dim"}


@dataclass
class VerifyArguments(TemplateOptions, ReadingOptions):
    """What is verified. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    limit: int = option(200, help="Rows whose tokens are checked.", least=1)
    rows: int = option(3, help="Rows that the model reads: the shortest with two pairs, or one.", least=1)
    predictors: int = option(1, help="K, the predictor tokens.", least=0)
    lora: bool = option(False, help="Check LoRA training instead of full fine-tuning.")
    lora_target_modules: list[str] = option(
        default_factory=lambda: ["all-linear"],
        help="With it: modules to adapt, as for train.",
        needs=Needs("--lora", lambda args: args.lora),
    )
    plain: bool = option(False, help="No chat framing, as --plain of train.")
    max_length: int | None = option(1024, help="Longest trunk in tokens: how many are longer?", least=1)
    attn_implementation: Literal["sdpa", "eager"] = option("sdpa", help="Attention backend.")
    seed: int = option(42, help="Of the predictor rows.", least=0, most=MOST_SEED)
    json: bool = option(False, help="JSON on stdout instead of a table.")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)


def run(args: VerifyArguments) -> int:
    """Print what the checks found; 1 where one failed. Raises UserError where there is nothing to check."""
    start = time.monotonic()
    results = _results(args)
    failed = [name for name, result in results.items() if result.passed is False]
    if args.json:
        checks = [{"check": name, **asdict(result)} for name, result in results.items()]
        terminal.show_json({"passed": not failed, "settings": asdict(args), "checks": checks})
    else:
        _show(args, results, time.monotonic() - start)
    if not failed:
        terminal.ends("", terminal.training(args.model_name, args.train_file))
    return 1 if failed else 0


def _results(args: VerifyArguments) -> dict[str, CheckResult]:
    """By check."""
    records = list(islice(read_records(args.train_file, reading=args), args.limit))
    say_what_was_read(args.train_file, records)
    logging.getLogger("step_jepa").setLevel(logging.ERROR)  # of trainers that the checks make
    resolve(args.model_name)
    with _context(args, records) as context:
        assert context.tokenizer  # a model that cannot be reached is one line, and not one for each check
        if _can_be_tokenised(context):
            context.check_pairs()
        return dict(terminal.bar(check_results(context), label="checks", unit="check", total=len(CHECKS)))


def _context(args: VerifyArguments, records: list[Any]) -> VerificationContext:
    return VerificationContext(
        args.model_name,
        records,
        source=args.train_file,
        rows_read=args.rows,
        predictors=args.predictors,
        lora=args.lora,
        target_modules=modules_to_adapt(args.lora_target_modules),
        plain=args.plain,
        template=args,
        max_length=args.max_length,
        attn_implementation=args.attn_implementation,
        seed=args.seed,
    )


def _can_be_tokenised(context: VerificationContext) -> bool:
    """Whether the rows have examples; if not, the first check says why."""
    try:
        return bool(context.examples)
    except UserError:
        return False


def _show(args: VerifyArguments, results: dict[str, CheckResult], seconds: float) -> None:
    table = Table(title=Text(f"{args.model_name} on {args.train_file}"))
    for column in ("check", "found", ""):
        table.add_column(column)
    for name, result in results.items():
        figure = Text(result.figure)
        if result.remedy:
            figure.append(f"\nwhat to do: {result.remedy}", "bold")
        table.add_row(name, figure, Text(VERDICTS[result.passed], STYLES[result.passed]))
    counts = Counter(result.passed for result in results.values())
    summary = ", ".join(f"{counts[passed]} {verdict}" for passed, verdict in VERDICTS.items() if counts[passed])
    terminal.show(table)
    terminal.result({}, f"{summary}, in {seconds:.0f} s")
