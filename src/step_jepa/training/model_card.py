"""The card of a model that a run trained: README.md, made from the files beside it and from evaluations."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from step_jepa.options import default_of, facts, option_fields
from step_jepa.plurals import counted
from step_jepa.rows.controls import CONTROL_MEANINGS
from step_jepa.run_files.names import CARD_FILE, PREDICTORS_FILE, RUN_FILE, SUMMARY_FILE
from step_jepa.run_files.reading import read_json, read_summary, run_options
from step_jepa.run_files.writing import write_whole
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.jepa_options import StepJEPAOptions, with_registered_options

TEMPLATE = Path(__file__).with_name("model_card.md")
MARK = "<!-- Made by step-jepa, which replaces this file as long as this line stands in it. -->"
PEFTS = "# Model Card for Model ID"  # PEFT's empty one
TASK = "text-generation"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BUILTIN = {"smollm2": SMOLLM2, "builtin:smollm2": SMOLLM2}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DATA_ID = re.compile(rf"({_HUB_ID.pattern})(:[\w.-]+)?(\[.*\])?")
_FILE_ENDING = re.compile(r"\.(jsonl?|csv|parquet|arrow|txt)(\.gz)?$")
# Of the trainer's held-out figures and of those of `evaluate`: name -> title
FIGURES = {
    "lm_loss": "LM loss",
    "jepa_loss": "JEPA loss",
    "cosine_paired": "cosine, paired views",
    "cosine_unpaired": "cosine, unpaired views",
}
SETTINGS = {
    "learning_rate": "learning rate",
    "per_device_train_batch_size": "rows a device and micro-batch",
    "gradient_accumulation_steps": "micro-batches a step",
    "world_size": "processes",
    "seed": "seed",
    "dtype": "weights",
}


@dataclass(frozen=True)
class Figure:
    """A held-out figure.

    name, title   for machines, for people
    data          what it was taken on, without its folder
    value         as a number
    interval      95 %, where it is known
    """

    name: str
    title: str
    data: str
    value: float
    interval: tuple[float, float] | None = None


def write_card(
    folder: str | os.PathLike[str], history: Sequence[Mapping[str, Any]] = (), evaluations: Iterable[Path] = ()
) -> bool:
    """Write README.md into a model's folder; whether it was written: one that a person wrote, or changed and took our
    mark out of, stays.

    Args:
        folder: of the model, with run.json and step_jepa.json.
        history: of the trainer's logs, whose last held-out figures are taken.
        evaluations: folders that `evaluate` wrote.

    Raises:
        UserError: for files that no run wrote.
    """
    path = Path(folder, CARD_FILE)
    if path.exists() and not _is_replaced(path.read_text(encoding="utf-8")):
        return False
    write_whole(path, str(card(Path(folder), history, evaluations)))
    return True


def card(folder: Path, history: Sequence[Mapping[str, Any]], evaluations: Iterable[Path]) -> ModelCard:
    """The card; see `write_card`."""
    run, options = read_json(folder / RUN_FILE, data=dict), run_options(folder)
    objectives, base = _objectives(options), None if options.get("pretrain") else base_model_id(run["model_name"] or "")
    summaries = [read_summary(evaluation / SUMMARY_FILE) for evaluation in evaluations]
    figures = figures_of_training(history, run["eval_file"])
    figures += chain.from_iterable(map(figures_of_evaluation, summaries))
    name, control = folder.resolve().name, options.get("control", "none")
    adapter = (folder / "adapter_config.json").exists()
    made: ModelCard = ModelCard.from_template(
        _metadata(name, base, run, objectives, figures, adapter=adapter),
        template_path=str(TEMPLATE),
        mark=MARK,
        name=name,
        objectives=objectives,
        origin=_origin(base, run, options),
        control=control,
        control_meaning=CONTROL_MEANINGS.get(control, ""),
        settings=_settings(run, options),
        differing=_differing(options),
        figures=[_row(figure) for figure in figures],
        answered=any(figure.name == "accuracy" for figure in figures),
        adapter=adapter,
        predictors=(folder / PREDICTORS_FILE).exists(),
        version=version("step-jepa"),
    )
    return made


def public(name: str | None) -> str:
    """What may be published of the name of a model or of data: of a path the last part."""
    if not name:
        return "none"
    return name if base_model_id(name) or data_id(name) else Path(name).name


def base_model_id(name: str) -> str | None:
    """The hub id that a model's name is or stands for."""
    is_id = _HUB_ID.fullmatch(name) and not Path(name).exists() and not _FILE_ENDING.search(name)
    return _BUILTIN.get(name, name if is_id else None)


def data_id(name: str | None) -> str | None:
    """The hub id in the name of a data set, `owner/name:config[split]`."""
    found = _DATA_ID.fullmatch(name or "")
    return found[1] if found and not Path(found[1]).exists() and not _FILE_ENDING.search(found[1]) else None


def _is_replaced(text: str) -> bool:
    return MARK in text or PEFTS in text


def _metadata(
    name: str,
    base: str | None,
    run: Mapping[str, Any],
    objectives: list[str],
    figures: Sequence[Figure],
    *,
    adapter: bool,
) -> ModelCardData:
    data = data_id(run["train_file"])
    relation = "adapter" if adapter else "finetune"
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[data] if data else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=TASK,
        tags=["step-jepa", *objectives, *(["lora"] if run["lora"] else [])],
        model_name=name if figures else None,
        eval_results=[_eval_result(figure) for figure in figures] or None,
    )


def _eval_result(figure: Figure) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=data_id(figure.data) or "custom",
        dataset_name=figure.data,
        metric_type=figure.name,
        metric_value=figure.value,
        metric_name=figure.title if figure.interval is None else f"{figure.title}, 95 % interval {_interval(figure)}",
    )


def _objectives(options: Mapping[str, Any]) -> list[str]:
    """Those that were trained; none for plain fine-tuning."""
    named = options.get("objective", "none")
    names = [named] if isinstance(named, str) else list(named)
    return names if options.get("lbd") and names != ["none"] else []


def _origin(base: str | None, run: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    if options.get("pretrain"):
        return f"From random weights, in the shape of `{public(run['model_name'])}`."
    if base is None:
        return f"From `{public(run['model_name'])}`, which is on no hub."
    return f"From [{base}](https://huggingface.co/{base})."


def _settings(run: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in run["data"].items())
    steps = counted(run["max_steps"], "step") if run["max_steps"] > 0 else counted(run["num_train_epochs"], "epoch")
    return {
        "base model": public(run["model_name"]),
        "data": public(run["train_file"]) + (f" ({counts})" if counts else ""),
        "objective": " + ".join(_objectives(options)) or "none: plain fine-tuning",
        "loss, its weight": f"{options['loss']}, {options['lbd']}" if _objectives(options) else "-",
        "control": options.get("control", "none"),
        "adapter": f"LoRA, rank {run['lora']['r']}, alpha {run['lora']['lora_alpha']}" if run["lora"] else "none",
        "length": steps,
        **{title: run[name] for name, title in SETTINGS.items()},
        "versions": ", ".join(f"{library} {number}" for library, number in run["versions"].items()),
    }


def _differing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with another value than their default, without folders."""
    kinds = (with_registered_options(StepJEPAOptions), RepresentationConfig)
    options_of_runs = chain.from_iterable(map(option_fields, kinds))
    defaults = {each.name: default_of(each) for each in options_of_runs if facts(each).group != "Logging"}
    said = {"chat_template_date", "control", "objective", "loss", "lbd"}
    return {
        name: _without_folders(value)
        for name, value in options.items()
        if name in defaults and name not in said and value != defaults[name]
    }


def _without_folders(value: Any) -> str:
    return re.sub(r"[^\s'\"]*[/\\]", "", str(value))


def figures_of_training(history: Sequence[Mapping[str, Any]], eval_file: str | None) -> list[Figure]:
    """The last ones that were taken while it trained."""
    last: Mapping[str, Any] = next((logs for logs in reversed(history) if "eval_lm_loss" in logs), {})
    data = public(eval_file)
    return [
        Figure(name, title, data, last[f"eval_{name}"]) for name, title in FIGURES.items() if f"eval_{name}" in last
    ]


def figures_of_evaluation(summary: Mapping[str, Any]) -> list[Figure]:
    """Those of a summary that `evaluate` wrote."""
    data, figures = public(summary["settings"]["test_file"]), []
    if summary["accuracy"] is not None:
        low, high = summary["ci95"]
        title = f"accuracy ({summary['correct']} of {summary['n']})"
        figures.append(Figure("accuracy", title, data, summary["accuracy"], (low, high)))
    known = {name: title for name, title in FIGURES.items() if summary.get(name) is not None}
    return figures + [Figure(name, title, data, summary[name]) for name, title in known.items()]


def _row(figure: Figure) -> dict[str, str]:
    interval = _interval(figure) if figure.interval else "-"
    return {"title": figure.title, "data": f"`{figure.data}`", "value": f"{figure.value:.4g}", "interval": interval}


def _interval(figure: Figure) -> str:
    assert figure.interval is not None
    low, high = figure.interval
    return f"{low:.3f} to {high:.3f}"
