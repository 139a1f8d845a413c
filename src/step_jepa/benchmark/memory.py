"""Peak memory of one arm on a CPU: the resident set above the loaded model, in a process of its own.

Run as a module it is that process: it reads its task from its first argument and prints one number.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import psutil

from step_jepa.benchmark.arguments import BenchmarkArguments
from step_jepa.benchmark.steps import Bench
from step_jepa.errors import UserError

STEPS = 2  # the first makes the optimiser's states
INTERVAL = 0.002  # seconds between looks at the resident set


def peak_mb(args: BenchmarkArguments, arm: str, length: int | None) -> float:
    """MB. Raises UserError where the process fails."""
    values = {field.name: getattr(args, field.name) for field in fields(args)} | {"output": None}
    task = json.dumps({"arguments": values, "arm": arm, "length": length})
    result = subprocess.run([sys.executable, "-m", __name__, task], capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise UserError(f"peak memory of {arm} was not measured ({reason[:200]}): --memory no leaves it out")
    return float(result.stdout.strip().splitlines()[-1])


class ResidentSet:
    """The largest resident set that was seen, in bytes."""

    def __init__(self) -> None:
        self.largest, self._stop = 0, threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at it all the while."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.is_set():
            self.largest = max(self.largest, process.memory_info().rss)
            time.sleep(INTERVAL)


def _measured(arguments: dict, arm: str, length: int | None) -> float:
    with Bench(BenchmarkArguments(**arguments)) as bench:
        trainer = bench.arm(arm, bench.examples(length, STEPS))
        loaded, resident = psutil.Process().memory_info().rss, ResidentSet()
        with resident.watched():
            for _ in range(STEPS):
                trainer.step()
    return (resident.largest - loaded) / 2**20


if __name__ == "__main__":
    print(_measured(**json.loads(sys.argv[1])))
