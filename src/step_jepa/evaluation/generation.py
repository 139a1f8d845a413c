"""Greedy answers, batch by batch, from exactly the tokens that precede the content in training."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import GenerationConfig

from step_jepa.data.dataset import to_example
from step_jepa.data.tokens import IGNORED
from step_jepa.training.models import predictor_ids


@dataclass
class Generation:
    """What a model wrote for one record.

    index        of the record
    prediction   the text, without the token that ended it
    truncated    whether it was cut off, having written no end of turn
    new_tokens   tokens written, the end of turn included
    """

    index: int
    prediction: str
    truncated: bool
    new_tokens: int


def generate(
    model: Any,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    skip: Collection[int] = (),
) -> Iterator[Generation]:
    """Greedy answers to all records but those with an index in `skip`, batch by batch, longest prompts first.

    The model reads exactly the tokens that precede the content in training, and stops at the token that training
    labels as the end of the turn, or at one of its own. Predictor tokens are never written. Leaves the model in
    evaluation mode. Raises UserError, naming the record, where one has no such tokens."""
    examples = {i: to_example(record, tokenizer, f"example {i}") for i, record in enumerate(records) if i not in skip}
    prompts = {i: example.input_ids[: example.steps[0][0]] for i, example in examples.items()}
    stops = {next(label for label in reversed(example.labels) if label != IGNORED) for example in examples.values()}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops | _own_stops(model)),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=predictor_ids(model) or None,
    )
    model = model.to(PartialState().device).eval()
    order = sorted(prompts, key=lambda i: -len(prompts[i]))
    with tqdm(total=len(records), initial=len(records) - len(order), desc="answering", unit="example") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for index, ids in zip(batch, _write_on(model, tokenizer, [prompts[i] for i in batch], config), strict=True):
                end = next((place for place, token in enumerate(ids) if token in config.eos_token_id), None)
                count = len(ids) if end is None else end + 1
                yield Generation(index, tokenizer.decode(ids[:end]), end is None, count)
            bar.update(len(batch))


def _own_stops(model: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _write_on(model: Any, tokenizer: Any, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """The new tokens after each prompt, padding included; prompts are padded on the left."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    # What the config leaves open would be taken from the model's own, so that one steps aside.
    own, model.generation_config = model.generation_config, config
    try:
        with torch.inference_mode():
            written = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        model.generation_config = own
    return written[:, batch["input_ids"].shape[1] :].tolist()
