"""A function over processes."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from step_jepa.process.signals import as_usual


def over_processes(function: Callable[[Any], Any], items: Iterable[Any], num_proc: int) -> Iterator[Any]:
    """The function's results in the order of the items, of which a few are read ahead."""
    if num_proc == 1:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    with _processes(function, num_proc) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_call, item))
                if len(waiting) > 2 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(function: Callable[[Any], Any], num_proc: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that call the function. Each uses one thread, or they would be in each other's way."""
    context = get_context("fork" if sys.platform == "linux" else None)  # which starts at once
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with ProcessPoolExecutor(num_proc, context, _start, (function,)) as pool:
            yield pool
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_function: Callable[[Any], Any]  # of this process


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks says so
    as_usual()


def _call(item: Any) -> Any:
    return _function(item)
