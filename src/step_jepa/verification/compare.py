"""`step-jepa compare`: the standalone and the adapted implementation on the same rows and weights, without training.

Axes: B rows, L tokens of a row, P pairs, H hidden size.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from typing import Any, Literal

from accelerate import PartialState
from rich.table import Table

from step_jepa import standalone, terminal
from step_jepa.data.reading import read_records
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.plurals import counted
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation
from step_jepa.verification.agreement import Comparison, comparison_of
from step_jepa.verification.first_difference import first_unequal_mask, first_unequal_token
from step_jepa.verification.outcomes import LossWeights, adapted_pass, outcome, standalone_pass
from step_jepa.verification.same_rows import adapted_rows, batches_of_both, standalone_examples

logger = logging.getLogger(__name__)
MOST_READ = 4096  # tokens of a row: the standalone implementation's masks grow with the square, and it makes all logits


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
    rows = adapted_rows(representation, data.examples)
    examples = standalone_examples(representation, records, max_length)
    batches = batches_of_both(representation, rows, examples, args.batch_size)
    tokens, pairs = standalone.count([batch.standalone for batch in batches]).tolist()
    if not pairs:
        raise UserError(
            f"{args.train_file}: no row has two steps within max_length = {max_length}, so there is no view to compare"
        )
    first = first_unequal_token(rows.examples, examples) or first_unequal_mask(representation.model, batches)

    weights = LossWeights(1 / tokens, 1 / pairs, args.lbd)
    model = representation.model
    by_adapted = outcome(
        "adapted", model, [batch.adapted for batch in batches], partial(adapted_pass, representation), weights
    )
    by_standalone = outcome(
        "standalone",
        model,
        [batch.standalone for batch in batches],
        partial(standalone_pass, model, args.loss),
        weights,
    )
    cut = 0 if max_length == args.max_length else data.cut
    return comparison_of(by_adapted, by_standalone, first, n=len(examples), cut=cut)


def length_read(max_length: int | None) -> int:
    """How many tokens of a row are read, where a run trains on up to `max_length`."""
    return min(max_length or MOST_READ, MOST_READ)


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
