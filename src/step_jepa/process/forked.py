"""Processes forked from one that has threads and handles signals. Not on Windows, which does not fork."""

import os
import signal
from copy import copy
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from multiprocessing.popen_fork import Popen
from typing import Any

from step_jepa.process.signals import SIGNALS

PATIENCE = 10.0  # seconds until a process that was forked has to be awake


class _ShieldedProcess(ForkProcess):
    """A process which no signal reaches until it calls `from_parent_alone`. One that hangs in the fork is made again:
    before Python 3.11.8 it does where a thread of a library (gloo's and NCCL's are such) was about to call Python at
    that moment (python/cpython#112275)."""

    awake: int  # where it writes a byte, a descriptor

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def _Popen(process: Any) -> Any:
        while True:
            reader, process.awake = os.pipe()
            forked = Popen(process)
            os.close(process.awake)
            awake = wait([reader], PATIENCE)  # also when it is dead
            os.close(reader)
            if awake:
                return forked
            forked.kill()
            forked.wait()

    def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
        os.write(self.awake, b".")
        os.close(self.awake)
        return super()._bootstrap(*args, **kwargs)  # type: ignore[misc]


def shielded_fork() -> Any:
    """A context of multiprocessing that forks such processes."""
    context: Any = copy(get_context("fork"))
    context.Process = _ShieldedProcess
    return context
