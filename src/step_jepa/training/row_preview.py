"""The first training rows as a trainer reads them, in rows.json beside the model: what the report's explorer shows."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from step_jepa.batches import attention
from step_jepa.batches.planned_rows import PlannedRows, PlannedStream
from step_jepa.data.example import IGNORED, Example
from step_jepa.data.offsets import pieces
from step_jepa.models.predictors import predictor_ids
from step_jepa.rows.branches import Pair, Row
from step_jepa.rows.regions import row_regions
from step_jepa.run_files.names import ROWS_FILE
from step_jepa.run_files.writing import write_whole

PREVIEWED_ROWS = 16


def save_rows(
    folder: str | os.PathLike[str],
    rows: PlannedRows | PlannedStream,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    objectives: Sequence[str],
) -> None:
    """Write rows.json: the first 16 rows as they are planned for the first epoch; the kinds of layer that the model
    has; the sliding window of those that slide, in positions.

    Args:
        folder: where the model is saved.
        rows: the training rows.
        tokenizer: turns their ids into text.
        model: whose predictor tokens and layers they are read with.
        objectives: their names, in the order of `Pair.objective`.
    """
    names = {token: f"<|predictor_{number}|>" for number, token in enumerate(predictor_ids(model), 1)}
    described = []
    for example in rows.examples[:PREVIEWED_ROWS]:
        row = rows.plan(example)
        texts = pieces(tokenizer, row.input_ids, names)
        described.append(describe_row(example, row, texts, objectives))
    kinds = _layer_kinds(model.config)
    window = model.config.get_text_config().sliding_window if "sliding_attention" in kinds else None
    preview = {"kinds": kinds, "window": window, "rows": described}
    write_whole(Path(folder, ROWS_FILE), json.dumps(preview, separators=(",", ":")))


def describe_row(example: Example, row: Row, texts: list[str], objectives: Sequence[str]) -> dict[str, Any]:
    """A row as JSON.

    Returns:
        One entry per token: tokens (text), branch, prefix, position, labelled. regions: name, first token, token after
        the last. pairs: objective, step, and the tokens that the predicted and the target view are read from.
    """
    regions = row_regions(example, row)
    return {
        "tokens": texts,
        "branch": row.branch,
        "prefix": row.visible_length,
        "position": row.position_ids,
        "labelled": [label != IGNORED for label in row.labels],
        "regions": [(region.name, region.indices.start, region.indices.stop) for region in regions],
        "pairs": [_describe_pair(pair, objectives) for pair in row.pairs],
    }


def _describe_pair(pair: Pair, objectives: Sequence[str]) -> dict[str, Any]:
    return {
        "objective": objectives[pair.objective],
        "step": pair.step,
        "predicted": [index for index, _ in pair.predicted],
        "target": [index for index, _ in pair.target],
    }


def _layer_kinds(config: PretrainedConfig) -> list[str]:
    no_token = torch.zeros(1, 1, dtype=torch.long)
    return list(attention.seen(config, no_token, no_token, no_token))
