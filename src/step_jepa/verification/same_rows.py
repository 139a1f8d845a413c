"""The same rows for either implementation, in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from step_jepa import standalone
from step_jepa.batches.batch import Batch, to_device
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.data.example import Example
from step_jepa.errors import UserError
from step_jepa.training.representation import Representation

LONG = 1024  # tokens; longer rows are read one by one, as padding takes a mask


@dataclass(frozen=True)
class BatchPair:
    """The same rows for either implementation, on the model's device. start: the first one's place among all rows."""

    start: int
    adapted: Batch
    standalone: Batch


def adapted_rows(representation: Representation, examples: Sequence[Example]) -> PlannedRows:
    rows = PlannedRows(examples, representation.training_planner(examples))
    representation.check_attention(rows)
    return rows


def standalone_examples(
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


def batches_of_both(
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
