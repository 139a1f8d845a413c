"""`step-jepa surprise`: how far each step of answers is from the one that the model expected; what it tells."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from step_jepa import plots, terminal
from step_jepa.data.reading import say_what_was_read
from step_jepa.data.reading_options import ReadingOptions, reading_values
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.run_files.identity import differing, last_modified, records_digest
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import SUMMARY_FILE, SURPRISE_FILE, SURPRISE_PARTIAL, SURPRISE_PICTURE
from step_jepa.run_files.reading import read_json
from step_jepa.run_files.writing import json_lines, remove_unfinished, write_json, write_whole
from step_jepa.surprise.given import GivenAnswers, given_answers
from step_jepa.surprise.measure import load, measure
from step_jepa.surprise.scores import BASE, INDEX, LENGTH, SHUFFLED, StepScores
from step_jepa.surprise.summary import summarise
from step_jepa.surprise.table import picture, summary_tables
from step_jepa.training.saved_options import take_reading_of_run


@dataclass
class SurpriseArguments(TemplateOptions, ReadingOptions):
    """Whose surprise, at which answers. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2; best of a run with step_jepa.", is_path=True)
    test_file: str = option(
        help="Answers: the data's own, which may have wrong steps that are labelled, or a folder of `evaluate`.",
        is_path=True,
    )
    output_dir: str = option(help=f"Where {SURPRISE_FILE}, {SUMMARY_FILE} and {SURPRISE_PICTURE} go.")
    base_model: str | None = option(
        None, help="The model before training, whose scores need no predictor and stand beside.", is_path=True
    )
    limit: int | None = option(None, help="Take the first so many records only.", least=1)
    batch_size: int = option(16, help="Answers that are read at once.", least=1)
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.")
    seed: int = option(42, help="Of resamples.", least=0, most=MOST_SEED)
    overwrite: bool = option(False, help="Replace the results that output_dir holds.")
    json: bool = option(False, help="JSON on stdout instead of tables.")

    def __post_init__(self) -> None:
        check_bounds(self)


def run(args: SurpriseArguments) -> None:
    """Write surprise.jsonl, a row for each answer with the scores of its steps (see `StepScores`), summary.json (see
    `summarise`) and a picture, and print tables. Interrupted, the same call goes on with the model that it was at;
    finished, it prints what there is. Raises UserError, also where another process writes into the folder."""
    with locked(Path(args.output_dir)):
        _run_alone(args)


def _run_alone(args: SurpriseArguments) -> None:
    take_reading_of_run(resolve(args.model_name), args)
    folder = Path(args.output_dir)
    for name in filter(None, (args.model_name, args.base_model)):
        load_tokenizer(name)  # a wrong name should not be found out after an hour
    answers = given_answers(args.test_file, args, args.limit)
    say_what_was_read(args.test_file, answers.records)
    settings = _settings(args, answers)
    if summary := _finished(folder, settings, overwrite=args.overwrite):
        terminal.note("it was finished before, by the same command; --overwrite makes it anew")
        _show(args, summary)
        return
    remove_unfinished(folder)
    steps = _measured(args, folder, settings, answers)
    summary = {**summarise(steps, answers, args.seed), "settings": settings}
    write_whole(folder / SURPRISE_FILE, json_lines(_rows(steps, answers)))
    plots.save(picture(summary), str(folder / SURPRISE_PICTURE))
    write_json(folder / SUMMARY_FILE, summary)
    (folder / SURPRISE_PARTIAL).unlink()
    _show(args, summary)


def _settings(args: SurpriseArguments, answers: GivenAnswers) -> dict[str, Any]:
    """What the results are of; how records were read, their digest tells."""
    others = {"output_dir", "overwrite", "json", *reading_values(args)}
    return {
        **{name: value for name, value in asdict(args).items() if name not in others},
        "records": records_digest(answers.records),
        "model_written": last_modified(resolve(args.model_name)),
        "base_written": last_modified(resolve(args.base_model)) if args.base_model else None,
    }


def _finished(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The summary that an earlier call left. Raises UserError for one of other settings, and for one of `evaluate`."""
    path = folder / SUMMARY_FILE
    if path.exists() and not (folder / SURPRISE_FILE).exists():
        raise UserError(f"{folder} holds results of another command: give another --output_dir")
    if overwrite or not path.exists():
        return None
    summary = read_json(path, settings=dict)
    _check_settings(path, summary["settings"], settings)
    return summary


def _check_settings(path: Path, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if others := differing(settings, there):
        raise UserError(f"{path} holds results of another {others}: give another --output_dir, or --overwrite")


def _measured(args: SurpriseArguments, folder: Path, settings: dict[str, Any], answers: GivenAnswers) -> StepScores:
    """By the model, and by the base; what an interrupted call measured is kept."""
    path = folder / SURPRISE_PARTIAL
    kept: dict[str, Any] = {"settings": settings, "models": {}}
    if path.exists() and not args.overwrite:
        kept = read_json(path, settings=dict, models=dict)
        _check_settings(path, kept["settings"], settings)
    models = {"": args.model_name, BASE: args.base_model}
    for prefix, name in models.items():
        if name is not None and prefix not in kept["models"]:
            loading: dict[str, Any] = {"seed": args.seed, "model_init_kwargs": {"dtype": args.dtype}}
            representation = load(name, views_like=args.model_name if prefix else None, asked=args, **loading)
            kept["models"][prefix] = _to_json(measure(representation, answers.records, batch_size=args.batch_size))
            write_json(path, kept, indent=None)
    return _joined(kept["models"], len(answers.records))


def _to_json(steps: StepScores) -> dict[str, Any]:
    scores = {name: [None if np.isnan(each) else each for each in values] for name, values in steps.scores.items()}
    return {"answer": steps.answer.tolist(), "step": steps.step.tolist(), "scores": scores}


def _joined(models: Mapping[str, Any], answers: int) -> StepScores:
    """The scores of all models; the base's have their prefix, and what does not depend on a model stands once."""
    own = models[""]
    scores: dict[str, Any] = {}
    for prefix, measured in models.items():
        if measured["answer"] != own["answer"] or measured["step"] != own["step"]:
            raise UserError("the base model's tokenizer cannot read the same answers: leave out --base_model")
        for name, values in measured["scores"].items():
            if not prefix or not (name in (LENGTH, INDEX) or name.startswith(SHUFFLED)):
                scores[prefix + name] = np.array(values, dtype=float)
    return StepScores(np.array(own["answer"], dtype=int), np.array(own["step"], dtype=int), scores, answers)


def _rows(steps: StepScores, answers: GivenAnswers) -> list[dict[str, Any]]:
    """One for each answer."""
    rows: list[dict[str, Any]] = [
        {
            "index": int(answers.problem[number]),
            "sample": int(answers.sample[number]),
            "correct": None if np.isnan(answers.wrong[number]) else not answers.wrong[number],
            "first_error": None if np.isnan(answers.first_error[number]) else int(answers.first_error[number]),
            "steps": [],
        }
        for number in range(len(answers.records))
    ]
    for place, (answer, step) in enumerate(zip(steps.answer.tolist(), steps.step.tolist(), strict=True)):
        scores = {name: _rounded(values[place]) for name, values in steps.scores.items()}
        rows[answer]["steps"].append({"text": answers.records[answer]["steps"][step], **scores})
    return rows


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 7)


def _show(args: SurpriseArguments, summary: Mapping[str, Any]) -> None:
    if args.json:
        terminal.show_json(summary)
    else:
        for table in summary_tables(summary):
            terminal.show(table)
    samples = {"samples": 4, "select": ["vote", "vote+surprise"]}
    selecting = {"model_name": args.model_name, "test_file": "TEST.jsonl", **samples, "output_dir": "selected"}
    where = f"{SURPRISE_FILE}, {SUMMARY_FILE} and {SURPRISE_PICTURE} lie in {args.output_dir}"
    terminal.ends(where, terminal.typed("evaluate", selecting))
