"""`step-jepa experiment`: arms x seeds on one recipe, and what their differences say."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from step_jepa import statistics
from step_jepa.errors import Interrupted, UserError
from step_jepa.experiments import cost, results
from step_jepa.experiments.data import FILES, prepare_data
from step_jepa.experiments.design import Cell
from step_jepa.experiments.executor import run_all
from step_jepa.experiments.plan import ACCURACY, ASSUMED, ExperimentArguments, Plan, planned
from step_jepa.experiments.progress import Progress
from step_jepa.experiments.run import finished
from step_jepa.run_files import RESULTS_FILE, read_lines
from step_jepa.statistics import Components

console = Console(highlight=False, soft_wrap=True)


def run(args: ExperimentArguments) -> int:
    """Run the cells that are not finished, then write results.json, .csv and .md; 1 if one failed. Raises UserError."""
    folder = Path(args.output_dir)
    plan = planned(args, folder)
    first, of = _shard(args.shard)
    prepare_data(args.data, folder / "data")
    stated = power(args, plan)
    console.print(Text(stated))
    own = plan.cells[first::of]
    left = [cell for cell in own if finished(cell) is None]
    if args.dry_run:
        console.print(cost.table(cost.probe(plan.cells, folder, threads(args)), left, args.workers))
        return 0
    failed = run_cells(left, len(own), args)
    results_of = [(cell, finished(cell)) for cell in plan.cells]
    found = [result for _, result in results_of if result is not None]
    missing = [str(cell) for cell, result in results_of if result is None]
    if missing:
        console.print(
            Text(f"{len(missing)} of {len(plan.cells)} cells are not finished, and the tables are without them")
        )
    if not found:
        return 1
    _close(args, plan, found, {"power": stated, "missing": missing})
    return int(failed)


def _shard(text: str) -> tuple[int, int]:
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and int(first) < int(of)):
        raise UserError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/4")
    return int(first), int(of)


def power(args: ExperimentArguments, plan: Plan) -> str:
    """The smallest effect that can be shown, from the variances assumed, before anything is run."""
    problems = len(read_lines(plan.cells[0].data / FILES["test"]))
    seeds, problems = len(args.seeds), min(problems, plan.cells[0].evaluate.get("limit") or problems)
    if min(seeds, problems) < 2:
        return f"Seeds {args.seeds} and {problems} problems: with fewer than two of either no difference can be tested."
    assumed = Components(**{**ASSUMED, **args.assumed})
    made = len(plan.comparisons) * len(args.measures)
    alone, one_of_many = (statistics.detectable(assumed, seeds, problems, comparisons=n) for n in (1, made))
    if alone > 1 and args.measures == [ACCURACY]:
        return f"Stated before the runs: {seeds} seeds and {problems} problems can show no difference of accuracies."
    return (
        f"Stated before the runs: {seeds} seeds and {problems} problems show a difference of {alone:.3g} with 80 % "
        f"power at 5 %, as the first of {made} comparisons by Holm one of {one_of_many:.3g}, if its variance is "
        f"{assumed.seed:.2g} between seeds, {assumed.problem:.2g} between problems and {assumed.residual:.2g} within."
    )


def threads(args: ExperimentArguments) -> int:
    """Of the processor, for each worker."""
    return max(1, torch.get_num_threads() // args.workers)


def run_cells(cells: Sequence[Cell], of: int, args: ExperimentArguments) -> bool:
    """Whether a cell failed. Raises Interrupted."""
    failed = False
    with Progress(cells, of, args.measures[0], console) as progress:
        try:
            with closing(run_all(cells, args.workers, threads(args), progress.started)) as ended:
                for cell, why in ended:
                    failed |= why is not None
                    progress.ended(cell, why)
        except KeyboardInterrupt:
            raise Interrupted("interrupted: the same command goes on with the cells that are not finished") from None
    return failed


def _close(args: ExperimentArguments, plan: Plan, cells: list[dict[str, Any]], said: dict[str, Any]) -> None:
    """Tables and files of what is finished, as far as any two arms can be compared."""
    seeds = {arm: {cell["seed"] for cell in cells if cell["arm"] == arm} for arm in {cell["arm"] for cell in cells}}
    none: set[int] = set()
    made = [each for each in plan.comparisons if seeds.get(each.arm, none) & seeds.get(each.baseline, none)]
    unknown = [name for name in args.measures if name not in cells[0]["measures"]]
    if unknown:
        raise UserError(f"measures: there is no {unknown[0]}: choose among {', '.join(cells[0]['measures'])}")
    about = {
        "name": args.name,
        "date": date.today().isoformat(),
        "command": shlex.join(["step-jepa", *sys.argv[1:]]),
        "machine": f"{_device()}, torch {torch.__version__}, step-jepa {version('step-jepa')}, threads of a cell: "
        f"{', '.join(map(str, sorted({cell['threads'] for cell in cells})))}",
        "seeds": args.seeds,
        **said,
    }
    summary = results.summarise(cells, args.measures, made, plan.primary, about)
    results.write(summary, cells, Path(args.output_dir))
    for measure in args.measures:
        console.print(_shown(f"{measure}, by arm", results.arms_table(summary, measure), 4))
        console.print(_shown(f"{measure}, paired differences", results.comparisons_table(summary, measure), 5))
    console.print(_shown("losses and costs", results.costs_table(summary), 3))
    for line in results.words(summary):
        console.print(Text(line))
    console.print(Text(f"results.md, results.csv, {RESULTS_FILE} and cells lie in {args.output_dir}"))


def _shown(title: str, rows: list[list[str]], columns: int) -> Table:
    """The first columns, which fit into a terminal; results.md has all."""
    table = Table(title=title)
    for number, head in enumerate(rows[0][:columns]):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row[:columns]))
    return table


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"
