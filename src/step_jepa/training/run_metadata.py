"""What a run was: its settings and the counts of its data, in run.json beside the model, for whoever reads about it."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from step_jepa.run_files.names import RUN_FILE
from step_jepa.run_files.writing import write_whole

ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules")
LIBRARIES = ("step-jepa", "torch", "transformers", "peft")
# Of TrainingArguments, what leads to other weights: a resumed run must have the same.
TRAJECTORY = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16"),
    *("train_sampling_strategy", "seed", "data_seed", "label_smoothing_factor", "neftune_noise_alpha"),
    "dataloader_drop_last",
)
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")  # of which the product counts
LENGTH = ("num_train_epochs", "max_steps")  # a run may be resumed for longer
SETTINGS_OF_THE_RUN = (*TRAJECTORY, "approach", "lora", "dtype", "base_weights", "training_data")


def named(thing: Any) -> str | None:
    """What a person calls a model or a data set: its name or path as given, else its kind."""
    if thing is None:
        return None
    if isinstance(thing, str | os.PathLike):
        return os.fspath(thing)
    return f"{type(thing).__name__} in memory"


def settings_of(
    args: TrainingArguments,
    model: Any,
    sources: Mapping[str, str | None],
    counts: Mapping[str, int],
    training_data: str | None,
) -> dict[str, Any]:
    """What run.json holds, as JSON has it.

    Args:
        args: of the run.
        model: that it trains.
        sources: approach (adapted or standalone); names of the model and the data: model_name, train_file, eval_file.
        counts: of the training data: examples, steps, pairs, cut, left_out, as far as they are known.
        training_data: digest of the training examples in their order.
    """
    adapter = model.peft_config[model.active_adapter] if hasattr(model, "peft_config") else None
    settings = {
        **sources,
        "lora": {name: getattr(adapter, name) for name in ADAPTER} if adapter else None,
        **{name: getattr(args, name) for name in (*TRAJECTORY, *BATCH, *LENGTH)},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(args.device),
        "versions": {library: version(library) for library in LIBRARIES},
        "data": dict(counts),
        "base_weights": getattr(model, "loaded_weights", None),  # of a model that was given by name
        "training_data": training_data,
    }
    return dict(json.loads(json.dumps(settings, default=_plain)))


def save_settings(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write run.json."""
    write_whole(Path(folder, RUN_FILE), json.dumps(settings, indent=2) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
