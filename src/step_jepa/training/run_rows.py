"""The rows of a run: what it trains on and is measured on, planned, counted, and checked against its options."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from step_jepa.batches.budget import TokenBudgetSampler
from step_jepa.batches.planned_rows import PlannedRows, PlannedStream
from step_jepa.data.dataset import DataSource, PreparedData, Stream
from step_jepa.data.examples import Examples
from step_jepa.data.splits import TRAIN, VALIDATION, Splits
from step_jepa.errors import UserError
from step_jepa.losses import LOSSES
from step_jepa.objectives.planner import unchanged_pairs
from step_jepa.plurals import counted
from step_jepa.rows.branches import Row
from step_jepa.training.compute import shorten
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.representation import Representation
from step_jepa.training.run_metadata import named
from step_jepa.training.validation import check_stream

logger = logging.getLogger(__name__)


class RunRows:
    """What a run trains on and is measured on, made from its data.

    counts   of the training data, as far as they are known: examples, steps, pairs, cut, left_out
    digest   of the training examples in their order
    """

    def __init__(self, representation: Representation, args: RepresentationConfig) -> None:
        self.representation, self.args = representation, args
        self.counts: dict[str, int] = {}
        self.digest: str | None = None

    def training(self, data: DataSource | None) -> PlannedRows | PlannedStream | None:
        """What is trained on. Raises UserError."""
        if data is None or isinstance(data, PlannedRows):
            return data
        if self.args.streaming or isinstance(data, Stream):
            return self._stream(data)
        prepared = self._prepared(data, TRAIN)
        rows = PlannedRows(prepared.examples, self.representation.training_planner(prepared.examples))
        self.representation.check_attention(rows)
        check_row_count(self.args, len(rows))
        self.digest = Examples.of(rows.examples).digest()
        pairs = self._check_training_rows(rows) if self.representation.branching else 0
        self.counts = {
            "examples": len(rows),
            "steps": int(Examples.of(rows.examples).step_counts().sum()),
            "pairs": pairs,
            "cut": prepared.cut,
            "left_out": prepared.left_out,
        }
        return rows

    def evaluation(self, data: DataSource) -> PlannedRows:
        """What held-out figures are taken on. Raises UserError."""
        return self.representation.evaluation_rows(self._prepared(data, VALIDATION))

    def budgeted_batches(self, rows: PlannedRows | PlannedStream | None) -> TokenBudgetSampler | None:
        """Of --max_tokens_per_batch. Raises UserError where batches cannot be filled by tokens."""
        budget = self.args.max_tokens_per_batch
        if budget is None or not isinstance(rows, PlannedRows):
            return None
        if reason := self.representation.reason_to_pad:
            raise UserError(f"--max_tokens_per_batch fills batches without padding, and rows are padded: {reason}")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return TokenBudgetSampler(rows, budget, seed=seed, rank=self.args.process_index, ranks=self.args.world_size)

    def _stream(self, data: DataSource) -> PlannedStream:
        """As the data lies, or through the buffer that --streaming brings along."""
        check_stream(self.args)
        # The dispatcher would join batches of all ranks at dimension 0, which flat ones do not have.
        accelerator_config: Any = self.args.accelerator_config
        accelerator_config.dispatch_batches = False
        in_order = not self.args.streaming or self.args.train_sampling_strategy == "sequential"
        rows = self.representation.stream(data, buffer=1 if in_order else self.args.shuffle_buffer)
        if self.representation.branching:
            counts = self._kept_counts(self._pair_counts(map(rows.plan, rows.examples)))
            self._check_negatives(counts)
            if self.args.should_log and not any(map(sum, counts)):
                logger.warning("none of the first %d rows of the stream has a pair of views", len(rows.examples))
        return rows

    def _prepared(self, data: DataSource, splits: Splits) -> PreparedData:
        with self.args.main_process_first(desc="tokenising"):  # the others read what it keeps
            prepared = self.representation.prepare(data, splits, num_proc=self.args.dataset_num_proc)
        if self.args.should_log:
            name, length = named(data), self.args.max_length
            logger.info("%s: %s", name, prepared)
            if prepared.cut:
                count = counted(prepared.cut, "example")
                logger.warning("%s: cut to whole steps within max_length %s: %s", name, length, count)
        return prepared

    def _check_training_rows(self, rows: PlannedRows) -> int:
        """The number of pairs. Says what is left out, and shortens the run for `same_flop`. Raises UserError where the
        data cannot serve an objective."""
        planned = self._pair_counts(map(rows.plan, rows.sample))
        kept = self._kept_counts(planned)
        for objective in self.representation.objectives:
            objective.check_data(rows.examples)
        self._check_negatives(kept)
        pairs = sum(map(sum, planned))
        same = unchanged_pairs(rows.plan, rows.sample)
        if same and same == pairs:
            raise UserError(f"--control {self.args.control} changes no pair of this data: give other examples, or more")
        if self.args.same_flop:
            plain, branching = rows.token_counts()
            shorten(self.args, plain, branching, target_encoder=self.representation.forward.target_encoder is not None)
        if self.args.should_log:
            self._say_what_is_left_out(rows, pairs, same)
        return round(sum(map(sum, kept)) * len(rows) / len(rows.sample))

    def _pair_counts(self, rows: Iterable[Row]) -> list[list[int]]:
        """For each objective, how many pairs each of the rows has."""
        counts: list[list[int]] = [[] for _ in self.representation.objectives]
        for row in rows:
            for number, of_rows in enumerate(counts):
                of_rows.append(sum(pair.objective == number for pair in row.pairs))
        return counts

    def _kept_counts(self, counts: list[list[int]]) -> list[list[int]]:
        """The same of the pairs that the loss keeps."""
        kept = []
        for of_rows, objective in zip(counts, self.representation.objectives, strict=True):
            most = objective.entropy_filter
            kept.append(of_rows if most is None else [min(count, most) for count in of_rows])
        return kept

    def _check_negatives(self, counts: list[list[int]]) -> None:
        objectives = zip(counts, self.representation.objectives, strict=True)
        check_negatives(self.args, [of_rows for of_rows, objective in objectives if objective.loss is None])

    def _say_what_is_left_out(self, rows: PlannedRows, pairs: int, same: int) -> None:
        sample = rows.sample
        if len(sample) < len(rows):
            logger.info("pairs and tokens are counted on %d of the %d rows, evenly spaced", len(sample), len(rows))
        logger.info("%s of views", counted(round(pairs * len(rows) / len(sample)), "pair"))
        for objective in self.representation.objectives:
            for reason, count in objective.left_out(sample).items():
                logger.info("left out: %s %s", counted(count, "pair"), reason)
        if same:
            logger.warning("control %s leaves %d of %d pairs as they are", self.args.control, same, pairs)
        if not pairs:
            logger.warning("no row has a pair of views: there is only a language-model loss")


def check_row_count(args: Any, count: int) -> None:
    """Raises UserError where dataloader_drop_last would drop all of so many training rows."""
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and count < batch:
        rows = counted(count, "row")
        raise UserError(f"--dataloader_drop_last drops all of {rows}, as a batch has {batch}: leave it out")


def check_negatives(args: Any, pairs_of_examples: Sequence[Sequence[int]]) -> None:
    """Whether a contrastive loss has anything to contrast with, counted on the rows as they are planned.

    Args:
        args: of the run.
        pairs_of_examples: for every objective that --loss is for, the number of pairs of each row.

    Raises:
        UserError: where it would train on nothing.
    """
    if not LOSSES[args.loss].contrastive or not pairs_of_examples:
        return
    single = all(max(counts, default=0) <= 1 for counts in pairs_of_examples)
    if min(args.per_device_train_batch_size * args.world_size, len(pairs_of_examples[0])) == 1:
        if single:
            raise UserError(
                f"--loss {args.loss} has no negatives with one pair in a batch: use a larger one, or --pairs all"
            )
        if args.negatives == "others":
            raise UserError("--negatives others has none with one example in a batch: use a larger one")
    if single and args.negatives == "same":
        raise UserError("--negatives same needs several pairs of an example: use --objective step_jepa --pairs all")
