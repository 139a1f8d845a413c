"""The time that is left for runs, so that an experiment ends when it should."""

import time
from itertools import pairwise
from statistics import mean

from step_jepa.experiments.design import Run


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
