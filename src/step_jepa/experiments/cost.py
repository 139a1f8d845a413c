"""What runs will cost, from a few optimisation steps and answers of each condition; whether there is time for them."""

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.experiments.arguments import ACCURACY
from step_jepa.experiments.executor import OUT_OF_TIME, execute_all, importing
from step_jepa.experiments.plan import Run
from step_jepa.experiments.run import RunResult
from step_jepa.plurals import counted
from step_jepa.run_files.names import CELL_FILE
from step_jepa.run_files.reading import read_lines

PROBE_STEPS, PROBE_ANSWERS = 4, 8  # steps; the fewest answers


class OutOfTime(UserError):
    """A probe did not end in the time that it was given."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a run: to start (loading, tokenising), of a step and of an answer, and how many there are of each.
    With `same_flop` there are fewer steps than this."""

    start: float
    step: float
    steps: int
    answer: float
    answers: int

    @property
    def seconds(self) -> float:
        return self.start + self.step * self.steps + self.answer * self.answers

    @property
    def pace(self) -> str:
        """In words."""
        return f"{self.start:.1f} s to start, {self.step:.2f} s a step, {self.answer:.2f} s an answer"


def timed_costs(runs: Sequence[Run], folder: Path, threads: int, *, deadline: float = inf) -> dict[str, Cost]:
    """What a run of each condition costs, by training its first one for 4 steps and letting it answer a batch of
    problems; each is printed once it is known. Pairing is not timed.

    Args:
        runs: all of them.
        folder: the experiment's; the probe lies in a new folder in it, and goes with it.
        threads: of each process.
        deadline: when the probe ends, by the clock of `time.monotonic`.

    Raises:
        OutOfTime: where it is not done by then.
        UserError: where a condition fails; then the probe stays, as its log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    try:
        costs = _timed_costs(_first_runs(runs), scratch, threads, deadline)
    except (KeyboardInterrupt, OutOfTime):
        shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)
    return costs


def _timed_costs(first_runs: Mapping[str, Run], scratch: Path, threads: int, deadline: float) -> dict[str, Cost]:
    probes = [_shortened(run, scratch / str(number)) for number, run in enumerate(first_runs.values())]
    costs: dict[str, Cost] = {}
    _await_imports(deadline)
    with closing(execute_all(probes, 1, threads, lambda _: None, deadline=deadline)) as ended_runs:
        for probe, failure in ended_runs:
            if failure == OUT_OF_TIME:
                raise OutOfTime(f"{len(costs)} of {counted(len(probes), 'arm')} timed")
            if failure:
                raise UserError(f"{probe.condition}: {failure}")
            result = RunResult.read(probe.folder / CELL_FILE)
            costs[probe.condition] = _cost(result, first_runs[probe.condition])
            terminal.note(f"{probe.condition}: {costs[probe.condition].pace}")
    return costs


def _await_imports(deadline: float) -> None:
    start, imports = time.monotonic(), importing()
    imports.join(None if deadline == inf else max(0.0, deadline - start))
    if imports.is_alive():
        raise OutOfTime(f"no arm was timed, as Python was still importing after {ceil(time.monotonic() - start)} s")


def _first_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """By condition."""
    first_runs: dict[str, Run] = {}
    for run in runs:
        first_runs.setdefault(run.condition, run)
    return first_runs


def _shortened(run: Run, folder: Path) -> Run:
    train = {**run.train, "max_steps": PROBE_STEPS, "save_strategy": "no"}
    batch = run.evaluation(overwrite=True).batch_size
    limit = min(_answers(run), max(PROBE_ANSWERS, batch))
    return replace(
        run, folder=folder, train=train, evaluate={**run.evaluate, "limit": limit}, pairing=None, surprise=None
    )


def _cost(result: RunResult, run: Run) -> Cost:
    """Of the run, by the result of its shortened one."""
    seconds = result.seconds
    return Cost(
        start=seconds.all - seconds.train - seconds.answer,
        step=seconds.train / result.steps,
        steps=_steps(run),
        answer=seconds.answer / len(result.measures[ACCURACY]),
        answers=_answers(run),
    )


def _steps(run: Run) -> int:
    """Optimisation steps, on one device."""
    _, config = run.training()
    if config.max_steps > 0:
        return config.max_steps
    rows = len(read_lines(run.train_file))
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return ceil(ceil(rows / batch) * config.num_train_epochs)


def _answers(run: Run) -> int:
    problems = len(read_lines(run.test_file))
    return min(run.evaluation(overwrite=True).limit or problems, problems)


def cost_table(costs: Mapping[str, Cost], runs: Sequence[Run], workers: int) -> Table:
    """What the runs that are left will take."""
    seconds = sum(costs[run.condition].seconds for run in runs) / workers
    time_left = timedelta(seconds=round(seconds))
    table = Table(title=f"{counted(len(runs), 'cell')}, about {time_left} with {workers} at a time")
    for column in ("arm", "seeds", "steps", "s each", "answers", "s each", "a cell"):
        table.add_column(column, justify="left" if column in ("arm", "seeds") else "right", overflow="fold")
    for condition, cost in costs.items():
        seeds = " ".join(str(run.seed) for run in runs if run.condition == condition)
        steps, answers = (str(cost.steps), f"{cost.step:.2f}"), (str(cost.answers), f"{cost.answer:.2f}")
        table.add_row(Text(condition), seeds, *steps, *answers, str(timedelta(seconds=round(cost.seconds))))
    return table


class Span(NamedTuple):
    """A time that something may take, in seconds; its start by the clock of `time.monotonic`."""

    start: float
    seconds: float

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


class Budget:
    """Whether there is time for another run. They come one after another, all runs of a seed together.

    The pace is that of the runs so far. A seed is begun if all of its runs should end in time, and a run of a seed that
    is begun while there is any time left: what is given is exceeded by less than one run.

    Args:
        deadline: by the clock of `time.monotonic`.
        conditions: runs of a seed.
    """

    def __init__(self, deadline: float, conditions: int) -> None:
        self.deadline, self.conditions = deadline, conditions
        self.starts: list[float] = []
        self.seeds: set[int] = set()

    def allows(self, run: Run) -> bool:
        """To be asked right before a run would start, which then does."""
        now = time.monotonic()
        lasted = [after - before for before, after in pairwise([*self.starts, now])]
        runs = 1 if run.seed in self.seeds else self.conditions
        needed = mean(lasted) * runs if lasted and runs > 1 else 0.0
        self.starts.append(now)
        self.seeds.add(run.seed)
        return now + needed < self.deadline
