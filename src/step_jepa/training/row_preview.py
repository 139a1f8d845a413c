"""The first training rows as a trainer reads them, in rows.json beside the model: what the report's explorer shows."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from step_jepa.batches import attention
from step_jepa.batches.collate import PlannedRows
from step_jepa.data.tokens import IGNORED, Example, pieces
from step_jepa.models.predictors import predictor_ids
from step_jepa.rows.branches import Row
from step_jepa.rows.regions import regions
from step_jepa.run_files import ROWS_FILE

SHOWN = 16


def save_rows(
    folder: str | os.PathLike, rows: PlannedRows, tokenizer: Any, model: Any, objectives: Sequence[str]
) -> None:
    """Write rows.json: the first 16 rows as they are planned for the first epoch; the kinds of layer that the model
    has; the sliding window of those that slide, in positions."""
    names = {token: f"<|predictor_{number}|>" for number, token in enumerate(predictor_ids(model), 1)}
    planned = [(example, rows.plan(example)) for example in rows.examples[:SHOWN]]
    shown = [described(*each, pieces(tokenizer, each[1].input_ids, names), objectives) for each in planned]
    kinds = _kinds(model.config)
    window = model.config.get_text_config().sliding_window if "sliding_attention" in kinds else None
    Path(folder, ROWS_FILE).write_text(
        json.dumps({"kinds": kinds, "window": window, "rows": shown}, separators=(",", ":"))
    )


def described(example: Example, row: Row, texts: list[str], objectives: Sequence[str]) -> dict[str, Any]:
    """One entry per token: tokens (text), branch, prefix, position, labelled. regions: name, first token, token after
    the last. pairs: objective, step, and the tokens that the predicted and the target view are read from."""
    return {
        "tokens": texts,
        "branch": row.branch,
        "prefix": row.visible_length,
        "position": row.position_ids,
        "labelled": [label != IGNORED for label in row.labels],
        "regions": [(part.name, part.places.start, part.places.stop) for part in regions(example, row)],
        "pairs": [
            {
                "objective": objectives[pair.objective],
                "step": pair.step,
                "predicted": [index for index, _ in pair.predicted],
                "target": [index for index, _ in pair.target],
            }
            for pair in row.pairs
        ],
    }


def _kinds(config: Any) -> list[str]:
    none = torch.zeros(1, 1, dtype=torch.long)
    return list(attention.seen(config, none, none, none))
