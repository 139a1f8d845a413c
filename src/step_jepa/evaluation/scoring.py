"""What a model says of answers that were written, by it or another: one forward pass over each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

from step_jepa import terminal
from step_jepa.batches.batch import row_count, to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.data.records import with_answer
from step_jepa.surprise.measure import load, measure, readable
from step_jepa.surprise.scores import CENTRED, LENGTH, SURPRISE, of_answers
from step_jepa.training.held_out import row_sums
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation


@dataclass
class Scored:
    """Answers, as one pass over them tells them apart.

    scores       one for each; None for one that cannot be read
    tokens_read  by the model, of all of them
    """

    scores: list[float | None]
    tokens_read: int


Scorer = Callable[[list[dict[str, Any]]], Scored]  # of conversations that end in an answer


def score_samples(
    name: str, rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], scorer: Scorer
) -> int:
    """Put a score beside each sample of the rows (see `judge`). Texts that a problem has twice are read once.

    Returns:
        How many tokens were read.
    """
    answers: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        for sample in row["samples"]:
            text = sample["prediction"]
            answers.setdefault((row["index"], text), with_answer(records[row["index"]], text))
    scored = scorer(list(answers.values()))
    scores = dict(zip(answers, scored.scores, strict=True))
    for row in rows:
        for sample in row["samples"]:
            sample[name] = scores[row["index"], sample["prediction"]]
    return scored.tokens_read


@torch.no_grad()
def mean_nll(model: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], *, batch_size: int) -> Scored:
    """Negative log-likelihood of each answer as it would be trained on, the end of turn included: the mean over its
    tokens, in nats.

    Args:
        model: in any mode; it is moved to the process's device.
        tokenizer: the model's.
        records: conversations that end in an answer. One without text, or with a special token in it, cannot be read.
        batch_size: answers that are read at once.
    """
    representation = Representation(model.eval(), tokenizer, StepJEPAOptions(objective=["none"]), seed=0)
    examples = sorted(readable(representation, records), key=lambda each: -len(each.input_ids))
    scores: list[float | None] = [None] * len(records)
    if not examples:
        return Scored(scores, 0)
    rows = PlannedRows(examples, representation.evaluation_planner())
    representation.check_attention(rows)
    device = PartialState().device
    model.to(device)
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=representation.collator)
    means: list[float] = []
    for batch in terminal.bar(loader, label="reading answers", unit="batch"):
        moved = to_device(batch, device)
        sums = row_sums(representation.forward(moved), row_count(moved)).double()
        means += (sums[:, 0] / sums[:, 1]).tolist()
    for example, mean in zip(examples, means, strict=True):
        scores[example.index] = mean
    return Scored(scores, sum(len(example.input_ids) for example in examples))


def centred_surprise(
    model_name: str, records: Sequence[Mapping[str, Any]], *, batch_size: int, seed: int, **loading: Any
) -> Scored:
    """Latent surprise of each answer: the mean over its predicted steps, views centred over these answers or by the
    run's own means. An answer of one step has none.

    Args:
        model_name: hub id or folder, which is loaded anew, as its run reads views.
        records: conversations that end in an answer.
        batch_size: answers that are read at once.
        seed: of what was never trained.
        **loading: more arguments of `setup_model_and_tokenizer`.

    Raises:
        UserError: where the model cannot be had, or cannot take branches.
    """
    representation = load(model_name, seed=seed, **loading)
    steps = measure(representation, records, batch_size=batch_size)
    scores = of_answers(steps)[CENTRED].tolist()
    predicted = np.isfinite(steps.scores[SURPRISE])
    branches = steps.scores[LENGTH][predicted] + representation.options.predictors
    trunks = sum(len(example.input_ids) for example in readable(representation, records))
    return Scored([None if isnan(score) else score for score in scores], trunks + int(branches.sum()))
