"""`step-jepa pairing`: held-out views by a model and by its base, and what they know (pairing_measures.py)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from step_jepa.batches.views import Views
from step_jepa.data.sources import read_records
from step_jepa.data.tokens import Example
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import saved_predictors
from step_jepa.pairing.measures import HeldOut, measure, show
from step_jepa.run_files import OPTIONS_FILE, PAIRING_FILE, last_modified, records_digest, run_options, write_json
from step_jepa.training.config import StepJEPAOptions, view_options
from step_jepa.training.held_out import held_out as held_out_figures
from step_jepa.training.representation import Representation

console = Console(highlight=False, soft_wrap=True)


@dataclass
class PairingArguments:
    """Whose views, of which steps. Raises UserError for a number out of range."""

    model_name: list[str] = field(metadata={"help": "One or more models: hub id, folder, or smollm2."})
    test_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    output_dir: str = field(metadata={"help": f"Where {PAIRING_FILE} goes."})
    base_model: str | None = field(
        default=None, metadata={"help": "The model before training: the frozen judge of what was predicted."}
    )
    views_like: str | None = field(
        default=None,
        metadata={"help": "A run's folder, to read views as it did; otherwise as the model's own run did."},
    )
    limit: int | None = field(default=None, metadata={"help": "Take the first so many records only."})
    batch_size: int = field(default=16, metadata={"help": "Records read at once."})
    predictors: int = field(
        default=1, metadata={"help": "Predictor tokens, unless the model's folder holds trained ones."}
    )
    pool: int = field(default=32, metadata={"help": "Candidates of retrieval across problems."})
    pool_within: int = field(default=3, metadata={"help": "Candidates of retrieval within a problem."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(default=42, metadata={"help": "Of pools, resamples and untrained predictor rows."})
    overwrite: bool = field(default=False, metadata={"help": f"Replace the {PAIRING_FILE} that output_dir holds."})

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "batch_size": 1, "predictors": 0, "pool": 2, "pool_within": 2}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} = {value}: give {least} or more")


@dataclass
class Reading:
    """What one model makes of the records: its views, the examples that they are of, its input embeddings (V, E)."""

    views: Views
    examples: list[Example]
    embeddings: Tensor
    lm_loss: float


def run(args: PairingArguments) -> None:
    """Measure each model, print a table of it, write pairing.json; interrupted, the same call goes on. Raises
    UserError."""
    records = sorted(read_records(args.test_file, max_examples=args.limit), key=_length)  # little padding
    for name in [*args.model_name, *([args.base_model] if args.base_model else [])]:
        load_tokenizer(name)  # a wrong name should not be found out after an hour
    if args.views_like and not Path(resolve(args.views_like), OPTIONS_FILE).exists():
        raise UserError(f"{args.views_like} is no run's folder, it has no {OPTIONS_FILE}: leave out --views_like")
    results, path = _begun(args, records), Path(args.output_dir, PAIRING_FILE)
    bases: dict[str, Reading] = {}
    for name in args.model_name:
        if not _is_measured(results, name):
            results["models"][name] = measured(args, name, records, _base(args, name, records, bases))
            write_json(path, results)
        found = results["models"][name]
        console.print(show(found), Text(f"{name}: LM loss {found['lm_loss']:.4f}; {_training(found['run'])}"))
    console.print(f"{PAIRING_FILE} lies in {args.output_dir}")


def _length(record: Mapping[str, Any]) -> int:
    return sum(len(turn["content"]) for turn in record["messages"])


def _begun(args: PairingArguments, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an earlier call with the same settings has measured, of the same records and by the same base."""
    path, settings = Path(args.output_dir, PAIRING_FILE), {**asdict(args), "model_name": None, "overwrite": None}
    settings["records"] = records_digest(records)
    settings["base_written"] = _last_modified(args.base_model) if args.base_model else None
    begun = {"settings": settings, "models": {}}
    if args.overwrite or not path.exists():
        return begun
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("settings") != settings or all(_is_measured(found, name) for name in args.model_name):
        raise UserError(
            f"{path} holds results, of other settings or finished: give another --output_dir, or --overwrite"
        )
    return found


def _is_measured(results: dict[str, Any], name: str) -> bool:
    """Whether the results have this model's figures, and it was not trained anew since."""
    found = results["models"].get(name)
    return found is not None and found.get("model_written", "unknown") == last_modified(
        resolve(name), besides=PAIRING_FILE
    )


def _last_modified(model_name: str) -> float | None:
    return last_modified(resolve(model_name), besides=PAIRING_FILE)


def _training(run: dict[str, Any]) -> str:
    """What the model was trained for, in words."""
    if not run:
        return f"no {OPTIONS_FILE} says how it was trained"
    objective, horizon = run.get("objective", "unknown"), run.get("horizon", 1)
    names = objective if isinstance(objective, str) else ", ".join(objective)
    ahead = "" if horizon == 1 else f"; trained to predict {horizon} steps ahead, measured on the next"
    return f"objective {names}, control {run.get('control', 'unknown')}{ahead}"


def _reading(args: PairingArguments, model: str) -> dict[str, Any]:
    """How views are read."""
    return view_options(resolve(args.views_like or model))


def _base(
    args: PairingArguments, model: str, records: Sequence[Mapping[str, Any]], bases: dict[str, Reading]
) -> Reading | None:
    """What the base makes of the records, read as the model's are; `bases` has those that were read before."""
    if args.base_model is None:
        return None
    # Predictor rows and head are each model's own; an export that is a base needs its own to be loaded.
    own = {"predictors": saved_predictors(args.base_model) or 0}
    head = view_options(resolve(args.base_model)).get("predictor_head", "identity")
    reading = _reading(args, model) | own | {"predictor_head": head}
    key = json.dumps(reading, sort_keys=True)
    if key not in bases:
        bases[key] = read_views(args, args.base_model, records, **reading)
    return bases[key]


def measured(args: PairingArguments, name: str, records: Sequence[Mapping[str, Any]], base: Reading | None) -> dict:
    """The measures of one model; under `run`, all options that it was trained with, {} where they are not known."""
    trained, stamp = saved_predictors(name), _last_modified(name)
    predictors = args.predictors if trained is None else trained
    own = read_views(args, name, records, predictors=predictors, **_reading(args, name))
    result = measure(held_out(own, base, records), pool=args.pool, pool_within=args.pool_within, seed=args.seed)
    about = {"run": run_options(resolve(name)), "model_written": stamp, "trained_predictors": trained is not None}
    return {**about, "lm_loss": own.lm_loss, **result}


def held_out(own: Reading, base: Reading | None, records: Sequence[Mapping[str, Any]]) -> HeldOut:
    """Views and texts of all pairs of consecutive steps but those whose target is just the answer."""
    views, examples = own.views, own.examples
    places = list(zip(views.problem.tolist(), views.step.tolist(), strict=True))
    spans = [examples[problem].steps[step] for problem, step in places]
    templates = [records[problem].get("template") for problem, _ in places]
    if base is not None:
        assert base.views.problem.equal(views.problem)
        assert base.views.step.equal(views.step)
    ids = [examples[problem].input_ids for problem, _ in places]
    embeddings = (base or own).embeddings
    return HeldOut(
        predicted=views.predicted.numpy(),
        target=views.target.numpy(),
        base_target=base.views.target.numpy() if base else None,
        problem=views.problem.numpy(),
        step=views.step.numpy(),
        questions=[record["question"] for record in records],
        steps=[list(record["steps"]) for record in records],
        embedded_prefix=_embedded(embeddings, [own[:start] for own, (start, _) in zip(ids, spans, strict=True)]),
        embedded_step=_embedded(embeddings, [own[start:stop] for own, (start, stop) in zip(ids, spans, strict=True)]),
        length=np.array([stop - start for start, stop in spans]),
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
    result = held_out_figures(representation, rows, batch_size=args.batch_size)
    views = result.views.of(0)
    if not len(views):
        raise UserError(f"{args.test_file}: no record has two steps beside its answer, so there is no pair")
    embeddings = representation.model.get_input_embeddings().weight.detach().float().cpu()
    return Reading(views, rows.examples, embeddings, result.lm_loss)


def _embedded(embeddings: Tensor, texts: list[list[int]]) -> np.ndarray:
    """(P, E): mean embedding of the tokens of each text."""
    return torch.stack([embeddings[torch.tensor(text)].mean(0) for text in texts]).numpy()
