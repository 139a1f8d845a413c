"""How uncertain a model is, before it is trained, of the token after each step of all examples."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from step_jepa import terminal
from step_jepa.batches.batch import Batch, to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.data.example import IGNORED, Example
from step_jepa.models.forward import Forward
from step_jepa.objectives.base import Objective
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import Pair, Row
from step_jepa.rows.controls import SamplingContext
from step_jepa.rows.least_certain import StepEntropies

ROWS = 8  # of a batch


@dataclass
class StepEnds(Objective):
    """The ends of steps that others follow, without views; no other token of the row is predicted."""

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        row.labels = [IGNORED] * len(row.labels)
        for step in example.filled_steps[:-1]:
            after = example.steps[step][1]
            row.labels[after] = row.input_ids[after]
            yield Pair([], [], step=step, boundary=after - 1)


@torch.no_grad()
def step_entropies(
    forward: Forward, collator: Callable[[list[Row]], Batch], examples: Sequence[Example]
) -> StepEntropies:
    """Of each example's index, by step, in nats; nan where no step follows. Ranks share the work.

    Args:
        forward: of the model, which is moved to the process's device.
        collator: what makes its batches.
        examples: all of them, on every rank.
    """
    state = PartialState()
    rows = PlannedRows(examples[state.process_index :: state.num_processes], Planner([StepEnds()]))
    found = {example.index: [math.nan] * len(example.steps) for example in rows.examples}
    training = forward.model.training
    forward.model.to(state.device).eval()
    loader = DataLoader(rows, batch_size=ROWS, collate_fn=collator)
    for batch in terminal.bar(loader, label="entropies where steps end", unit="batch"):
        output = forward(to_device(batch, state.device))
        assert output.entropies is not None
        places = zip(output.views.problem.tolist(), output.views.step.tolist(), strict=True)
        for (problem, step), entropy in zip(places, output.entropies.tolist(), strict=True):
            found[problem][step] = entropy
    forward.model.train(training)
    return dict(gather_object(list(found.items())))
