"""Runs in processes of their own, so that one that dies takes no other with it; what the terminal shows meanwhile."""

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from math import inf
from multiprocessing import connection, get_context, parent_process
from statistics import mean
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.experiments.plan import Run
from step_jepa.experiments.run import LOG_FILE, execute, finished_result
from step_jepa.plugins import load_plugins, named_plugins
from step_jepa.plurals import counted

REFUSED = 2  # exit code of a process whose run raised UserError
OUT_OF_TIME = "it was stopped, as its time was up"


class EndedRun(NamedTuple):
    """A run, and what went wrong; None where nothing did."""

    run: Run
    failure: str | None


class _Running(NamedTuple):
    run: Run
    process: Any


def execute_all(
    runs: Sequence[Run],
    workers: int,
    threads: int,
    on_start: Callable[[Run], Any],
    *,
    may_start: Callable[[Run], bool] = lambda _: True,
    deadline: float = inf,
) -> Generator[EndedRun, None, None]:
    """Each run as it ends. Closed early, it stops those that run.

    Args:
        runs: in the order in which they start.
        workers: how many run at a time.
        threads: of each process.
        on_start: called with each run that starts.
        may_start: asked before each; once it says no, no other starts.
        deadline: when those that run are stopped, by the clock of `time.monotonic`.
    """
    context = _context()
    waiting = list(runs)
    running: dict[Any, _Running] = {}  # by what tells that the process has ended
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                if not may_start(run):
                    waiting.clear()
                    break
                process = context.Process(target=_execute_in_process, args=(run, threads, named_plugins()))
                process.start()
                running[process.sentinel] = _Running(run, process)
                on_start(run)
            if _wait(list(running), deadline):
                for run, process in running.values():
                    process.kill()  # at SIGTERM it would write a checkpoint first
                    yield EndedRun(run, OUT_OF_TIME)
                return
            for sentinel in connection.wait(list(running)) if running else []:
                run, process = running.pop(sentinel)
                process.join()
                yield EndedRun(run, _failure(run, process.exitcode))
    finally:
        _stop(list(running.values()))


def importing() -> threading.Thread:
    """Have what every run needs imported, once for all; that ends when it is done, and no run starts before."""
    process = _context().Process(target=_nothing)
    thread = threading.Thread(target=process.start, daemon=True)
    thread.start()
    return thread


def _context() -> Any:
    context: Any = get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload([__name__])  # imports take seconds, and each run would pay them
    return context


def _nothing() -> None:
    pass


def _wait(sentinels: list[Any], deadline: float) -> bool:
    """Until a process ends; whether none did by the deadline."""
    timeout = None if deadline == inf else max(0.0, deadline - time.monotonic())
    return bool(sentinels) and not connection.wait(sentinels, timeout)


def _stop(running: Sequence[_Running]) -> None:
    for _, process in running:
        process.terminate()
    for _, process in running:
        process.join()


def _failure(run: Run, code: int | None) -> str | None:
    """Why a process ended with this exit code; None for 0."""
    if not code:
        return None
    log = run.folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    if code == REFUSED and lines:
        return lines[-1]
    return f"it was killed by signal {-code}; {log}" if code < 0 else f"it failed; the last lines of {log} say why"


def _execute_in_process(run: Run, threads: int, plugins: Sequence[str]) -> None:
    """In the process: everything that the run prints goes to its log."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    run.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(run.folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    terminal.set_up(quiet=False, alone=True)
    terminal.adopt_libraries()
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its default, between processes, would be left behind by a run that is stopped
    try:
        load_plugins(plugins)  # a forkserver's child has imported nothing of the user's
        with threadpool_limits(threads, "blas"):  # scikit-learn's probes
            execute(run)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)


def _die_with_parent() -> None:
    """A run that outlives its experiment would write beside the one that is started in its place."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Progress:
    """The live table of an experiment: what is done, what runs, the score so far, and when it will end.

    Shows itself from `with` to its end; where there is no terminal, a line for each run that ends.

    Args:
        runs: that are to be run.
        total: how many there are with those that were finished before.
        measure: the mean of which is shown.
        console: where.
    """

    def __init__(self, runs: Sequence[Run], total: int, measure: str, console: Console) -> None:
        self.runs, self.total, self.measure, self.console = runs, total, measure, console
        self.start = time.perf_counter()
        self.ended_runs = 0
        self.running: list[Run] = []
        self.scores: dict[str, list[float]] = {run.condition: [] for run in runs}
        self.live = Live(get_renderable=self._table, console=console, refresh_per_second=1, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, run: Run) -> None:
        self.running.append(run)

    def ended(self, run: Run, failure: str | None) -> None:
        self.running.remove(run)
        self.ended_runs += 1
        result = None if failure else finished_result(run)
        outcome = f"failed: {failure}"
        if result:
            score = mean(result.measures[self.measure])
            self.scores[run.condition].append(score)
            outcome = f"{self.measure} {score:.4f}"
        number = self.total - len(self.runs) + self.ended_runs
        self.console.print(Text(f"{number} of {self.total}  {run}: {outcome}{self._time_left()}"))

    def _time_left(self) -> str:
        if not self.ended_runs or self.ended_runs == len(self.runs):
            return ""
        seconds = (time.perf_counter() - self.start) / self.ended_runs
        return f"; {timedelta(seconds=round(seconds * (len(self.runs) - self.ended_runs)))} left"

    def _table(self) -> Table:
        table = Table(title=f"{self.ended_runs} of {counted(len(self.runs), 'cell')}{self._time_left()}")
        for column in ("arm", "finished now", f"mean {self.measure}", "running"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for condition, scores in self.scores.items():
            seeds = ", ".join(f"seed {run.seed}" for run in self.running if run.condition == condition)
            table.add_row(Text(condition), str(len(scores)), f"{mean(scores):.4f}" if scores else "-", seeds)
        return table
