"""Answers, batch by batch, from exactly the tokens that precede the content in training; any engine can write them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from step_jepa import terminal
from step_jepa.data.dataset import to_example
from step_jepa.data.example import IGNORED, Example
from step_jepa.data.records import answerable


@dataclass(frozen=True)
class Prompt:
    """One answer that is wanted.

    index       of the record
    sample      which of the record's answers, from 0
    input_ids   tokens that the model reads
    """

    index: int
    sample: int
    input_ids: list[int]

    def seed(self, seed: int) -> int:
        """Of what is drawn for this answer, in 63 bits: neither its place in a batch nor in a file plays a part."""
        return Random(f"{seed} {self.sample} {self.input_ids}").getrandbits(63)


@dataclass(frozen=True)
class SamplingParameters:
    """How answers are written.

    stop_token_ids   each of them ends an answer; in ascending order
    max_new_tokens   longest answer in tokens
    temperature      of sampling; None for the likeliest token everywhere
    seed             of sampling
    """

    stop_token_ids: list[int]
    max_new_tokens: int = 256
    temperature: float | None = None
    seed: int = 42


Engine = Callable[[Sequence[Prompt]], list[list[int]]]  # the new tokens of each prompt, under some SamplingParameters


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


def prompts_and_stops(
    config: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], *, samples: int = 1
) -> tuple[list[Prompt], list[int]]:
    """`samples` prompts for each record, and the ids of the tokens that stop an answer.

    A prompt is what precedes the content in training. An answer stops at the token that training labels as the end of
    the turn, or at one that the model's generation config names. Raises UserError, naming the record, where one has no
    such tokens."""
    examples = [to_example(answerable(record), tokenizer, f"example {index}") for index, record in enumerate(records)]
    prompts: list[Prompt] = []
    for index, example in enumerate(examples):
        input_ids = example.input_ids[: example.steps[0][0]]
        prompts += [Prompt(index, sample, input_ids) for sample in range(samples)]
    ends_of_turn = {_last_label(example) for example in examples}
    return prompts, sorted(ends_of_turn | _eos_token_ids(config))


def _last_label(example: Example) -> int:
    return next(label for label in reversed(example.labels) if label != IGNORED)


def _eos_token_ids(config: Any) -> set[int]:
    ids = config.eos_token_id
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else set(ids)


def generate(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    parameters: SamplingParameters,
    *,
    batch_size: int = 16,
) -> Iterator[Generation]:
    """What the engine writes for each prompt, batch by batch, longest prompts first."""
    order = sorted(prompts, key=lambda prompt: -len(prompt.input_ids))
    with terminal.bar(label="answering", unit="answer", total=len(order)) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for prompt, token_ids in zip(batch, engine(batch), strict=True):
                yield _generation(prompt, token_ids, tokenizer, parameters)
            bar.update(len(batch))


def _generation(prompt: Prompt, token_ids: list[int], tokenizer: Any, parameters: SamplingParameters) -> Generation:
    """The tokens up to the first stop, as text; an engine may go on after it, as others in its batch do."""
    stops = (place for place, token in enumerate(token_ids) if token in parameters.stop_token_ids)
    end = next(stops, None)
    return Generation(
        index=prompt.index,
        sample=prompt.sample,
        prediction=tokenizer.decode(token_ids[:end]),
        truncated=end is None,
        new_tokens=len(token_ids) if end is None else end + 1,
    )
