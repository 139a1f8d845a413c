"""What cells will cost, from a few optimisation steps and answers of each arm."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from step_jepa.errors import UserError
from step_jepa.experiments.data import FILES
from step_jepa.experiments.design import Cell
from step_jepa.experiments.executor import run_all
from step_jepa.run_files import CELL_FILE, read_lines

STEPS, FEWEST_ANSWERS = 4, 8


@dataclass(frozen=True)
class Cost:
    """Seconds of a cell: to start (loading, tokenising), of a step and of an answer, and how many there are of each.
    With `same_flop` there are fewer steps than this."""

    start: float
    step: float
    steps: int
    answer: float
    answers: int

    @property
    def seconds(self) -> float:
        return self.start + self.step * self.steps + self.answer * self.answers


def probe(cells: Sequence[Cell], folder: Path, threads: int) -> dict[str, Cost]:
    """What a cell of each arm costs, by training its first one for 4 steps and letting it answer a batch of problems.
    Pairing is not timed. Raises UserError where an arm fails."""
    scratch = folder / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.arm, cell)
    small = [_small(cell, scratch / str(number)) for number, cell in enumerate(first.values())]
    costs = {}
    with closing(run_all(small, 1, threads, lambda _: None)) as ended:
        for cell, why in ended:
            if why:
                raise UserError(f"{cell.arm}: {why}")
            costs[cell.arm] = _cost(json.loads((cell.folder / CELL_FILE).read_text(encoding="utf-8")), first[cell.arm])
    shutil.rmtree(scratch)
    return costs


def _small(cell: Cell, folder: Path) -> Cell:
    options = {**cell.train, "max_steps": STEPS, "save_strategy": "no"}
    limit = min(_answers(cell), max(FEWEST_ANSWERS, cell.evaluation(overwrite=True).batch_size))
    return replace(cell, folder=folder, train=options, evaluate={**cell.evaluate, "limit": limit}, pairing=None)


def _cost(found: Mapping[str, Any], cell: Cell) -> Cost:
    seconds, answers = found["seconds"], len(found["measures"]["accuracy"])
    return Cost(
        start=seconds["all"] - seconds["train"] - seconds["answer"],
        step=seconds["train"] / found["steps"],
        steps=_steps(cell),
        answer=seconds["answer"] / answers,
        answers=_answers(cell),
    )


def _steps(cell: Cell) -> int:
    """Optimisation steps, on one device."""
    _, config = cell.training()
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    epochs = ceil(len(read_lines(cell.data / FILES["train"])) / batch) * config.num_train_epochs
    return config.max_steps if config.max_steps > 0 else ceil(epochs)


def _answers(cell: Cell) -> int:
    problems = len(read_lines(cell.data / FILES["test"]))
    return min(cell.evaluation(overwrite=True).limit or problems, problems)


def table(costs: dict[str, Cost], cells: Sequence[Cell], workers: int) -> Table:
    """What the cells that are left will take."""
    seconds = sum(costs[cell.arm].seconds for cell in cells) / workers
    shown = Table(title=f"{len(cells)} cells, about {timedelta(seconds=round(seconds))} with {workers} at a time")
    for column in ("arm", "seeds", "steps", "s each", "answers", "s each", "a cell"):
        shown.add_column(column, justify="left" if column in ("arm", "seeds") else "right", overflow="fold")
    for arm, cost in costs.items():
        seeds = " ".join(str(cell.seed) for cell in cells if cell.arm == arm)
        figures = (cost.steps, f"{cost.step:.2f}", cost.answers, f"{cost.answer:.2f}")
        shown.add_row(Text(arm), seeds, *map(str, figures), str(timedelta(seconds=round(cost.seconds))))
    return shown
