"""The live table of an experiment: what is done, what runs, the score so far, and when it will end."""

import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from step_jepa.experiments.design import Cell
from step_jepa.experiments.run import finished


class Progress:
    """Shows itself from `with` to its end; where there is no terminal, a line for each cell that ends.

    cells     that are to be run
    of        how many there are with those that were finished before
    measure   the mean of which is shown
    """

    def __init__(self, cells: Sequence[Cell], of: int, measure: str, console: Console) -> None:
        self.cells, self.of, self.measure, self.console = cells, of, measure, console
        self.began = time.perf_counter()
        self.ended_cells = 0
        self.running: list[Cell] = []
        self.scores: dict[str, list[float]] = {cell.arm: [] for cell in cells}
        self.live = Live(get_renderable=self._table, console=console, refresh_per_second=1, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, cell: Cell) -> None:
        self.running.append(cell)

    def ended(self, cell: Cell, why: str | None) -> None:
        self.running.remove(cell)
        self.ended_cells += 1
        found = None if why else finished(cell)
        if found:
            self.scores[cell.arm].append(mean(found["measures"][self.measure]))
        score = f"{self.measure} {self.scores[cell.arm][-1]:.4f}" if found else f"failed: {why}"
        self.console.print(
            Text(f"{self.of - len(self.cells) + self.ended_cells} of {self.of}  {cell}: {score}{self._left()}")
        )

    def _left(self) -> str:
        if not self.ended_cells or self.ended_cells == len(self.cells):
            return ""
        each = (time.perf_counter() - self.began) / self.ended_cells
        return f"; {timedelta(seconds=round(each * (len(self.cells) - self.ended_cells)))} left"

    def _table(self) -> Table:
        table = Table(title=f"{self.ended_cells} of {len(self.cells)} cells{self._left()}")
        for column in ("arm", "finished now", f"mean {self.measure}", "running"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for arm, scores in self.scores.items():
            seeds = ", ".join(f"seed {cell.seed}" for cell in self.running if cell.arm == arm)
            table.add_row(Text(arm), str(len(scores)), f"{mean(scores):.4f}" if scores else "-", seeds)
        return table
