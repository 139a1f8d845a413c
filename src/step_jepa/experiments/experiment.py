"""`step-jepa experiment`: arms x seeds on one recipe, and what their differences say."""

import contextlib
import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from step_jepa import plots, terminal
from step_jepa.errors import Interrupted, UserError
from step_jepa.experiments.arguments import ACCURACY, ASSUMED, ExperimentArguments
from step_jepa.experiments.conclusions import primary_sentence
from step_jepa.experiments.contrasts import Contrast
from step_jepa.experiments.cost import cost_table, timed_costs
from step_jepa.experiments.data import prepare_data
from step_jepa.experiments.executor import execute_all
from step_jepa.experiments.files import write_results
from step_jepa.experiments.picture import conditions_chart
from step_jepa.experiments.plan import Plan, Run, planned
from step_jepa.experiments.progress import Progress
from step_jepa.experiments.results import About, ExperimentResults
from step_jepa.experiments.run import RunResult, finished_result
from step_jepa.experiments.summary import summarise
from step_jepa.experiments.tables import arms_rows
from step_jepa.plurals import counted
from step_jepa.process.signals import ending_at_once
from step_jepa.run_files.names import RESULTS_CSV, RESULTS_FILE, RESULTS_PICTURE, RESULTS_TEXT
from step_jepa.run_files.reading import read_json, read_lines
from step_jepa.statistics.power import detectable
from step_jepa.statistics.variance import Components

logger = logging.getLogger(__name__)
WAY_ON = "the same command goes on with the cells that are not finished"


def run(
    args: ExperimentArguments,
    *,
    may_start: Callable[[Run], bool] = lambda _: True,
    closing: Callable[[ExperimentResults], str] | None = None,
) -> int:
    """Execute the runs that are not finished, then write results.json, .csv, .md and .png; 1 if one failed.

    Args:
        args: what is run.
        may_start: asked before each run; once it says no, no other starts.
        closing: what is said of the results in the end, and in their files.

    Raises:
        UserError: for what cannot be run, and for a folder whose results are of more seeds or arms.
    """
    folder = Path(args.output_dir)
    plan = planned(args, folder)
    _check_results(plan, folder)
    shard = _shard(args.shard)
    prepare_data(args.data, folder / "data")
    power = stated_power(args, plan)
    terminal.note(power)
    runs = plan.runs[shard.first :: shard.step]
    left = [run for run in runs if finished_result(run) is None]
    if args.dry_run:
        costs = timed_costs(plan.runs, folder, threads_of_run(args))
        if args.json:
            terminal.show_json({name: asdict(cost) for name, cost in costs.items()})
        else:
            terminal.show(cost_table(costs, left, args.workers))
        terminal.ends("", "the same command without --dry_run")
        return 0
    failed = execute_runs(left, len(runs), args, may_start)
    finished = _collected(plan.runs)
    if finished.missing:
        count = f"{len(finished.missing)} of {counted(len(plan.runs), 'cell')}"
        logger.warning("not finished, and not in the tables: %s", count)
    if not finished.results:
        return 1
    _conclude(args, plan, finished, power, closing)
    return int(failed)


def _check_results(plan: Plan, folder: Path) -> None:
    """Raises UserError where results lie there that are of more than the plan has, and would be lost."""
    path = folder / RESULTS_FILE
    if not path.exists():
        return
    present = read_json(path, seeds=list, arms=dict)
    planned_seeds, planned_arms = {run.seed for run in plan.runs}, {run.condition for run in plan.runs}
    lost = [f"seed {seed}" for seed in present["seeds"] if seed not in planned_seeds]
    lost += [arm for arm in present["arms"] if arm not in planned_arms]
    if lost:
        raise UserError(f"{path} has results of {', '.join(lost)}, which this would replace: give another --output_dir")


@dataclass(frozen=True)
class _Shard:
    """Every step-th run from the first on."""

    first: int
    step: int


def _shard(text: str) -> _Shard:
    match = re.fullmatch(
        r"(?P<first>[0-9]{1,9})/(?P<step>[0-9]{1,9})", text
    )  # isdigit is true of digits that int refuses
    if not match or int(match["first"]) >= int(match["step"]):
        raise UserError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/4")
    return _Shard(int(match["first"]), int(match["step"]))


def stated_power(args: ExperimentArguments, plan: Plan) -> str:
    """The smallest effect that can be shown, from the variances assumed, before anything is run."""
    run = plan.runs[0]
    problems = len(read_lines(run.test_file))
    problems = min(problems, run.evaluate.get("limit") or problems)
    seeds, others = len(args.seeds), len(plan.comparisons) * len(args.measures) - 1
    if min(seeds, problems) < 2:
        found = f"{counted(seeds, 'seed')} and {counted(problems, 'problem')}"
        return f"Of {found} no difference can be tested: that takes two of each."
    assumed = Components(**{**ASSUMED, **args.assumed})
    alone = detectable(assumed, seeds, problems)
    first = detectable(assumed, seeds, problems, comparisons=max(1, others))
    of_others = f", as the first of {others} by Holm one of {first:.3g}" if others else ""
    if alone > 1 and args.measures == [ACCURACY]:
        return f"Stated before the runs: {seeds} seeds and {problems} problems can show no difference of accuracies."
    return (
        f"Stated before the runs: {seeds} seeds and {problems} problems show a difference of {alone:.3g} with 80 % "
        f"power at 5 %{of_others}, if its variance is "
        f"{assumed.seed:.2g} between seeds, {assumed.problem:.2g} between problems and {assumed.residual:.2g} within."
    )


def threads_of_run(args: ExperimentArguments) -> int:
    """Of the processor, for each worker."""
    return max(1, torch.get_num_threads() // args.workers)


def execute_runs(
    runs: Sequence[Run], total: int, args: ExperimentArguments, may_start: Callable[[Run], bool] = lambda _: True
) -> bool:
    """Whether a run failed; `total` counts those that were finished before. Raises Interrupted."""
    failed = False
    with Progress(runs, total, args.measures[0], terminal.progress_console()) as progress:
        try:
            threads = threads_of_run(args)
            every = execute_all(runs, args.workers, threads, progress.started, may_start=may_start)
            with ending_at_once(WAY_ON), contextlib.closing(every) as ended_runs:
                for run, failure in ended_runs:
                    failed |= failure is not None
                    progress.ended(run, failure)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted: {WAY_ON}") from None
    return failed


@dataclass(frozen=True)
class _Finished:
    results: list[RunResult]
    missing: list[str]  # runs that have none


def _collected(runs: Sequence[Run]) -> _Finished:
    finished = _Finished([], [])
    for run in runs:
        result = finished_result(run)
        if result is None:
            finished.missing.append(str(run))
        else:
            finished.results.append(result)
    return finished


def _conclude(
    args: ExperimentArguments,
    plan: Plan,
    finished: _Finished,
    power: str,
    closing: Callable[[ExperimentResults], str] | None,
) -> None:
    """Tables and files of what is finished, as far as any two conditions can be compared."""
    measured = finished.results[0].measures
    for measure in args.measures:
        if measure not in measured:
            raise UserError(f"measures: there is no {measure}: choose among {', '.join(measured)}")
    about = About(
        name=args.name,
        date=date.today().isoformat(),
        command=shlex.join(["step-jepa", *sys.argv[1:]]),
        machine=_machine(finished.results),
        seeds=args.seeds,
        power=power,
        missing=finished.missing,
    )
    comparisons = _comparable(plan.comparisons, finished.results)
    summary = summarise(finished.results, args.measures, comparisons, plan.primary, about)
    said = [args.note, closing(summary) if closing else ""]
    summary = replace(summary, about=replace(about, closing=[sentence for sentence in said if sentence]))
    folder = Path(args.output_dir)
    write_results(summary, finished.results, folder)
    plots.save(conditions_chart(summary), str(folder / RESULTS_PICTURE))
    _show(args, summary, " ".join(summary.about.closing) if closing else primary_sentence(summary))
    names = f"all tables in {RESULTS_TEXT}; {RESULTS_CSV}, {RESULTS_PICTURE}, {RESULTS_FILE} and cells"
    page = terminal.reporting(args.output_dir)
    terminal.ends(f"{names} lie in {args.output_dir}", page)


def _comparable(comparisons: Sequence[Contrast], finished: Sequence[RunResult]) -> list[Contrast]:
    """Those of conditions that have a seed in common."""
    seeds: dict[str, set[int]] = {}
    for result in finished:
        seeds.setdefault(result.condition, set()).add(result.seed)
    return [each for each in comparisons if set.intersection(*(seeds.get(name, set()) for name in each.conditions))]


def _machine(finished: Sequence[RunResult]) -> str:
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    counts = sorted({result.threads for result in finished})
    threads = ", ".join(map(str, counts))
    return f"{device}, torch {torch.__version__}, step-jepa {version('step-jepa')}, threads of a cell: {threads}"


def _show(args: ExperimentArguments, summary: ExperimentResults, sentence: str) -> None:
    if args.json:
        terminal.show_json(summary.to_json())
    else:
        terminal.result(arms_rows(summary), sentence)
