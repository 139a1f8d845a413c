"""Checks of what the model makes of rows with branches: predictor tokens, who sees whom, losses and gradients.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa.batches.batch import pair_count
from step_jepa.batches.views import Views
from step_jepa.data.example import IGNORED, Example, truncate
from step_jepa.losses import LOSSES, references
from step_jepa.losses.criterion import Criterion
from step_jepa.losses.regularisers import sigreg, vicreg
from step_jepa.models.predictors import base_rows, predictor_ids
from step_jepa.models.target_encoder import evaluating
from step_jepa.plurals import counted
from step_jepa.rows.branches import TRUNK, Pair, Row
from step_jepa.verification.checks.registry import CheckResult, register_check
from step_jepa.verification.compare import CompareArguments, compare_on
from step_jepa.verification.context import SIDES, Side, VerificationContext, count_pairs

OTHER_ATTENTION = "try --attn_implementation eager; else this model cannot be used"
REFERENCE_WIDTH = 64  # of the views that formulas are tried on: loops in numpy are slow, and no formula minds the width
DIRECTIONS = 256  # of sigreg
MOST_FORMULAS = 256  # pairs that formulas are tried on: infonce compares all with all
MOST_DENSE, DENSE_TOLERANCE = 1024, 1e-4  # tokens of a trunk whose dense mask is made; relative


@register_check("predictor tokens", remedy="please report this, with the model's name")
def check_predictors(context: VerificationContext) -> CheckResult:
    """Right before step i + 1 hang K predictor tokens: rows of a parameter of their own, at the positions that follow
    step i, seeing all up to there."""
    model, count = context.model, context.predictors
    ids = list(range(base_rows(model), base_rows(model) + count))
    fine = predictor_ids(model) == ids and _embeds_their_rows(model, ids)
    for place, example in enumerate(context.rows.examples):
        row = context.rows[place]
        fine &= all(_predictors_follow_the_step(example, row, pair, ids) for pair in row.pairs)
    views = counted(pair_count(context.batch), "predicted view")
    return CheckResult(fine, f"{views}, {counted(count, 'predictor token')} each")


@torch.no_grad()
def _embeds_their_rows(model: Any, ids: Sequence[int]) -> bool:
    """Whether the input embeddings give the parameter's rows, on the scale that they give their own on."""
    tokens = model.predictor_tokens
    if not ids:
        return tokens is None
    embedded = model.get_input_embeddings()(torch.tensor(ids, device=model.device))
    expected = (tokens.weight * tokens.scale).to(embedded)
    return expected.shape == embedded.shape and torch.allclose(embedded, expected)


def _predictors_follow_the_step(example: Example, row: Row, pair: Pair, ids: Sequence[int]) -> bool:
    end = example.steps[pair.step][0]
    (read, _), *_ = pair.predicted
    if not ids:
        return read == end - 1
    places = slice(read - len(ids) + 1, read + 1)
    return (
        row.input_ids[places] == list(ids)
        and row.position_ids[places] == list(range(end, end + len(ids)))
        and row.visible_length[places] == [end] * len(ids)
        and row.labels[places] == [IGNORED] * len(ids)
    )


# Who sees whom


@register_check("isolation, by perturbation", remedy=OTHER_ATTENTION)
def check_isolation(context: VerificationContext) -> CheckResult:
    """Other tokens wherever a view may not see: it must not move by a bit. Others in a target: it must move."""
    before, moved, unmoved = context.views(context.batch), 0, 0
    for pairs in context.pair_rounds:
        for side in SIDES:
            after = context.views(context.with_other_tokens(~_visible_places(context, pairs, side)))
            moved += int(_moved(before, after, side)[pairs].sum())
        after = context.views(context.with_other_tokens(_visible_places(context, pairs, "target")))
        unmoved += int((~_moved(before, after, "target"))[pairs].sum())
    figure = f"{context.views_looked_at}: {moved} moved with tokens that they may not see"
    return CheckResult(moved == unmoved == 0, figure + (f", {unmoved} did not move with their own" if unmoved else ""))


def _visible_places(context: VerificationContext, pairs: Sequence[int], side: Side) -> Tensor:
    """bool (B, L): all that these pairs' views, of different rows, may see; in the rows of others, everything."""
    return context.visible(pairs, side) | ~context.in_rows_of(pairs)


def _moved(before: Views, after: Views, side: Side) -> Tensor:
    """bool (P,): the views that are not the same to the bit."""
    return (_of_side(before, side) != _of_side(after, side)).any(-1)


def _of_side(views: Views, side: Side) -> Tensor:
    return views.predicted if side == "predicted" else views.target


@register_check("isolation, by gradient", remedy=OTHER_ATTENTION)
def check_gradients(context: VerificationContext) -> CheckResult:
    """The gradient of a view is 0 at every token that it may not see, and not at the token where it is read."""
    views, embeddings = _views_and_embeddings(context)
    direction = torch.randn(views.target.shape[1], generator=torch.Generator().manual_seed(0)).to(views.target)
    leaks = dead = 0
    for pairs in context.pair_rounds:
        for side in SIDES:
            projection = (_of_side(views, side)[pairs] @ direction).sum()
            (gradient,) = torch.autograd.grad(projection, embeddings, retain_graph=True)
            reached = gradient.abs().sum(-1) > 0
            leaks += len(context.token_rows[reached & ~context.visible(pairs, side)].unique())
            dead += int((~reached.flatten()[context.read_places[side][pairs]]).sum())
    figure = f"{context.views_looked_at}: {leaks} with a gradient to tokens that they may not see"
    return CheckResult(leaks == dead == 0, figure + (f", {dead} without any of their own" if dead else ""))


def _views_and_embeddings(context: VerificationContext) -> tuple[Views, Tensor]:
    """The batch's views, and the token embeddings (B, L, H) that they were computed from, to take gradients by."""
    outputs: list[Tensor] = []
    batch = context.batch  # set up before the hook, as it takes forward passes of its own

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        outputs.append(output.requires_grad_())  # under LoRA the embeddings are frozen

    hook = context.model.get_input_embeddings().register_forward_hook(keep)
    try:
        with evaluating(context.model):
            views = context.representation.forward(batch).views
    finally:
        hook.remove()
    return views, outputs[0]


@register_check("trunk undisturbed", remedy=OTHER_ATTENTION)
def check_trunk(context: VerificationContext) -> CheckResult:
    """Other branch tokens: no state of the trunk may move by a bit."""
    branch = context.batch["branch"]
    before = context.hidden_states(context.batch)
    after = context.hidden_states(context.with_other_tokens(branch > TRUNK))
    on_trunk = branch == TRUNK
    moved = int((before != after).any(-1)[on_trunk].sum())
    return CheckResult(not moved, f"{int(on_trunk.sum())} trunk states: {moved} moved with the branches' tokens")


@register_check("parts = dense mask", remedy="train with --attention dense, and please report this")
@torch.no_grad()
def check_parts(context: VerificationContext) -> CheckResult:
    """Views by attention in parts, as training reads them, against those by one mask of all tokens of a row, which is
    only made of rows that are not long."""
    representation = context.representation
    if not representation.flat:
        return CheckResult(None, f"attention is by a dense mask as it is: {representation.reason_to_pad}")
    examples = [truncate(example, MOST_DENSE) for example in context.rows.examples]
    rows = [context.rows.plan(example) for example in examples if count_pairs(example)]
    if not rows:
        return CheckResult(None, f"no row has a pair within {MOST_DENSE} tokens: the mask of more would be large")
    collators = (representation.collator, representation.padded_collator)
    by_parts, by_mask = ([context.views_of([row], collate) for row in rows] for collate in collators)
    difference = max(
        float((_both(parts) - _both(mask)).norm() / _both(mask).norm())
        for parts, mask in zip(by_parts, by_mask, strict=True)
    )
    cut = sum(len(example.input_ids) > MOST_DENSE for example in context.rows.examples)
    figure = f"views of {counted(len(rows), 'row')}: {difference:.1e} apart, relative"
    return CheckResult(
        difference < DENSE_TOLERANCE, figure + (f"; {counted(cut, 'row')} up to {MOST_DENSE} tokens" if cut else "")
    )


def _both(views: Views) -> Tensor:
    return torch.cat([views.predicted, views.target])


# Numbers


@register_check("one pass = two passes", remedy="see docs/trust.md")
def check_one_pass(context: VerificationContext) -> CheckResult:
    """The adapted implementation in one pass against the standalone one in two."""
    args = CompareArguments(
        model_name="", train_file=context.source, predictors=context.predictors, max_length=context.max_length
    )
    tokenizer = context.representation.tokenizer
    comparison = compare_on(context.model, context.chosen_records, args, processing_class=tokenizer)
    losses = f"LM loss {comparison.lm_loss.difference:.1e} apart, JEPA loss {comparison.jepa_loss.difference:.1e}"
    views, gradients = comparison.view_max_rel_diff, comparison.grad_max_rel_diff
    figure = f"{losses}, views {views:.1e}, gradients {gradients:.1e} relative"
    return CheckResult(
        comparison.agree, figure + ("" if comparison.agree else f"; first: {comparison.first_difference}")
    )


@register_check("losses", remedy="please report this, with the versions of torch and numpy")
def check_losses(context: VerificationContext) -> CheckResult:
    """Every loss and regulariser on the model's own views against its formula, in float64."""
    views = context.views(context.batch)
    predicted = views.predicted.double().cpu()[:MOST_FORMULAS, :REFERENCE_WIDTH]
    target = views.target.double().cpu()[:MOST_FORMULAS, :REFERENCE_WIDTH]
    differences = _loss_differences(predicted, target) | _regulariser_differences(torch.cat([predicted, target]))
    worst = max(differences, key=lambda name: differences[name])
    some = f", {MOST_FORMULAS} of {len(views)} pairs" if len(views) > MOST_FORMULAS else ""
    figure = f"{len(differences)} formulas in float64{some}: {differences[worst]:.1e} apart ({worst})"
    return CheckResult(differences[worst] < 1e-9, figure)


def _loss_differences(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """By loss; of centred ones the distance is another's, and the centring is not the criterion's."""
    problem = torch.arange(len(predicted))
    differences = {}
    for name, spec in LOSSES.items():
        if not spec.centred:
            expected = spec.reference(predicted.numpy(), target.numpy())
            differences[name] = _relative_difference(Criterion(name)(predicted, target, problem).numpy(), expected)
    return differences


def _regulariser_differences(views: Tensor) -> dict[str, float]:
    """By regulariser, of views (2P, H)."""
    drawn = torch.randn(
        views.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )  # as sigreg draws its directions from seed 0
    projected = (views @ F.normalize(drawn, dim=0)).numpy()
    sigreg_expected = np.mean([references.epps_pulley(column) for column in projected.T])
    return {
        "vicreg": _relative_difference(float(vicreg(views)), references.vicreg(views.numpy())),
        "sigreg": _relative_difference(float(sigreg(views, 0, DIRECTIONS)), sigreg_expected),
    }


def _relative_difference(value: Any, expected: Any) -> float:
    """The largest, of numbers or arrays."""
    return float(np.max(np.abs(value - expected) / np.maximum(np.abs(expected), 1e-12)))
