"""What each variant sends through the model.

Two passes are the published method: the row once for the language model, then the whole row again with the predictor
tokens inserted and step 2 isolated. All variants make logits at labels only, and none in the second pass.
"""

from collections.abc import Sequence

import torch.nn.functional as F

from step_jepa.batches.batch import PADDING, Batch, to_device
from step_jepa.batches.collate import BranchCollator, PlainCollator
from step_jepa.data.example import IGNORED, Example
from step_jepa.models.predictors import predictor_ids
from step_jepa.objectives import LLMJEPA, SSP, STP, Objective, StepJEPA, STPReleased
from step_jepa.objectives.planner import Planner
from step_jepa.rows.branches import Pair, Row, last, trunk
from step_jepa.training.representation import Representation

BASELINE = "sft"  # what the other variants are measured against
TWO_PASSES = ("two_pass", "two_pass_padded")


def one_pass_variants(predictor_ids: Sequence[int]) -> dict[str, list[Objective]]:
    """What is measured beside two passes: the objectives of each variant."""
    return {
        BASELINE: [],
        "one_pass_first": [StepJEPA(predictor_ids=predictor_ids)],
        "one_pass_all": [StepJEPA(predictor_ids=predictor_ids, pairs="all")],
        "context_first": [StepJEPA(predictor_ids=predictor_ids, target="context")],
        "context_all": [StepJEPA(predictor_ids=predictor_ids, pairs="all", target="context")],
        "context_all_k0": [StepJEPA(pairs="all", target="context")],
        "llm_jepa": [LLMJEPA(predictor_ids=predictor_ids)],
        "stp": [STP()],
        "stp_released": [STPReleased()],
        "ssp": [SSP()],
    }


VARIANTS = (*one_pass_variants(()), *TWO_PASSES)


def passes_of(representation: Representation, name: str, examples: list[Example], length: int) -> list[Batch]:
    """The batches of a variant, one after the other."""
    pad_id, predictors = representation.tokenizer.pad_token_id, predictor_ids(representation.model)
    trunks = PlainCollator(pad_id)([trunk(example) for example in examples])
    if name == BASELINE:
        passes = [trunks]
    elif name in TWO_PASSES:
        passes = [trunks, BranchCollator(pad_id)([second_row(example, predictors) for example in examples])]
    else:
        plan = Planner(one_pass_variants(predictors)[name])
        passes = [BranchCollator(pad_id)([plan(example) for example in examples])]
    if name == "two_pass_padded":
        passes = [padded(batch, length, pad_id) for batch in passes]
    return [to_device(batch, representation.model.device) for batch in passes]


def second_row(example: Example, predictors: Sequence[int]) -> Row:
    """The whole row once more, without labels: predictors after step 1, step 2 isolated, the rest of the row kept."""
    (_, before), (start, stop) = example.steps[:2]
    ids = example.input_ids
    row = Row(ids[:before], [IGNORED] * before)
    predicted = range(before)
    if predictors:
        predicted = row.append_branch(predictors, position_offset=before, visible_length=before)
    target = row.append_branch(ids[start:stop], position_offset=start, visible_length=0)
    row.append_branch(ids[stop:], position_offset=stop, visible_length=before)
    row.pairs.append(Pair(last(predicted), last(target)))
    return row


def padded(batch: Batch, length: int, pad_id: int) -> Batch:
    """Every row filled up to `length` tokens."""
    fillings = {
        "input_ids": pad_id,
        "labels": IGNORED,
        "branch": PADDING,
        "attention_mask": 0,
        "position_ids": 0,
        "visible_length": 0,
    }
    filled = dict(batch)
    for name in fillings.keys() & batch.keys():
        missing = max(0, length - batch[name].shape[1])
        filled[name] = F.pad(batch[name], (0, missing), value=fillings[name])
    return filled


def token_ratios(examples: Sequence[Example], predictors: Sequence[int]) -> dict[str, float]:
    """Tokens of each one-pass variant's rows, as a multiple of the trunks'."""
    plain = sum(len(example.input_ids) for example in examples)
    ratios = {}
    for name, objectives in one_pass_variants(predictors).items():
        plan = Planner(objectives)
        ratios[name] = sum(len(plan(example).input_ids) for example in examples) / plain
    return ratios
