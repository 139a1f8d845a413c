"""Runs in processes of their own, so that one that dies takes no other with it."""

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from math import inf
from multiprocessing import connection, get_context, parent_process
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.experiments.plan import Run
from step_jepa.experiments.run import LOG_FILE, execute
from step_jepa.plugins import load_plugins, named_plugins

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
    waiting, executor = list(runs), _Executor(threads)
    try:
        while waiting or executor.running:
            while waiting and len(executor.running) < workers:
                run = waiting.pop(0)
                if not may_start(run):
                    waiting.clear()
                    break
                executor.start(run)
                on_start(run)
            if executor.nothing_ends(deadline):
                yield from executor.killed()
                return
            yield from executor.ended()
    finally:
        executor.stop()


class _Executor:
    """The processes that run now.

    running   by what tells that the process has ended
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.context = threads, _context()
        self.running: dict[Any, _Running] = {}

    def start(self, run: Run) -> None:
        process = self.context.Process(target=_execute_in_process, args=(run, self.threads, named_plugins()))
        process.start()
        self.running[process.sentinel] = _Running(run, process)

    def nothing_ends(self, deadline: float) -> bool:
        """Waits until a process ends; whether none did by the deadline."""
        timeout = None if deadline == inf else max(0.0, deadline - time.monotonic())
        return bool(self.running) and not connection.wait(list(self.running), timeout)

    def killed(self) -> Iterator[EndedRun]:
        """Each of those that run, out of time."""
        for run, process in self.running.values():
            process.kill()  # at SIGTERM it would write a checkpoint first
            yield EndedRun(run, OUT_OF_TIME)

    def ended(self) -> Iterator[EndedRun]:
        """Each that has come to its end."""
        for sentinel in connection.wait(list(self.running)) if self.running else []:
            run, process = self.running.pop(sentinel)
            process.join()
            yield EndedRun(run, _failure(run, process.exitcode))

    def stop(self) -> None:
        """Those that still run."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.join()


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
