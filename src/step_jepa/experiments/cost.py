"""What cells will cost, from a few optimisation steps and answers of each arm."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from math import ceil
from pathlib import Path

from rich.table import Table

from step_jepa.errors import UserError
from step_jepa.experiments.cell import RESULT
from step_jepa.experiments.design import TEST, TRAIN, Cell
from step_jepa.experiments.pool import run_all

STEPS, ANSWERS = 4, 8


@dataclass(frozen=True)
class Cost:
    """Seconds of a cell: of one optimisation step, of one answer, and how many there are of each."""

    step: float
    steps: int
    answer: float
    answers: int

    @property
    def seconds(self) -> float:
        return self.step * self.steps + self.answer * self.answers


def probe(cells: Sequence[Cell], folder: Path, threads: int) -> dict[str, Cost]:
    """What a cell of each arm costs, by training its first one for 4 steps and letting it answer 8 problems; what
    start-up takes is counted with the answers. Pairing is not timed. Raises UserError where an arm fails."""
    scratch = folder / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.arm, cell)
    small = [_small(cell, scratch / str(number)) for number, cell in enumerate(first.values())]
    costs = {}
    for cell, why in run_all(small, 1, threads, lambda _: None):
        if why:
            raise UserError(f"{cell.arm}: {why}")
        found = json.loads((cell.folder / RESULT).read_text(encoding="utf-8"))
        whole = first[cell.arm]
        seconds, answers = found["seconds"], len(found["measures"]["accuracy"])
        costs[cell.arm] = Cost(seconds["train"] / STEPS, _steps(whole), seconds["evaluate"] / answers, _answers(whole))
    shutil.rmtree(scratch)
    return costs


def _small(cell: Cell, folder: Path) -> Cell:
    options = {**cell.options, "max_steps": STEPS, "save_strategy": "no"}
    return replace(cell, folder=folder, options=options, evaluate={**cell.evaluate, "limit": ANSWERS}, pairing=None)


def _steps(cell: Cell) -> int:
    """Optimisation steps, on one device."""
    _, config = cell.training()
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    epochs = ceil(_lines(cell.data / TRAIN) / batch) * config.num_train_epochs
    return config.max_steps if config.max_steps > 0 else ceil(epochs)


def _answers(cell: Cell) -> int:
    return min(cell.evaluation().limit or _lines(cell.data / TEST), _lines(cell.data / TEST))


def _lines(path: Path) -> int:
    with path.open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def table(costs: dict[str, Cost], cells: Sequence[Cell], workers: int) -> Table:
    """What the cells that are left will take."""
    seconds = sum(costs[cell.arm].seconds for cell in cells) / workers
    shown = Table(title=f"{len(cells)} cells, about {timedelta(seconds=round(seconds))} with {workers} at a time")
    for column in ("arm", "seeds", "steps", "s each", "answers", "s each", "a cell"):
        shown.add_column(column, justify="left" if column in ("arm", "seeds") else "right", overflow="fold")
    for arm, cost in costs.items():
        seeds = " ".join(str(cell.seed) for cell in cells if cell.arm == arm)
        figures = (cost.steps, f"{cost.step:.2f}", cost.answers, f"{cost.answer:.2f}")
        shown.add_row(arm, seeds, *map(str, figures), str(timedelta(seconds=round(cost.seconds))))
    return shown
