"""What a run was: its settings and the counts of its data, in run.json beside the model, for whoever reads about it."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from step_jepa.run_files import RUN_FILE

ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules")
LIBRARIES = ("step-jepa", "torch", "transformers", "peft")
TRAINING = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps"),
    *("bf16", "fp16", "seed"),
)


def named(thing: Any) -> str | None:
    """What a person calls a model or a data set: its name or path as given, else its kind."""
    if thing is None:
        return None
    if isinstance(thing, str | os.PathLike):
        return os.fspath(thing)
    return f"{type(thing).__name__} in memory"


def save_settings(
    folder: str | os.PathLike[str],
    args: TrainingArguments,
    model: Any,
    sources: Mapping[str, str | None],
    counts: Mapping[str, int],
) -> None:
    """Write run.json.

    sources   approach (adapted or standalone); names of the model and the data: model_name, train_file, eval_file
    counts    of the training data: examples, steps, pairs, cut, left_out, as far as they are known"""
    adapter = model.peft_config[model.active_adapter] if hasattr(model, "peft_config") else None
    settings = {
        **sources,
        "lora": {name: getattr(adapter, name) for name in ADAPTER} if adapter else None,
        **{name: getattr(args, name) for name in TRAINING},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(args.device),
        "versions": {library: version(library) for library in LIBRARIES},
        "data": dict(counts),
    }
    Path(folder, RUN_FILE).write_text(json.dumps(settings, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
