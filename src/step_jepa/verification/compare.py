"""`step-jepa compare`: the standalone and the adapted implementation on the same rows and weights, without training."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from step_jepa import standalone
from step_jepa.adapted import untrained
from step_jepa.batches.attention import may_see
from step_jepa.batches.collate import Batch
from step_jepa.data.sources import read_records
from step_jepa.errors import UserError

LOSS_TOLERANCE, VIEW_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3, 1e-3


@dataclass
class CompareArguments:
    """Which rows, and which setting of the loss (the first pair of steps, which both implementations know)."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    limit: int = field(default=32, metadata={"help": "How many rows."})
    predictors: int = field(default=1, metadata={"help": "K, the predictor tokens."})
    loss: Literal["cosine", "l2", "mse"] = field(default="cosine", metadata={"help": "Distance between views."})
    lbd: float = field(default=1.0, metadata={"help": "Weight of the JEPA loss in the gradient."})
    seed: int = field(default=42, metadata={"help": "Of the predictor rows."})
    batch_size: int = field(default=4, metadata={"help": "Rows per forward pass."})
    attn_implementation: Literal["sdpa", "eager"] = field(default="sdpa", metadata={"help": "Attention backend."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of a table."})


@dataclass
class Outcome:
    """Sums over all rows: nll and distance; every view (2P, H); the gradient of the mean loss, by parameter."""

    lm_loss: float
    jepa_loss: float
    views: Tensor
    gradients: dict[str, Tensor]


def run(args: CompareArguments) -> int:
    """Print the comparison; 1 where the two disagree. Raises UserError."""
    if args.limit < 1 or args.batch_size < 1 or args.lbd <= 0:
        raise UserError("--limit, --batch_size and --lbd must be more than 0")
    result = compare(args)
    if args.json:
        print(json.dumps(result))
    else:
        _show(result)
    if not result["agree"]:
        print(f"step-jepa: the implementations disagree: {result['first_difference']}", file=sys.stderr)
    return 0 if result["agree"] else 1


def compare(args: CompareArguments) -> dict[str, Any]:
    """Both implementations on the first rows of the file. Raises UserError."""
    return compare_on(args.model_name, list(islice(read_records(args.train_file), args.limit)), args)


def compare_on(
    model: Any, records: list[Any], args: CompareArguments, *, processing_class: Any = None
) -> dict[str, Any]:
    """Both on these records: figures, whether they agree, and the first thing that differs. A model that is a module
    comes with its tokenizer. Raises UserError."""
    options: dict[str, Any] = {
        "predictors": args.predictors,
        "loss": args.loss,
        "lbd": args.lbd,
        "seed": args.seed,
        "max_length": None,
    }
    options["model_init_kwargs"] = {"attn_implementation": args.attn_implementation}
    with untrained(model, data=records, processing_class=processing_class, **options) as trainer:
        model, ours = trainer.model.eval(), trainer.train_dataset
        theirs = [_by_standalone(trainer.processing_class, index, record) for index, record in enumerate(records)]
        first = _first_token(ours.examples, theirs)
        starts = range(0, len(records), args.batch_size)
        batches = [_batches(trainer, theirs, slice(start, start + args.batch_size)) for start in starts]
        tokens, pairs = standalone.count([batch for _, batch in batches]).tolist()
        if not pairs:
            raise UserError(f"{args.train_file}: no row has two steps, so there is no view to compare")
        if first is None:
            found = (_first_mask(model, *pair, start) for start, pair in zip(starts, batches, strict=True))
            first = next(filter(None, found), None)
        weights = (1 / tokens, 1 / pairs, args.lbd)
        a = _outcome("adapted", model, [pair[0] for pair in batches], partial(_adapted, trainer), weights)
        b = _outcome("standalone", model, [pair[1] for pair in batches], partial(_standalone, args.loss), weights)
        return _verdict(a, b, len(records), first)


def _by_standalone(tokenizer: Any, index: int, record: Mapping[str, Any]) -> Any:
    try:
        return standalone.encode(tokenizer, record["messages"], record["steps"], sys.maxsize)
    except ValueError as error:
        raise UserError(f"example {index}: the standalone implementation refuses it: {error}") from None


def _batches(trainer: Any, theirs: list, rows: slice) -> tuple[Batch, Batch]:
    """The same rows for either implementation, on the model's device."""
    ours = [trainer.train_dataset[row] for row in range(*rows.indices(len(theirs)))]
    pad = trainer.processing_class.pad_token_id
    adapted, alone = trainer.data_collator(ours), standalone.collate(theirs[rows], pad)
    return trainer._prepare_inputs(adapted), trainer._prepare_inputs(alone)


def _adapted(trainer: Any, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of nll, sum of distances, predicted (P, H), target (P, H)."""
    terms = trainer.terms(model, batch)
    return terms.nll.sum(), trainer.distances(terms.views).sum(), terms.views.predicted, terms.views.target


def _standalone(loss: str, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    predicted, target = standalone.views(model, batch)
    distance = standalone.distances(predicted, target, loss).sum()
    return standalone.language_model_pass(model, batch)[0], distance, predicted, target


def _outcome(
    name: str, model: Any, batches: list[Batch], parts: Callable, weights: tuple[float, float, float]
) -> Outcome:
    per_token, per_pair, lbd = weights
    lm, jepa, views = 0.0, 0.0, []
    model.zero_grad()
    for batch in tqdm(batches, desc=name, leave=False):
        nll, distance, predicted, target = parts(model, batch)
        (nll * per_token + lbd * distance * per_pair).backward()
        lm, jepa = lm + nll.item() * per_token, jepa + distance.item() * per_pair
        views.append(torch.stack([predicted, target], 1).flatten(0, 1).detach().cpu())
    gradients = {key: p.grad.cpu().clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Outcome(lm, jepa, torch.cat(views), gradients)


def _first_token(ours: list, theirs: list) -> str | None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name, left, right in (
            ("token", a.input_ids, b.input_ids),
            ("label", a.labels, b.labels),
            ("span of step", a.steps, b.spans),
        ):
            if left != right:
                places = (place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
                return f"example {index}: {name} {next(places, min(len(left), len(right)))}"
    return None


def _first_mask(model: Any, ours: Batch, theirs: Batch, start: int) -> str | None:
    """What each view sees, as (token, position) pairs: the two rows have other columns, but must show the same."""
    if not theirs["second_step"].any():
        return None
    mine = may_see(ours["branch"], ours["visible_length"])
    other = standalone.second_rows(theirs, *standalone.sizes(model))
    columns = ours["reads"][:, 2].view(-1, 2).tolist()  # every view is one state here
    for number, row in enumerate(ours["pairs"][:, 0].tolist()):
        for side, name in enumerate(("predicted", "target")):
            a = mine[row, columns[number][side]]
            b = other["sees"][number, other["read"][number, side]]
            seen = [
                list(zip(ids[mask].tolist(), positions[mask].tolist(), strict=True))
                for ids, positions, mask in (
                    (ours["input_ids"][row], ours["position_ids"][row], a),
                    (other["input_ids"][number], other["position_ids"][number], b),
                )
            ]
            if seen[0] != seen[1]:
                return f"example {start + row}: the mask of its {name} view"
    return None


def _relative(a: Tensor, b: Tensor) -> float:
    """norm(a - b) / norm(b); what is not a number counts as infinitely far."""
    difference = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
    return difference if math.isfinite(difference) else math.inf


def _verdict(a: Outcome, b: Outcome, n: int, first: str | None) -> dict[str, Any]:
    same_views = a.views.shape == b.views.shape
    view = max((_relative(x, y) for x, y in zip(a.views, b.views, strict=True)), default=0.0) if same_views else 1.0
    names = a.gradients.keys() | b.gradients.keys()
    gradient = {
        name: _relative(a.gradients[name], b.gradients[name]) if name in a.gradients and name in b.gradients else 1.0
        for name in sorted(names)
    }
    worst = max(gradient, key=lambda name: gradient[name])
    checks = [
        (view <= VIEW_TOLERANCE, "a view"),
        (abs(a.lm_loss - b.lm_loss) <= LOSS_TOLERANCE, "the LM loss"),
        (abs(a.jepa_loss - b.jepa_loss) <= LOSS_TOLERANCE, "the JEPA loss"),
        (gradient[worst] <= GRADIENT_TOLERANCE, f"the gradient of {worst}"),
    ]
    first = first or next((name for fine, name in checks if not fine), None)
    return {
        "n": n,
        "lm_loss": {"standalone": b.lm_loss, "adapted": a.lm_loss},
        "jepa_loss": {"standalone": b.jepa_loss, "adapted": a.jepa_loss},
        "view_max_rel_diff": view,
        "grad_max_rel_diff": gradient[worst],
        "agree": first is None,
        "first_difference": first,
    }


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"standalone against adapted, {result['n']} rows")
    for column in ("", "standalone", "adapted", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("lm_loss", "jepa_loss"):
        a, b = result[name]["adapted"], result[name]["standalone"]
        table.add_row(name, f"{b:.7f}", f"{a:.7f}", f"{abs(a - b):.1e}")
    table.add_row("views", "", "", f"{result['view_max_rel_diff']:.1e} relative")
    table.add_row("gradients", "", "", f"{result['grad_max_rel_diff']:.1e} relative")
    Console(highlight=False).print(table, "they agree" if result["agree"] else "they DISAGREE")
