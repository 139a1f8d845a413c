"""Answers, batch by batch, from exactly the tokens that precede the content in training; any engine can write them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tqdm.auto import tqdm

from step_jepa.data.dataset import to_example
from step_jepa.data.tokens import IGNORED


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    index    of the record
    sample   which of the record's answers, from 0
    prompt   token ids that the model reads
    """

    index: int
    sample: int
    prompt: list[int]

    def seed(self, seed: int) -> int:
        """Of what is drawn for this answer, in 63 bits: neither its place in a batch nor in a file plays a part."""
        return Random(f"{seed} {self.sample} {self.prompt}").getrandbits(63)


@dataclass(frozen=True)
class Rules:
    """How answers are written.

    stops            token ids, each of which ends an answer, in ascending order
    max_new_tokens   longest answer in tokens
    temperature      of sampling; None for the likeliest token everywhere
    seed             of sampling
    """

    stops: list[int]
    max_new_tokens: int = 256
    temperature: float | None = None
    seed: int = 42


Engine = Callable[[Sequence[Request]], list[list[int]]]  # the new tokens of each, under some Rules


@dataclass
class Generation:
    """What a model wrote for one record.

    index        of the record
    sample       which of the record's answers, from 0
    prediction   the text, without the token that ended it
    truncated    whether it was cut off, having written no end of turn
    new_tokens   tokens written, the end of turn included
    """

    index: int
    sample: int
    prediction: str
    truncated: bool
    new_tokens: int


def requests(
    model: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], *, samples: int = 1
) -> tuple[list[Request], list[int]]:
    """`samples` requests for each record, and the tokens that stop an answer.

    A prompt is what precedes the content in training. An answer stops at the token that training labels as the end of
    the turn, or at one of the model's own. Raises UserError, naming the record, where one has no such tokens."""
    examples = [to_example(record, tokenizer, f"example {index}") for index, record in enumerate(records)]
    prompts = [example.input_ids[: example.steps[0][0]] for example in examples]
    ends = {next(label for label in reversed(example.labels) if label != IGNORED) for example in examples}
    wanted = [Request(index, sample, prompt) for index, prompt in enumerate(prompts) for sample in range(samples)]
    return wanted, sorted(ends | _own_stops(model))


def _own_stops(model: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def generate(
    engine: Engine, tokenizer: Any, wanted: Sequence[Request], rules: Rules, *, batch_size: int = 16
) -> Iterator[Generation]:
    """What the engine writes for each request, batch by batch, longest prompts first."""
    order = sorted(wanted, key=lambda request: -len(request.prompt))
    with tqdm(total=len(order), desc="answering", unit="answer") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for request, ids in zip(batch, engine(batch), strict=True):
                end = next((place for place, token in enumerate(ids) if token in rules.stops), None)
                count = len(ids) if end is None else end + 1
                yield Generation(request.index, request.sample, tokenizer.decode(ids[:end]), end is None, count)
            bar.update(len(batch))
