"""`step-jepa pairing`: held-out views by a model and by its base, and what they know (measures.py)."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from step_jepa import terminal
from step_jepa.batches.views import Views
from step_jepa.data.example import Example
from step_jepa.data.reading import read_records, say_what_was_read
from step_jepa.data.reading_options import ReadingOptions, reading_values
from step_jepa.data.splits import TEST
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import saved_predictors
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.pairing.measures import measure
from step_jepa.pairing.pairs import Array, HeldOutPairs
from step_jepa.pairing.table import document, sentence, summary_rows
from step_jepa.run_files.identity import differing, last_modified, records_digest
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import OPTIONS_FILE, PAIRING_FILE, PAIRING_TABLE
from step_jepa.run_files.reading import check_fields, read_json, run_options
from step_jepa.run_files.writing import remove_unfinished, write_json, write_whole
from step_jepa.training.held_out import held_out
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.representation import Representation
from step_jepa.training.saved_options import take_reading_of_run, view_options

Records = Sequence[Mapping[str, Any]]

logger = logging.getLogger(__name__)


@dataclass
class PairingArguments(TemplateOptions, ReadingOptions):
    """Whose views, of which steps. Raises UserError for a number out of range."""

    model_name: list[str] = option(help="One or more models: hub id, folder, or smollm2.", is_path=True)
    test_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    output_dir: str = option(help=f"Where {PAIRING_FILE} and {PAIRING_TABLE} go.")
    base_model: str | None = option(
        None, help="The model before training: the frozen judge of what was predicted.", is_path=True
    )
    views_like: str | None = option(
        None, help="A run's folder, to read views as it did; otherwise as the model's own run did.", is_path=True
    )
    limit: int | None = option(None, help="Take the first so many records only.", least=1)
    batch_size: int = option(16, help="Records read at once.", least=1)
    predictors: int = option(1, help="Predictor tokens, unless the model's folder holds trained ones.", least=0)
    pool: int = option(32, help="Candidates of retrieval across problems.", least=2)
    pool_within: int = option(3, help="Candidates of retrieval within a problem.", least=2)
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.")
    seed: int = option(42, help="Of pools, resamples and untrained predictor rows.", least=0, most=MOST_SEED)
    overwrite: bool = option(False, help=f"Replace the {PAIRING_FILE} that output_dir holds.")
    json: bool = option(False, help="JSON on stdout instead of rows.")

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass
class Reading:
    """What one model makes of the records: its views, the examples that they are of, its input embeddings (V, E)."""

    views: Views
    examples: Sequence[Example]
    embeddings: Tensor
    lm_loss: float

    def pairs(self) -> Iterator[tuple[int, Example, slice]]:
        """(problem, example, place of the step among its tokens) of each view."""
        for problem, step in zip(self.views.problem.tolist(), self.views.step.tolist(), strict=True):
            example = self.examples[problem]
            yield problem, example, slice(*example.steps[step])


def run(args: PairingArguments) -> None:
    """Measure each model, print what decides, write pairing.json and, as a table, pairing.md.

    Interrupted, the same call goes on, and finished, it prints what there is. Raises UserError, also where another
    process writes into the folder."""
    with locked(Path(args.output_dir)):
        _run_alone(args)


def _run_alone(args: PairingArguments) -> None:
    take_reading_of_run(resolve(args.views_like or args.model_name[0]), args)
    records = sorted(read_records(args.test_file, TEST, args, max_examples=args.limit), key=_length)  # little padding
    say_what_was_read(args.test_file, records)
    _check_folders(args)
    remove_unfinished(Path(args.output_dir))
    results, path = _earlier_results(args, records), Path(args.output_dir, PAIRING_FILE)
    unmeasured = [name for name in args.model_name if not _is_measured(results, name)]
    base_readings: dict[str, Reading] = {}
    for name in args.model_name:
        if name in unmeasured:
            base = _read_base(args, name, records, base_readings)
            results["models"][name] = measure_model(args, name, records, base)
            write_json(path, results)
    write_whole(path.with_name(PAIRING_TABLE), document(results["models"]))
    if not unmeasured:
        terminal.note("it was finished before, by the same command; --overwrite makes it anew")
    _show(args, {name: results["models"][name] for name in args.model_name})
    page = terminal.reporting(args.output_dir)
    terminal.ends(f"{PAIRING_FILE}, and as a table {PAIRING_TABLE}, lie in {args.output_dir}", page)


def _length(record: Mapping[str, Any]) -> int:
    return sum(len(turn["content"]) for turn in record["messages"])


def _check_folders(args: PairingArguments) -> None:
    for name in [*args.model_name, *([args.base_model] if args.base_model else [])]:
        load_tokenizer(name)  # a wrong name should not be found out after an hour
    if args.views_like and not Path(resolve(args.views_like), OPTIONS_FILE).exists():
        raise UserError(f"{args.views_like} is no run's folder, it has no {OPTIONS_FILE}: leave out --views_like")


def _earlier_results(args: PairingArguments, records: Records) -> dict[str, Any]:
    """What an earlier call with the same settings has measured, of the same records and by the same base."""
    path, settings = Path(args.output_dir, PAIRING_FILE), _settings(args, records)
    if args.overwrite or not path.exists():
        return {"settings": settings, "models": {}}
    results = read_json(path, settings=dict, models=dict)
    for name in results["models"]:
        check_fields(results["models"][name], path, run=dict, lm_loss=float, measures=dict, differences=dict)
    if others := differing(settings, results["settings"]):
        raise UserError(f"{path} holds results of other settings ({others}): give another --output_dir, or --overwrite")
    return results


def _settings(args: PairingArguments, records: Records) -> dict[str, Any]:
    """What the figures of all models in one pairing.json have in common."""
    known_by_records = reading_values(args)
    return {
        **{name: value for name, value in asdict(args).items() if name not in known_by_records},
        "model_name": None,
        "overwrite": None,
        "json": None,
        "records": records_digest(records),
        "base_written": last_modified(resolve(args.base_model)) if args.base_model else None,
    }


def _is_measured(results: dict[str, Any], name: str) -> bool:
    """Whether the results have this model's figures, and it was not trained anew since."""
    result = results["models"].get(name)
    return result is not None and result.get("model_written", "unknown") == last_modified(resolve(name))


def _show(args: PairingArguments, models: dict[str, dict[str, Any]]) -> None:
    if args.json:
        terminal.show_json(models)
        return
    for name, result in models.items():
        terminal.result(summary_rows(result), sentence(name, result))


def measure_model(args: PairingArguments, name: str, records: Records, base: Reading | None) -> dict[str, Any]:
    """The measures of one model; under `run`, all options that it was trained with, {} where they are not known."""
    trained, model_written = saved_predictors(name), last_modified(resolve(name))
    predictors = args.predictors if trained is None else trained
    reading = read_views(args, name, records, predictors=predictors, **_view_options(args, name))
    pairs = held_out_pairs(reading, base, records)
    return {
        "run": run_options(resolve(name)),
        "model_written": model_written,
        "trained_predictors": trained is not None,
        "lm_loss": reading.lm_loss,
        **measure(pairs, pool=args.pool, pool_within=args.pool_within, seed=args.seed),
    }


def _view_options(args: PairingArguments, model: str) -> dict[str, Any]:
    """How the model's views are read."""
    return view_options(resolve(args.views_like or model), args)


def _read_base(args: PairingArguments, model: str, records: Records, readings: dict[str, Reading]) -> Reading | None:
    """What the base makes of the records, read as the model's are; `readings` has those that were read before."""
    if args.base_model is None:
        return None
    # Predictor rows and head are each model's own; an export that is a base needs its own to be loaded.
    options = _view_options(args, model) | {
        "predictors": saved_predictors(args.base_model) or 0,
        "predictor_head": view_options(resolve(args.base_model)).get("predictor_head", "identity"),
    }
    key = json.dumps(options, sort_keys=True)
    if key not in readings:
        readings[key] = read_views(args, args.base_model, records, **options)
    return readings[key]


def held_out_pairs(reading: Reading, base: Reading | None, records: Records) -> HeldOutPairs:
    """Views and texts of all pairs of consecutive steps but those whose target is just the answer."""
    views = reading.views
    if base is not None:
        assert base.views.problem.equal(views.problem)
        assert base.views.step.equal(views.step)
    templates = [records[problem].get("template") for problem in views.problem.tolist()]
    embedded_prefix, embedded_step = _mean_embeddings(reading, (base or reading).embeddings)
    return HeldOutPairs(
        predicted=views.predicted.numpy(),
        target=views.target.numpy(),
        base_target=base.views.target.numpy() if base else None,
        problem=views.problem.numpy(),
        step=views.step.numpy(),
        questions=[record["question"] for record in records],
        steps=[list(record["steps"]) for record in records],
        embedded_prefix=embedded_prefix,
        embedded_step=embedded_step,
        length=np.array([place.stop - place.start for _, _, place in reading.pairs()]),
        template=None if None in templates else np.array(templates),
    )


def read_views(args: PairingArguments, model: str, records: Sequence[Mapping[str, Any]], **options: Any) -> Reading:
    """The views of all pairs by one model. Raises UserError where there is none."""
    representation = Representation.load(
        model,
        StepJEPAOptions(pairs="all", max_length=None, **options),
        seed=args.seed,
        model_init_kwargs={"dtype": args.dtype},
    )
    rows = representation.evaluation_rows(records)
    result = held_out(representation, rows, batch_size=args.batch_size)
    views = result.views.of(0)
    if not len(views):
        raise UserError(f"{args.test_file}: no record has two steps beside its answer, so there is no pair")
    embeddings = representation.model.get_input_embeddings().weight.detach().float().cpu()
    return Reading(views, rows.examples, embeddings, result.lm_loss)


def _mean_embeddings(reading: Reading, embeddings: Tensor) -> tuple[Array, Array]:
    """(P, E) twice: mean embedding of the tokens before each step, and of the step's, from sums up to each token."""
    prefixes, steps = [], []
    for problem, pairs in groupby(reading.pairs(), key=itemgetter(0)):
        ids = torch.tensor(reading.examples[problem].input_ids)
        sums = F.pad(embeddings[ids].double().cumsum(0), (0, 0, 1, 0))
        starts, stops = torch.tensor([[place.start, place.stop] for _, _, place in pairs]).T
        prefixes.append((sums[starts] / starts[:, None]).float())
        steps.append(((sums[stops] - sums[starts]) / (stops - starts)[:, None]).float())
    return torch.cat(prefixes).numpy(), torch.cat(steps).numpy()
