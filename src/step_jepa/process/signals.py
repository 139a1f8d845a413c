"""SIGTERM and SIGUSR1, which job schedulers send some time before they kill."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from step_jepa.errors import Terminated

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class SignalReceived(BaseException):
    """Raised where the signal found the process. No library takes it for an error of its own."""


@contextmanager
def handled_by(handler: Callable[[], None]) -> Iterator[None]:
    """The signals call the handler, in the main thread; in another one, where Python handles none, nothing changes."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda *_: handler()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def ending_at_once(way_on: str) -> Iterator[None]:
    """Raises Terminated at a signal, with how to go on."""
    try:
        with handled_by(_raise):
            yield
    except SignalReceived:
        raise Terminated(f"terminated: {way_on}") from None


def _raise() -> None:
    raise SignalReceived


def as_usual() -> None:
    """In a process that was forked from one that handles them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def from_parent_alone() -> None:
    """In a process that serves another one: signals to all processes of a job leave it be, as what it serves goes on
    for a while; its parent ends it by them as usual. Only where the sender can be told (not on macOS)."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
