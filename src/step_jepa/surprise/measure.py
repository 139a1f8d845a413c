"""Latent surprise of each step of given answers, and what the same forward pass tells for nothing.

Axes: N labelled tokens of a batch, P pairs, H hidden size.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from step_jepa import terminal
from step_jepa.batches.batch import to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.batches.views import Trajectories, Views
from step_jepa.data.conversations import Conversation, to_conversation
from step_jepa.data.example import IGNORED, Example
from step_jepa.data.raw_record import Rejected
from step_jepa.data.template import TemplateOptions
from step_jepa.data.tokens import encode_rows
from step_jepa.losses.distances import cosine
from step_jepa.losses.registry import LOSSES
from step_jepa.models.builtin import resolve
from step_jepa.models.forward import ForwardOutput
from step_jepa.models.predictors import saved_predictors
from step_jepa.run_files.reading import run_options
from step_jepa.surprise.scores import (
    ENTROPY,
    FREE,
    INDEX,
    LATENT,
    LENGTH,
    NLL,
    NLL_MAX,
    PERSISTENCE,
    SHUFFLED,
    Array,
    StepScores,
)
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.jepa_state import JepaState
from step_jepa.training.representation import Representation
from step_jepa.training.saved_options import view_options

OBJECTIVE = "step_jepa"
Place = tuple[int, int]  # of a step: answer, and number among its steps

logger = logging.getLogger(__name__)


def surprise_options(
    model_name: str, views_like: str | None = None, template: TemplateOptions | None = None
) -> StepJEPAOptions:
    """How the steps of a model are read: each predicted from all that precedes it, views as its run reads them, or
    another model's; conversations framed as there, unless `template` asks for something else. Without trained predictor
    tokens, K = 0: the state of the last token predicts. Raises UserError."""
    folder = resolve(model_name)
    views = view_options(folder, template)
    if views_like is not None:
        head = views.get("predictor_head", "identity")  # which is each model's own
        views = view_options(resolve(views_like), template) | {"predictor_head": head}
    return StepJEPAOptions(
        pairs="all",
        max_length=None,
        loss=_centred_loss(run_options(folder)) or "cosine",
        predictors=_trained_predictors(model_name),
        **views,
    )


def _centred_loss(saved: Mapping[str, Any]) -> str | None:
    """The loss of a run whose running means are saved; None of another run, of which nothing is needed."""
    loss = LOSSES.get(saved.get("loss", ""))
    return loss.name if loss and loss.centred and OBJECTIVE in saved.get("objective", ()) else None


def load(
    model_name: str,
    *,
    views_like: str | None = None,
    asked: TemplateOptions | None = None,
    seed: int = 42,
    **loading: Any,
) -> Representation:
    """A model that `measure` takes.

    Args:
        model_name: hub id or folder, best of a run with the objective step_jepa.
        views_like: a model, to read views as its run does.
        asked: what frames conversations, where not as in that run.
        seed: of what is not trained, if anything.
        **loading: more arguments of `setup_model_and_tokenizer`.

    Raises:
        UserError: where the model cannot be had.
    """
    return Representation.load(model_name, surprise_options(model_name, views_like, asked), seed=seed, **loading)


def _trained_predictors(model_name: str) -> int:
    count = saved_predictors(model_name) or 0
    if not count:
        logger.warning(
            "%s has no trained predictor tokens: the state of its last token stands in for a prediction", model_name
        )
    return count


@torch.no_grad()
def measure(
    representation: Representation, records: Sequence[Mapping[str, Any]], *, batch_size: int = 16
) -> StepScores:
    """The scores of every step of every answer, in one forward pass of each batch.

    Args:
        representation: of `load`.
        records: conversations that end in an answer; without `steps` it is cut as `prepare` does. One that cannot be
            read, such as an answer without text or with a special token in it, has no steps.
        batch_size: answers that are read at once; scores do not depend on it.

    Raises:
        UserError: where the model cannot take the rows' branches.
    """
    examples = readable(representation, records)
    columns = _Columns(examples)
    if examples:
        views, trajectories = _read(representation, examples, batch_size, columns)
        columns.add_pairs(views, representation.jepa.state.cpu())
        columns.add_persistence(trajectories)
    return columns.scores(answers=len(records))


def readable(representation: Representation, records: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Those that can be read, each with its place among the records as its index."""
    places, conversations = [], []
    for place, record in enumerate(records):
        conversation = _conversation(record)
        if conversation is not None:
            places.append(place)
            conversations.append(conversation)
    encoded = encode_rows(representation.tokenizer, conversations, representation.encoding)
    found = zip(places, encoded, strict=True)
    return [replace(each, index=place) for place, each in found if not isinstance(each, Rejected)]


def _conversation(record: Mapping[str, Any]) -> Conversation | None:
    try:
        return to_conversation(record)
    except Rejected:
        return None


def _read(
    representation: Representation, examples: list[Example], batch_size: int, columns: "_Columns"
) -> tuple[Views, Trajectories]:
    """One pass over all of them, the longest first; what single tokens say goes into the columns."""
    device = PartialState().device
    representation.model.to(device)
    representation.jepa.state.to(device)
    rows = PlannedRows(sorted(examples, key=lambda each: -len(each.input_ids)), representation.evaluation_planner())
    representation.check_attention(rows)
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=representation.collator)
    views, trajectories = [], []
    for number, batch in enumerate(terminal.bar(loader, label="reading answers", unit="batch")):
        output = representation.forward(to_device(batch, device), entropy_of_labels=True)
        columns.add_tokens(rows.examples[number * batch_size :][:batch_size], output)
        assert output.trajectories is not None
        views.append(output.views.cpu())
        trajectories.append(output.trajectories.cpu())
    return Views.cat(views), Trajectories.cat(trajectories)


class _Columns:
    """Scores of all steps of some examples as they come in."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = {example.index: example for example in examples}
        places = [(example.index, step) for example in examples for step in range(len(example.steps))]
        self.rows = {place: row for row, place in enumerate(places)}
        self.values = {name: np.full(len(places), np.nan) for name in (*LATENT, *map(SHUFFLED.__add__, LATENT), *FREE)}

    def put(self, name: str, places: Sequence[Place], values: Sequence[float] | Array) -> None:
        """Values of these steps."""
        self.values[name][[self.rows[place] for place in places]] = values

    def add_tokens(self, examples: Sequence[Example], output: ForwardOutput) -> None:
        """What is a matter of single tokens, of the examples of a batch."""
        assert output.entropies is not None
        row = output.token_row.cpu().numpy()
        nll, entropy = output.nll.double().cpu().numpy(), output.entropies.double().cpu().numpy()
        for number, example in enumerate(examples):
            self._add_example(example, nll[row == number], entropy[row == number])

    def _add_example(self, example: Example, nll: Array, entropy: Array) -> None:
        """From the (n,) values of its labelled tokens, in order."""
        labelled = [token for token in range(1, len(example.labels)) if example.labels[token] != IGNORED]
        of_tokens = np.full((2, len(example.labels)), np.nan)
        of_tokens[:, labelled] = nll, entropy
        for step in example.filled_steps:
            start, stop = example.steps[step]
            row = self.rows[example.index, step]
            self.values[NLL][row], self.values[ENTROPY][row] = of_tokens[:, start:stop].mean(1)
            self.values[NLL_MAX][row] = of_tokens[0, start:stop].max()
            self.values[LENGTH][row], self.values[INDEX][row] = stop - start, step

    def add_pairs(self, views: Views, state: JepaState) -> None:
        """What is a matter of a predicted and a target view."""
        places = list(zip(views.problem.tolist(), views.step.tolist(), strict=True))
        for name, (predicted, target) in zip(
            LATENT, ((views.predicted, views.target), _centred(views, state)), strict=True
        ):
            self.put(name, places, cosine(predicted, target).double().numpy())
            self.put(SHUFFLED + name, places, _to_others(predicted, target, views.problem))

    def add_persistence(self, states: Trajectories) -> None:
        """What is a matter of the trunk's states at the ends of steps."""
        order = np.lexsort((states.place.numpy(), states.problem.numpy()))
        problem, place, states_in_order = states.problem[order], states.place[order], states.states[order]
        follows = problem[1:] == problem[:-1]
        distance = cosine(states_in_order[:-1], states_in_order[1:])[follows]
        places = [
            (answer, self.examples[answer].filled_steps[number])
            for answer, number in zip(problem[1:][follows].tolist(), place[1:][follows].tolist(), strict=True)
        ]
        self.put(PERSISTENCE, places, distance.double().numpy())

    def scores(self, answers: int) -> StepScores:
        """All of them."""
        places = np.array(list(self.rows), dtype=int).reshape(-1, 2)
        return StepScores(places[:, 0], places[:, 1], self.values, answers)


def _centred(views: Views, state: JepaState) -> tuple[Tensor, Tensor]:
    """Both views less their means: those that the run saved, or else of these very views."""
    if len(state.means):
        return state.centred(OBJECTIVE, views)
    return views.predicted - views.predicted.mean(0), views.target - views.target.mean(0)


def _to_others(predicted: Tensor, target: Tensor, answer: Tensor) -> Array:
    """(P,) mean distance to the targets of the answer's other pairs; nan where there is none."""
    predicted, target = F.normalize(predicted.double(), dim=-1), F.normalize(target.double(), dim=-1)
    place = torch.unique(answer, return_inverse=True)[1]
    sums = target.new_zeros(int(place.max()) + 1 if len(place) else 0, target.shape[1]).index_add_(0, place, target)
    others = torch.bincount(place)[place] - 1
    products = (predicted * (sums[place] - target)).sum(-1)
    return np.where(others > 0, 1 - products / others.clamp(min=1), np.nan)
