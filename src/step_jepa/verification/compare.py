"""`step-jepa compare`: the standalone and the adapted implementation on the same rows and weights, without training.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal, NamedTuple

import torch
from accelerate import PartialState
from rich.table import Table
from torch import Tensor

from step_jepa import standalone, terminal
from step_jepa.batches.attention import may_see
from step_jepa.batches.attention_parts import sees
from step_jepa.batches.collate import Batch, PlannedRows, is_flat, to_device
from step_jepa.data.example import Example
from step_jepa.data.reading import read_records
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.plurals import counted
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation

logger = logging.getLogger(__name__)

LOSS_TOLERANCE, VIEW_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3, 1e-3
MOST_READ = 4096  # tokens of a row: the standalone implementation's masks grow with the square, and it makes all logits
LONG = 1024  # tokens; longer rows are read one by one, as padding takes a mask


@dataclass
class CompareArguments(TemplateOptions, ReadingOptions):
    """Which rows, and which setting of the loss (the first pair of steps, which both implementations know).

    Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    limit: int = option(32, help="How many rows.", least=1)
    predictors: int = option(1, help="K, the predictor tokens.", least=0)
    loss: Literal["cosine", "l2", "mse"] = option("cosine", help="Distance between views.")
    lbd: float = option(1.0, help="Weight of the JEPA loss in the gradient.", more_than=0)
    seed: int = option(42, help="Of the predictor rows.", least=0, most=MOST_SEED)
    batch_size: int = option(4, help="Rows per forward pass.", least=1)
    max_length: int | None = option(1024, help="Cut rows to whole steps within this many tokens.", least=1)
    attn_implementation: Literal["sdpa", "eager"] = option("sdpa", help="Attention backend.")
    json: bool = option(False, help="JSON on stdout instead of a table.")

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class LossOfBoth:
    """One loss, by either implementation."""

    standalone: float
    adapted: float

    @property
    def difference(self) -> float:
        """How far they are apart."""
        return abs(self.adapted - self.standalone)


@dataclass(frozen=True)
class Comparison:
    """What the two implementations give on the same rows: the JSON of `step-jepa compare`.

    n                  rows
    cut                how many of them are read up to MOST_READ tokens only
    view_max_rel_diff  largest difference of a view, relative to its norm
    grad_max_rel_diff  largest difference of a parameter's gradient, relative to its norm
    first_difference   the first thing that differs, in the order in which they are computed; None where they agree
    """

    n: int
    cut: int
    lm_loss: LossOfBoth
    jepa_loss: LossOfBoth
    view_max_rel_diff: float
    grad_max_rel_diff: float
    agree: bool
    first_difference: str | None


@dataclass(frozen=True)
class BatchPair:
    """The same rows for either implementation, on the model's device. start: the first one's place among all rows."""

    start: int
    adapted: Batch
    standalone: Batch


@dataclass(frozen=True)
class BatchOutput:
    """Of one batch: the sum of nll over its labelled tokens, the sum of distances over its pairs, its views (P, H)."""

    nll: Tensor
    distance: Tensor
    predicted: Tensor
    target: Tensor


@dataclass(frozen=True)
class LossWeights:
    """What a token's nll and a pair's distance count for in the means over all rows; and lbd."""

    per_token: float
    per_pair: float
    lbd: float


@dataclass(frozen=True)
class Outcome:
    """What one implementation gives on all rows: mean losses, every view (2P, H), and the gradient of the mean loss
    by parameter."""

    lm_loss: float
    jepa_loss: float
    views: Tensor
    gradients: dict[str, Tensor]


def run(args: CompareArguments) -> int:
    """Print the comparison; 1 where the two disagree. Raises UserError."""
    comparison = compare(args)
    if args.json:
        terminal.show_json(asdict(comparison))
    else:
        _show(comparison)
    if not comparison.agree:
        terminal.error(f"the implementations disagree: {comparison.first_difference}")
        return 1
    terminal.ends("", terminal.training(args.model_name, args.train_file))
    return 0


def compare(args: CompareArguments) -> Comparison:
    """Both implementations on the first rows of the file. Raises UserError."""
    return compare_on(args.model_name, list(islice(read_records(args.train_file, reading=args), args.limit)), args)


def compare_on(
    model: Any, records: Sequence[Mapping[str, Any]], args: CompareArguments, *, processing_class: Any = None
) -> Comparison:
    """Both implementations on these records.

    Args:
        model: hub id, folder, or module (then with `processing_class`).
        records: with `messages` and `steps`.
        args: the setting of the loss; `train_file` is what the records are called in messages.
        processing_class: the tokenizer, if not the model's own.

    Raises:
        UserError: where there is nothing to compare.
    """
    max_length = length_read(args.max_length)
    representation = _representation(model, args, processing_class)
    data = representation.prepare(records)
    logger.info("%s: %s", args.train_file, data)
    rows = _adapted_rows(representation, data.examples)
    examples = _standalone_examples(representation, records, max_length)
    batches = _batches(representation, rows, examples, args.batch_size)
    tokens, pairs = standalone.count([batch.standalone for batch in batches]).tolist()
    if not pairs:
        raise UserError(
            f"{args.train_file}: no row has two steps within max_length = {max_length}, so there is no view to compare"
        )
    first = _first_unequal_token(rows.examples, examples) or _first_unequal_mask(representation.model, batches)

    weights = LossWeights(1 / tokens, 1 / pairs, args.lbd)
    model = representation.model
    adapted_pass, adapted_batches = partial(_adapted_pass, representation), [batch.adapted for batch in batches]
    by_adapted = _outcome("adapted", model, adapted_batches, adapted_pass, weights)
    standalone_pass = partial(_standalone_pass, model, args.loss)
    standalone_batches = [batch.standalone for batch in batches]
    by_standalone = _outcome("standalone", model, standalone_batches, standalone_pass, weights)
    cut = 0 if max_length == args.max_length else data.cut
    return _comparison(by_adapted, by_standalone, first, n=len(examples), cut=cut)


def length_read(max_length: int | None) -> int:
    """How many tokens of a row are read, where a run trains on up to `max_length`."""
    return min(max_length or MOST_READ, MOST_READ)


# The same rows, for either


def _representation(model: Any, args: CompareArguments, processing_class: Any) -> Representation:
    template = {each.name: getattr(args, each.name) for each in fields(TemplateOptions)}
    options = StepJEPAOptions(
        predictors=args.predictors,
        loss=args.loss,
        lbd=args.lbd,
        max_length=length_read(args.max_length),
        **template,
    )
    loading = {"attn_implementation": args.attn_implementation}
    representation = Representation.load(
        model, options, seed=args.seed, processing_class=processing_class, model_init_kwargs=loading
    )
    representation.model.to(PartialState().device)
    return representation


def _adapted_rows(representation: Representation, examples: Sequence[Example]) -> PlannedRows:
    rows = PlannedRows(examples, representation.training_planner(examples))
    representation.check_attention(rows)
    return rows


def _standalone_examples(
    representation: Representation, records: Sequence[Mapping[str, Any]], max_length: int
) -> list[standalone.Example]:
    """Without those that not even one step fits into, as the adapted implementation leaves them out."""
    examples = []
    for place, record in enumerate(records):
        try:
            example = standalone.encode(representation.tokenizer, record["messages"], record["steps"], max_length)
        except ValueError as error:
            raise UserError(f"example {place}: the standalone implementation refuses it: {error}") from error
        if example is not None:
            examples.append(example)
    return examples


def _batches(
    representation: Representation, rows: PlannedRows, examples: Sequence[Any], batch_size: int
) -> list[BatchPair]:
    device, pad_id = representation.model.device, representation.tokenizer.pad_token_id
    batches = []
    for places in _ranges([len(example.input_ids) for example in rows.examples], batch_size):
        adapted_batch = representation.collator([rows[place] for place in places])
        standalone_batch = standalone.collate([examples[place] for place in places], pad_id)
        batches.append(BatchPair(places.start, to_device(adapted_batch, device), to_device(standalone_batch, device)))
    return batches


def _ranges(lengths: Sequence[int], batch_size: int) -> list[range]:
    """Rows of these lengths that are read together: as many as a batch has, long ones one by one."""
    ranges = []
    for long, run in groupby(range(len(lengths)), key=lambda place: lengths[place] > LONG):
        places, size = list(run), 1 if long else batch_size
        stop = places[-1] + 1
        ranges += [range(start, min(start + size, stop)) for start in range(places[0], stop, size)]
    return ranges


def _first_unequal_token(by_adapted: Sequence[Example], by_standalone: Sequence[Any]) -> str | None:
    """The first token, label or span that the two encode otherwise."""
    for place, (ours, theirs) in enumerate(zip(by_adapted, by_standalone, strict=True)):
        columns: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
            "token": (ours.input_ids, theirs.input_ids),
            "label": (ours.labels, theirs.labels),
            "span of step": (ours.steps, theirs.spans),
        }
        for name, (left, right) in columns.items():
            if left != right:
                return f"example {place}: {name} {_first_unequal_place(left, right)}"
    return None


def _first_unequal_place(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The first place where the two are not equal; the shorter one's length where they are up to there."""
    common = min(len(left), len(right))
    return next((place for place in range(common) if left[place] != right[place]), common)


def _first_unequal_mask(model: Any, batches: Sequence[BatchPair]) -> str | None:
    """The first view that sees something else by the one than by the other."""
    for batch in batches:
        if batch.standalone["second_step"].any() and (difference := _unequal_mask(model, batch)):
            return difference
    return None


def _unequal_mask(model: Any, batch: BatchPair) -> str | None:
    """The two rows have other columns, but each view must see the same tokens at the same positions."""
    ours, theirs = batch.adapted, standalone.second_rows(batch.standalone, *standalone.sizes(model))
    rows, columns = (ours[name].view(-1, 2) for name in ("read_row", "read_column"))  # a view is one state here
    for pair in range(len(columns)):
        for side, name in enumerate(("predicted", "target")):
            row = int(rows[pair, side])
            by_adapted = _visible_tokens(ours, row, _seen(ours, row, columns[pair, side]))
            by_standalone = _visible_tokens(theirs, pair, theirs["sees"][pair, theirs["read"][pair, side]])
            if by_adapted != by_standalone:
                return f"example {batch.start + _place_of_pair(ours, pair)}: the mask of its {name} view"
    return None


def _seen(batch: Batch, row: int, column: Tensor) -> Tensor:
    """bool (L,): what a token of a row of the batch sees there."""
    if is_flat(batch):
        return sees(batch, column[None], torch.arange(batch["input_ids"].shape[1], device=column.device))[0]
    branch, visible_length = (batch[name][row : row + 1] for name in ("branch", "visible_length"))
    return may_see(branch, visible_length)[0, column]


def _place_of_pair(batch: Batch, pair: int) -> int:
    """Which of the batch's rows the pair is of."""
    row, column = (batch[name].view(-1, 2)[pair, 0] for name in ("read_row", "read_column"))
    return int(batch["token_row"][row, column] if is_flat(batch) else row)


def _visible_tokens(batch: Batch, row: int, mask: Tensor) -> list[tuple[int, int]]:
    """(token, position) of each column of the row that the mask (L,) shows."""
    ids, positions = batch["input_ids"][row][mask], batch["position_ids"][row][mask]
    return list(zip(ids.tolist(), positions.tolist(), strict=True))


# Losses, views and gradients, by either


def _adapted_pass(representation: Representation, batch: Batch) -> BatchOutput:
    output = representation.forward(batch)
    distances = representation.jepa.distances(output.views, global_step=0)
    return BatchOutput(output.nll.sum(), distances.sum(), output.views.predicted, output.views.target)


def _standalone_pass(model: Any, loss: str, batch: Batch) -> BatchOutput:
    predicted, target = standalone.views(model, batch)
    distance = standalone.distances(predicted, target, loss).sum()
    nll, _ = standalone.language_model_pass(model, batch)
    return BatchOutput(nll, distance, predicted, target)


def _outcome(
    name: str, model: Any, batches: Sequence[Batch], forward: Callable[[Batch], BatchOutput], weights: LossWeights
) -> Outcome:
    lm_loss, jepa_loss, views = 0.0, 0.0, []
    model.zero_grad()
    for batch in terminal.bar(batches, label=name, unit="batch"):
        output = forward(batch)
        (output.nll * weights.per_token + weights.lbd * output.distance * weights.per_pair).backward()
        lm_loss += output.nll.item() * weights.per_token
        jepa_loss += output.distance.item() * weights.per_pair
        views.append(torch.stack([output.predicted, output.target], 1).flatten(0, 1).detach().cpu())
    gradients = {
        parameter: value.grad.cpu().clone() for parameter, value in model.named_parameters() if value.grad is not None
    }
    model.zero_grad()
    return Outcome(lm_loss, jepa_loss, torch.cat(views), gradients)


# How far they are apart


class _Difference(NamedTuple):
    """Of one quantity: how far the implementations are apart, and how far they may be."""

    name: str
    value: float
    tolerance: float


def _comparison(by_adapted: Outcome, by_standalone: Outcome, first: str | None, *, n: int, cut: int) -> Comparison:
    lm_loss = LossOfBoth(by_standalone.lm_loss, by_adapted.lm_loss)
    jepa_loss = LossOfBoth(by_standalone.jepa_loss, by_adapted.jepa_loss)
    view = _view_difference(by_adapted.views, by_standalone.views)
    gradients = _gradient_differences(by_adapted.gradients, by_standalone.gradients)
    worst = max(gradients, key=lambda name: gradients[name])
    differences = [
        _Difference("a view", view, VIEW_TOLERANCE),
        _Difference("the LM loss", lm_loss.difference, LOSS_TOLERANCE),
        _Difference("the JEPA loss", jepa_loss.difference, LOSS_TOLERANCE),
        _Difference(f"the gradient of {worst}", gradients[worst], GRADIENT_TOLERANCE),
    ]
    # What is not a number is within no tolerance.
    exceeded = [each.name for each in differences if not each.value <= each.tolerance]
    first = first or next(iter(exceeded), None)
    return Comparison(n, cut, lm_loss, jepa_loss, view, gradients[worst], first is None, first)


def _view_difference(by_adapted: Tensor, by_standalone: Tensor) -> float:
    if by_adapted.shape != by_standalone.shape:
        return 1.0
    return max((_relative(ours, theirs) for ours, theirs in zip(by_adapted, by_standalone, strict=True)), default=0.0)


def _gradient_differences(by_adapted: dict[str, Tensor], by_standalone: dict[str, Tensor]) -> dict[str, float]:
    """By parameter; 1 where only one of the two reaches it."""
    differences = {}
    for name in sorted(by_adapted.keys() | by_standalone.keys()):
        in_both = name in by_adapted and name in by_standalone
        differences[name] = _relative(by_adapted[name], by_standalone[name]) if in_both else 1.0
    return differences


def _relative(a: Tensor, b: Tensor) -> float:
    """norm(a - b) / norm(b); what is not a number counts as infinitely far."""
    difference = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
    return difference if math.isfinite(difference) else math.inf


def _show(comparison: Comparison) -> None:
    cut = f", {comparison.cut} of them up to {MOST_READ:,} tokens" if comparison.cut else ""
    table = Table(title=f"standalone against adapted, {counted(comparison.n, 'row')}{cut}")
    for column in ("", "standalone", "adapted", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name, loss in (("lm_loss", comparison.lm_loss), ("jepa_loss", comparison.jepa_loss)):
        table.add_row(name, f"{loss.standalone:.7f}", f"{loss.adapted:.7f}", f"{loss.difference:.1e}")
    table.add_row("views", "", "", f"{comparison.view_max_rel_diff:.1e} relative")
    table.add_row("gradients", "", "", f"{comparison.grad_max_rel_diff:.1e} relative")
    terminal.show(table)
    terminal.result({}, "they agree" if comparison.agree else "they DISAGREE")
