"""Cells in processes of their own, so that one that dies takes no other with it."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from step_jepa.errors import UserError
from step_jepa.experiments import run as runs
from step_jepa.experiments.design import Cell
from step_jepa.plugins import load_plugins

REFUSED = 2


def run_all(
    waiting: Sequence[Cell], workers: int, threads: int, started: Callable[[Cell], Any]
) -> Generator[tuple[Cell, str | None], None, None]:
    """Each cell as it ends, and what went wrong, None where nothing did. `threads` are those of each process.

    Left early, it stops the cells that run."""
    context: Any = get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload([runs.__name__])  # imports take seconds, and each cell would pay them
    queue = list(waiting)
    running: dict[Any, tuple[Cell, Any]] = {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                cell = queue.pop(0)
                process = context.Process(target=_run, args=(cell, threads))
                process.start()
                running[process.sentinel] = cell, process
                started(cell)
            for sentinel in connection.wait(list(running)):
                cell, process = running.pop(sentinel)
                process.join()
                yield cell, _why(cell, process.exitcode)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _why(cell: Cell, code: int | None) -> str | None:
    if not code:
        return None
    log = cell.folder / runs.LOG
    said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    if code == REFUSED and said:
        return said[-1]
    return f"it was killed by signal {-code}; {log}" if code < 0 else f"it failed; the last lines of {log} say why"


def _run(cell: Cell, threads: int) -> None:
    """In the process: everything that the cell prints goes to its log."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    cell.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(cell.folder / runs.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("step_jepa").setLevel(logging.INFO)
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own, between processes, would be left behind by a cell that is stopped
    try:
        load_plugins()  # a forkserver's child knows the modules of --import by the environment alone
        with threadpool_limits(threads, "blas"):  # scikit-learn's probes
            runs.run(cell)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)


def _die_with_parent() -> None:
    """A cell that outlives its experiment would write beside the one that is started in its place."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
