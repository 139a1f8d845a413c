"""What the terminal shows while runs are executed."""

import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from step_jepa.experiments.plan import Run
from step_jepa.experiments.run import finished_result
from step_jepa.plurals import counted


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
