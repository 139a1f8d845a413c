"""Checks of the rows' tokens: steps, spans, labels, BOS, truncation."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median_high
from typing import Any

from step_jepa.data.conversations import to_conversation
from step_jepa.data.example import IGNORED, Example, truncate
from step_jepa.data.template_notes import mending_switch, prompt_difference
from step_jepa.plurals import counted
from step_jepa.verification.checks.registry import CheckResult, register_check
from step_jepa.verification.context import VerificationContext, count_pairs

MOST_CUTS = 200  # of one row


@register_check("steps", remedy="cut the answers into steps: step-jepa prepare, with another --split_by")
def check_steps(context: VerificationContext) -> CheckResult:
    """Some row has a pair."""
    counts = [len(example.steps) for example in context.examples]
    unpaired = sum(not count_pairs(example) for example in context.examples)
    steps = f"{min(counts)} to {counted(max(counts), 'step')} (median {median_high(counts)})"
    return CheckResult(unpaired < len(counts), f"{counted(len(counts), 'row')}, {steps}; {unpaired} without a pair")


@register_check("step spans", remedy="look at the row: step-jepa inspect steps --index N; then prepare the data anew")
def check_spans(context: VerificationContext) -> CheckResult:
    """Spans tile what is trained; each decodes to its step, together to the answer."""
    wrong = []
    for place, (example, record) in enumerate(zip(context.examples, context.records, strict=True)):
        if not (_tile_the_answer(example) and _decode_to_the_steps(context.tokenizer, example, record)):
            wrong.append(place)
    return _of_all_rows(context, wrong, "spans tile the answer and decode to the steps")


def _tile_the_answer(example: Example) -> bool:
    """Whether the spans begin with the first label, and each where the one before it ends."""
    first_label = next(index for index, label in enumerate(example.labels) if label != IGNORED)
    without_gap = all(before[1] == after[0] for before, after in pairwise(example.steps))
    return example.steps[0][0] == first_label and without_gap


def _decode_to_the_steps(tokenizer: Any, example: Example, record: Mapping[str, Any]) -> bool:
    answer = _decode(tokenizer, example.input_ids[example.steps[0][0] : example.steps[-1][1]])
    if answer != record["messages"][-1]["content"].strip():
        return False
    texts = list(record.get("steps") or [])
    decoded = [_decode(tokenizer, example.input_ids[start:stop]) for start, stop in example.steps]
    # Without whitespace: neighbours may share a token of it.
    return not texts or list(map(_without_whitespace, decoded)) == list(map(_without_whitespace, texts))


@register_check(
    "labels", remedy="look at the row: step-jepa inspect tokens --index N; the chat template may be at fault"
)
def check_labels(context: VerificationContext) -> CheckResult:
    """Labelled is the answer, and then the token that ends the turn; nothing else."""
    special = {*context.tokenizer.all_special_ids, *context.tokenizer.added_tokens_decoder}
    wrong = []
    for place, (example, record) in enumerate(zip(context.examples, context.records, strict=True)):
        content = record["messages"][-1]["content"].strip()
        if not _labels_are_the_answer(context.tokenizer, example, content, special):
            wrong.append(place)
    return _of_all_rows(context, wrong, "the answer and its end-of-turn token are labelled, nothing else is")


def _labels_are_the_answer(tokenizer: Any, example: Example, content: str, special: set[int]) -> bool:
    labelled = [index for index, label in enumerate(example.labels) if label != IGNORED]
    *answer, end_of_turn = [example.input_ids[index] for index in labelled]
    unchanged = all(example.labels[index] == example.input_ids[index] for index in labelled)
    without_gap = labelled[-1] - labelled[0] == len(answer)
    return unchanged and without_gap and end_of_turn in special and _decode(tokenizer, answer) == content


@register_check("generation prompt", remedy="give the argument with --chat_template_kwargs, or answers begin otherwise")
def check_generation_prompt(context: VerificationContext) -> CheckResult:
    """Other engines prompt with what precedes the answer in training, as far as an argument of the template can have it
    so."""
    conversation = to_conversation(context.records[0])
    difference = prompt_difference(context.tokenizer, conversation)
    if difference is None:
        return CheckResult(True, "the chat template's prompt is what precedes the answer in training")
    return CheckResult(mending_switch(context.tokenizer, conversation) is None, difference)


@register_check("one BOS", remedy="let the chat template write {{ bos_token }} once, at the start")
def check_bos(context: VerificationContext) -> CheckResult:
    """As many tokens of BOS at the start of a row as the tokenizer itself puts before a text, or one."""
    bos = context.tokenizer.bos_token_id
    if bos is None:
        return CheckResult(True, "the tokenizer has no BOS, the rows begin with none")
    wanted = (1,) if context.tokenizer("a")["input_ids"][0] == bos else (0, 1)
    counts = [_count_at_start(example.input_ids, bos) for example in context.examples]
    wrong = [place for place, count in enumerate(counts) if count not in wanted]
    return _of_all_rows(context, wrong, f"{counts[0]} BOS at the start")


@register_check("truncation", remedy="please report this: whole steps must stay whole")
def check_truncation(context: VerificationContext) -> CheckResult:
    """Rows are cut after a whole step; what was cut has no label for the end of the turn."""
    wrong = [place for place, example in enumerate(context.examples) if not _is_cut_after_steps(example)]
    limit = context.max_length or math.inf
    longer = sum(len(example.input_ids) > limit for example in context.examples)
    claim = f"cut after whole steps; {longer} longer than max_length {context.max_length}"
    if context.length_read != context.max_length:
        claim += f"; the model reads {context.length_read} tokens of a row here"
    return _of_all_rows(context, wrong, claim)


def _is_cut_after_steps(example: Example) -> bool:
    """Whether the example is cut right at lengths from the answer's start to the row's end."""
    start, stop = example.steps[0][0], len(example.input_ids) + 1
    lengths = range(start, stop, max(7, (stop - start) // MOST_CUTS))
    return all(_is_cut_right(example, truncate(example, length), length) for length in lengths)


def _is_cut_right(whole: Example, cut: Example, length: int) -> bool:
    if len(whole.input_ids) <= length:
        return cut == whole
    kept = [span for span in whole.steps if span[1] <= length]
    end = kept[-1][1] if kept else 0
    return cut.steps == kept and cut.input_ids == whole.input_ids[:end] and cut.labels == whole.labels[:end]


def _of_all_rows(context: VerificationContext, wrong: Sequence[int], claim: str) -> CheckResult:
    """Passed where the claim holds of every row. wrong: the places of those that it does not hold of."""
    count = len(context.examples)
    if not wrong:
        return CheckResult(True, f"{count} of {counted(count, 'row')}: {claim}")
    return CheckResult(False, f"{len(wrong)} of {counted(count, 'row')} not so, first example {wrong[0]}: {claim}")


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


def _without_whitespace(text: str) -> str:
    return "".join(text.split())


def _count_at_start(ids: Sequence[int], token: int) -> int:
    """How many times the row begins with this token."""
    return next((place for place, other in enumerate(ids) if other != token), len(ids))
