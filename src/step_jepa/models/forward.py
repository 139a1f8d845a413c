"""One forward pass over a batch of rows: what the language model says of each labelled token, and the views.

It knows no Trainer. Training, evaluation, `verify`, `audit`, `compare` and `benchmark` all call it.

Axes: B rows, L tokens of a row, N labelled tokens, P pairs, E of them with a boundary (entropy_filter.py), H hidden
size, V rows of the base model's vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from step_jepa.batches import attention
from step_jepa.batches.batch import Batch, is_flat
from step_jepa.batches.entropy_filter import boundaries, kept_pairs
from step_jepa.batches.views import (
    Trajectories,
    Views,
    at_least_float32,
    no_views,
    random_targets,
    read_trajectories,
    read_views,
)
from step_jepa.data.example import IGNORED
from step_jepa.errors import UserError
from step_jepa.models.lm_head import LMHead, cross_entropy, entropy
from step_jepa.models.target_encoder import TargetEncoder


@dataclass
class ForwardOutput:
    """What one forward pass gives.

    nll           (N,) at least float32, negative log-likelihood of each labelled token, in nats
    token_row     (N,) int64, the number of the row that the token is in, among those that the batch was made of
    views         of the batch's pairs; none where the batch has no place for them
    trajectories  states of the trunk at the ends of steps, where the batch asks for them
    entropies     (E,) in nats, of the next token at the boundaries of pairs that have one, without gradient; or (N,),
                  of what each labelled token is held against, where that is asked for
    """

    nll: Tensor
    token_row: Tensor
    views: Views
    trajectories: Trajectories | None = None
    entropies: Tensor | None = None


class TokenScores(NamedTuple):
    """What the language model says of a batch.

    nll        (N,) of each labelled token
    row        (N,) its row
    entropies  (E,) of the next token at the boundaries of pairs that have one, without gradient
    out        all that the model gave
    """

    nll: Tensor
    row: Tensor
    entropies: Tensor
    out: Any


def token_scores(
    model: nn.Module, batch: Batch, inputs: dict[str, Any], *, entropy_of_labels: bool = False
) -> TokenScores:
    """Of a batch. Logits are made where labels are, many of them in chunks, see `LMHead`."""
    labels = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]  # the label that each token predicts
    labelled = labels != IGNORED
    chosen = labels[labelled]
    rows = batch["token_row"][labelled] if is_flat(batch) else labelled.nonzero()[:, 0]
    ends = labelled.flatten().nonzero()[:, 0] if entropy_of_labels else boundaries(batch)
    head = LMHead(getattr(model, "module", model))
    if head.takes(len(chosen)):
        first = _first(labelled)
        out = model(logits_to_keep=first, **_with_last_states(inputs, model))
        states = out.hidden_states[-1]
        if head.agrees(states[first], out.logits.reshape(-1, out.logits.shape[-1])):
            if entropy_of_labels:
                nll, entropies = head.nll_and_entropy(states[labelled], chosen)
            else:
                nll, entropies = head.nll(states[labelled], chosen), head.entropy(states.flatten(0, 1)[ends])
            return TokenScores(nll, rows, entropies, out)
    out = model(logits_to_keep=labelled, **inputs)
    logits = at_least_float32(out.logits)
    return TokenScores(cross_entropy(logits, chosen), rows, entropy(logits.detach()[_nth(labelled, ends)]), out)


def _nth(labelled: Tensor, places: Tensor) -> Tensor:
    """Which of the labelled tokens each of the places is; all are, as steps lie in what is trained."""
    return labelled.flatten().cumsum(0)[places] - 1


def _first(labelled: Tensor) -> Tensor:
    """(B, L) bool, true at the first labelled token, or where there is none, at the first of all: one row of logits, as
    not all models can make none. It also shows a launcher's wrapper that the head is used, and tells whether the model
    does more than apply it."""
    place = torch.arange(labelled.numel(), device=labelled.device).view_as(labelled)
    return place == labelled.flatten().int().argmax()


def _with_last_states(inputs: dict[str, Any], model: Any) -> dict[str, Any]:
    """The inputs, with the states kept that the head is applied to."""
    last = hidden_state_index(getattr(model, "module", model), -1)
    return inputs | {"output_hidden_states": [*inputs.get("output_hidden_states", ()), last]}


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids, who sees whom, and where each token stands."""
    return {"input_ids": batch["input_ids"], "use_cache": False, **attention.attention_inputs(model, batch)}


class Forward:
    """A model's forward pass over rows with or without branches, and how its views are read.

    model           the model itself, not what a launcher wraps it in
    layer           place among its hidden states, 0 being the embeddings
    head            module that predicted views go through, or None
    predicts        whether each objective uses the predictor tokens; the head is for those
    target_encoder  who reads the targets in training, or None for the model itself
    detach_targets  in training no gradient flows to the targets
    random_seed     in training targets are random vectors from this seed, or None
    entropy_filter  in training, how many pairs of a row are kept of those with a boundary, or None
    """

    def __init__(
        self,
        model: Any,
        *,
        layer: int = -1,
        head: nn.Module | None = None,
        predicts: Sequence[bool] = (),
        target_encoder: TargetEncoder | None = None,
        detach_targets: bool = False,
        random_seed: int | None = None,
        entropy_filter: int | None = None,
    ) -> None:
        self.model, self.layer, self.head = model, hidden_state_index(model, layer), head
        self.predicts = torch.tensor(list(predicts), dtype=torch.bool)
        self.target_encoder, self.detach_targets, self.random_seed = target_encoder, detach_targets, random_seed
        self.entropy_filter = entropy_filter

    def __call__(
        self, batch: Batch, model: nn.Module | None = None, *, entropy_of_labels: bool = False
    ) -> ForwardOutput:
        """One pass.

        Args:
            batch: what a collator made, on the model's device.
            model: what is called in the model's place: a launcher's wrapper, whose hooks must run.
            entropy_of_labels: the entropies are those at all labelled tokens.
        """
        called, inputs = model or self.model, self.inputs(batch)
        with attention.reading(self.model, batch):
            nll, token_row, entropies, out = token_scores(called, batch, inputs, entropy_of_labels=entropy_of_labels)
        if "read_view" not in batch:
            return ForwardOutput(nll, token_row, no_views(nll))
        states = out.hidden_states[self.layer]
        return ForwardOutput(nll, token_row, self._views(states, batch), read_trajectories(states, batch), entropies)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with, but for the logits that are kept."""
        inputs = model_inputs(self.model, batch)
        return inputs | {"output_hidden_states": [self.layer]} if "read_view" in batch else inputs

    def hidden_states(self, batch: Batch) -> Tensor:
        """(B, L, H): what views are read from."""
        with attention.reading(self.model, batch):
            return self.model(logits_to_keep=1, **self.inputs(batch)).hidden_states[self.layer]

    def training(self, batch: Batch, model: nn.Module | None = None) -> ForwardOutput:
        """The same with the views that the loss is taken on: their targets are read as target encoder and control say,
        those of a target encoder before the model's own pass; some pairs are left out by `entropy_filter`."""
        targets = self._encoded_targets(batch)
        output = self(batch, model)
        views = self._with_targets(output.views, targets)
        if self.entropy_filter is not None:
            views = views[kept_pairs(batch, self.entropy_filter, output.entropies)]
        return replace(output, views=views)

    def _encoded_targets(self, batch: Batch) -> Tensor | None:
        if self.target_encoder is None or self.random_seed is not None:
            return None
        some = torch.zeros_like(batch["labels"], dtype=torch.bool)
        some[0, 0] = True  # one row of logits: none are wanted, but not all models can make none
        with attention.reading(self.model, batch):
            out = self.target_encoder(self.model, logits_to_keep=some, **self.inputs(batch))
        return read_views(out.hidden_states[self.layer], batch).target

    def _with_targets(self, views: Views, targets: Tensor | None) -> Views:
        if self.random_seed is not None:
            return random_targets(views, self.random_seed)
        if targets is not None:
            return replace(views, target=targets)
        return replace(views, target=views.target.detach()) if self.detach_targets else views

    def _views(self, states: Tensor, batch: Batch) -> Views:
        views = read_views(states, batch)
        if self.head is None:
            return views
        narrow = views.predicted.to(next(self.head.parameters()).dtype)  # as mixed precision under FSDP gathers it
        through_head = self.head(narrow).to(views.predicted)  # also without pairs: all ranks must use all parameters
        predicted_by_tokens = self.predicts.to(views.objective.device)[views.objective][:, None]
        return replace(views, predicted=torch.where(predicted_by_tokens, through_head, views.predicted))


def hidden_state_index(model: Any, layer: int) -> int:
    """The place of a layer among the hidden states, 0 being the embeddings. Raises UserError."""
    count = model.config.get_text_config().num_hidden_layers
    if not -count <= layer <= count:
        raise UserError(f"layer = {layer}: the model has {count}: give -{count} to -1, or 0 to {count}")
    return layer if layer >= 0 else count + 1 + layer
