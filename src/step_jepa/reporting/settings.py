"""What runs were trained with: what they have in common, and what they differ in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from step_jepa.reporting.dots import OTHER, kind_of
from step_jepa.reporting.runs import Run
from step_jepa.training.model_card import public

UNKNOWN = "unknown"
WITHOUT = "-"  # of an option of the JEPA term, where there is none
OF_THE_TERM = ("control", "loss", "lbd", "predictors", "pairs")
MAIN_OPTIONS = ("objective", "gamma", *OF_THE_TERM)


class Settings(NamedTuple):
    """common: name -> value; differing: name -> value of each run."""

    common: dict[str, str]
    differing: dict[str, list[str]]


def main_settings(runs: Sequence[Run]) -> Settings:
    """What a reader asks first, in words."""
    return _compared([_main_settings(run) for run in runs])


def all_settings(runs: Sequence[Run]) -> Settings:
    """Everything that step_jepa.json and run.json hold."""
    return _compared([_texts({**run.options, **run.settings}) for run in runs])


def _compared(settings: Sequence[Mapping[str, str]]) -> Settings:
    names: dict[str, None] = {}  # in the order in which runs name them first
    for of_run in settings:
        names |= dict.fromkeys(of_run)
    compared = Settings({}, {})
    for name in names:
        values = [of_run.get(name, UNKNOWN) for of_run in settings]
        if len(set(values)) > 1:
            compared.differing[name] = values
        else:
            compared.common[name] = values[0]
    return compared


def _main_settings(run: Run) -> dict[str, str]:
    options = {name: _text(run.options[name]) for name in MAIN_OPTIONS if name in run.options}
    if kind_of(run.options) == OTHER:
        options = {name: WITHOUT if name in OF_THE_TERM else text for name, text in options.items()}
    settings = _in_words(run.settings) if run.settings else {}  # an older version wrote none
    return settings | options | {"steps done": str(run.state["global_step"])}


def _in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    lora = settings["lora"]
    counts = {f"data: {name.replace('_', ' ')}": str(count) for name, count in settings["data"].items()}
    return {
        "base model": public(settings["model_name"]),
        "training file": public(settings["train_file"]),
        "held-out file": public(settings["eval_file"]),
        "implementation": settings["approach"],
        "adapter": f"LoRA, r {lora['r']}, alpha {lora['lora_alpha']}" if lora else "none: all weights are trained",
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler_type']}",
        "rows per step": str(_rows_per_step(settings)),
        "seed": str(settings["seed"]),
        "device, dtype": f"{settings['device']}, {settings['dtype']}",
        "versions": _text(settings["versions"]),
        **counts,
    }


def _rows_per_step(settings: Mapping[str, Any]) -> int:
    return settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * settings["world_size"]


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in _texts(value).items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
