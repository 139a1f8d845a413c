"""What is written of a run's options, and how whoever comes after it goes by them."""

import logging
import os
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers.utils import CHAT_TEMPLATE_FILE

from step_jepa.data.reading_options import ReadingOptions, reading_values
from step_jepa.data.template import TemplateOptions
from step_jepa.models.predictors import saved_predictors
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.options import default_of, facts, option_fields, without_secrets
from step_jepa.run_files.names import OPTIONS_FILE
from step_jepa.run_files.reading import run_options
from step_jepa.run_files.writing import write_json
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.jepa_options import StepJEPAOptions, is_of_others, with_registered_options

logger = logging.getLogger(__name__)


def own_options(config: Any) -> dict[str, Any]:
    """The values of our own options, fit to be written."""
    return without_secrets({each.name: getattr(config, each.name) for each in option_fields(config)})


def save_options(config: RepresentationConfig, folder: str | os.PathLike[str]) -> None:
    """What a run was trained with, beside the model."""
    write_json(Path(folder, OPTIONS_FILE), own_options(config))


def heldout_options(
    folder: str | os.PathLike[str],
    *,
    objective: list[str] | None = None,
    pairs: Pairs | None = None,
    loss: str | None = None,
    predictors: int | None = None,
) -> StepJEPAOptions:
    """How held-out figures of a model are taken: as its own run trained it, unless asked otherwise. Where no run with a
    JEPA term is known, or another objective is asked for, of all pairs of steps, by cosine.

    Args:
        folder: of the model.
        objective: asked for in place of the run's; likewise the others.
        pairs: which pairs of steps.
        loss: distance of the views.
        predictors: K, where no trained rows lie in the folder.

    Raises:
        UserError: for a file that no run wrote, and an objective or loss that is not known.
    """
    config, saved = with_registered_options(StepJEPAOptions), run_options(folder)
    kept = [each.name for each in option_fields(config) if not facts(each).of_training]
    values = {name: saved[name] for name in kept if name in saved}
    trained = saved.get("lbd", 0) and values.get("objective", ["none"]) not in (["none"], "none")
    if objective is not None or not trained:
        values = view_options(folder) | {"objective": objective or ["step_jepa"], "pairs": "all", "loss": "cosine"}
    rows = saved_predictors(str(folder))
    values |= {} if rows is None else {"predictors": rows}
    asked = {"pairs": pairs, "loss": loss, "predictors": predictors if rows is None else None}
    asked = {name: value for name, value in asked.items() if value is not None}
    return config(**_meaningful(config, values | asked, asked))


def _meaningful(config: type[StepJEPAOptions], values: dict[str, Any], asked: Iterable[str]) -> dict[str, Any]:
    """The values without those of the model's run that mean nothing beside what is asked for now."""
    complete = {each.name: default_of(each) for each in option_fields(config)} | values
    objectives = {values["objective"]} if isinstance(values["objective"], str) else set(values["objective"])
    objectives -= {"none"}

    def means_something(each: Field[Any]) -> bool:
        known = facts(each)
        read = known.needs is None or known.needs.holds(SimpleNamespace(**complete))
        return read and not is_of_others(each, objectives) and bool(objectives or not known.of_jepa_term)

    fields = {each.name: each for each in option_fields(config)}
    return {name: value for name, value in values.items() if name in asked or means_something(fields[name])}


def take_reading_of_run(folder: str | os.PathLike[str], args: ReadingOptions) -> None:
    """Read data as the run that a model comes from read its own, but for what is asked for now.

    Args:
        folder: of the model.
        args: of a command; they get the run's values.

    Raises:
        UserError: for a file that no run wrote.
    """
    saved, default = run_options(folder), reading_values(ReadingOptions())
    for name, value in reading_values(args).items():
        if value == default[name] and saved.get(name, value) != value:
            setattr(args, name, saved[name])
            logger.info("records are read as the run of %s read its own: %s = %s", folder, name, saved[name])


def view_options(folder: str | os.PathLike[str], template: TemplateOptions | None = None) -> dict[str, Any]:
    """How the run that a model comes from read its views, but for what frames conversations where that is asked for;
    nothing where no run lies beside it. Raises UserError."""
    saved = run_options(folder)
    names = [each.name for each in option_fields(StepJEPAOptions) if facts(each).changes_views]
    values = {name: saved[name] for name in names if name in saved}
    if values.get("chat_template"):  # the file that was given may have gone; the model has a copy
        values["chat_template"] = str(Path(folder, CHAT_TEMPLATE_FILE))
    asked = {each.name: getattr(template, each.name) for each in option_fields(TemplateOptions) if template}
    return values | {name: value for name, value in asked.items() if value is not None}
