"""The rows that are measured: those of a file, or made ones of a given length."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

from step_jepa.data.dataset import PreparedData
from step_jepa.data.example import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.objectives import StepJEPA
from step_jepa.objectives.planner import Planner
from step_jepa.plurals import counted

STEP_TOKENS = (40, 120)  # 50 steps in 4,096 tokens
PROMPT_TOKENS = 64  # most of a made row's prompt


def with_pairs(data: PreparedData, batch_size: int, name: Any) -> list[Example]:
    """The examples that Step-JEPA finds a pair in. Raises UserError for fewer than a batch."""
    plan = Planner([StepJEPA()])
    examples = [example for example in data.examples if plan(example).pairs]
    if len(examples) < batch_size:
        raise UserError(f"{name} has {counted(len(examples), 'row')} with two steps: give a smaller --batch_size")
    return examples


def batches_of(examples: Sequence[Example], count: int, batch_size: int) -> list[Example]:
    """So many batches of examples, in their order, again from the first one where they end."""
    chosen = [examples[place % len(examples)] for place in range(count * batch_size)]
    return [replace(example, index=index) for index, example in enumerate(chosen)]


def of_length(tokenizer: Any, length: int, count: int, seed: int) -> list[Example]:
    """Examples of `length` tokens, of a prompt and labelled steps: random words of the tokenizer."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    words = [token for token in range(len(tokenizer)) if token not in special]
    rng = Random(f"{seed} {length}")
    return [_example(words, length, rng) for _ in range(count)]


def _example(words: Sequence[int], length: int, rng: Random) -> Example:
    prompt = min(PROMPT_TOKENS, length // 4)
    borders = [prompt]
    while length - borders[-1] > STEP_TOKENS[1]:
        borders.append(borders[-1] + rng.randint(*STEP_TOKENS))
    if len(borders) == 1 or length - borders[-1] >= 2 * STEP_TOKENS[0]:  # at least two steps
        borders.append((borders[-1] + length) // 2)
    borders.append(length)
    ids = rng.choices(words, k=length)
    steps = list(pairwise(borders))
    return Example("", ids, [IGNORED] * prompt + ids[prompt:], steps, [(0, 0)] * len(steps), None)
