"""What an experiment is: conditions and seeds make runs, and some pairs of conditions are compared.

A condition is called an arm, and a run a cell, in the files and messages that users read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from step_jepa import statistics
from step_jepa.adapted import StepJEPAConfig, train_config
from step_jepa.data.prepare import PrepareArguments
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.options import check_bounds, option
from step_jepa.pairing.command import PairingArguments
from step_jepa.pairing.measures import MEASURES
from step_jepa.parsing import from_file, from_values, overridden, relative_to
from step_jepa.run_files import file_digest
from step_jepa.statistics import Difference, ScoreTable
from step_jepa.surprise.command import SurpriseArguments
from step_jepa.surprise.measures import MEASURES as SURPRISE_MEASURES
from step_jepa.train.arguments import TrainArguments

Options = Mapping[str, Any]

# In the experiment's folder; in its folder `data`
RESULTS_TEXT, RESULTS_CSV, RESULTS_PICTURE = "results.md", "results.csv", "results.png"
DATA_FILES = {"train": "train.jsonl", "test": "test.jsonl"}
ACCURACY = "accuracy"
# 0/1 scores that differ on a fifth of the problems, and two points of accuracy between seeds
ASSUMED = {"seed": 0.02**2, "problem": 0.0, "residual": 0.2}
LEAST_VARIANCE, MOST_VARIANCE = 1e-12, 1e6  # beyond these no score of ours is, and float64 loses its way
_INTERACTION = re.compile(r"\((.+)\) - \((.+)\)")
# What follows from the experiment; a condition that gave it would not be what it says.
FIXED = {
    "train": {"train_file", "output_dir", "seed", "overwrite", "resume_from_checkpoint"},
    "evaluate": {"model_name", "test_file", "output_dir", "overwrite"},
    "pairing": {"model_name", "test_file", "output_dir", "overwrite"},
    "surprise": {"model_name", "base_model", "test_file", "output_dir", "overwrite"},
}


# How held-out losses are taken, so that arms that were trained on different ones can be compared.
COMPARABLE: Options = {"objective": ["step_jepa"], "pairs": "all", "loss": "cosine"}


def argument_types(command: str) -> list[type]:
    """The dataclasses of a command whose options an experiment holds."""
    types: dict[str, list[type]] = {
        "train": [TrainArguments, train_config()],
        "prepare": [PrepareArguments],
        "evaluate": [EvaluateArguments],
        "pairing": [PairingArguments],
        "surprise": [SurpriseArguments],
    }
    return types[command]


def arguments_of(command: str, values: Options) -> tuple[Any, ...]:
    """The dataclasses of a command from settings of an experiment. Raises UserError for what the command refuses."""
    return from_values(command, argument_types(command), values)


# Options


@dataclass
class ExperimentArguments:
    """What is run; the tables among these are written in the file given as --config. Raises UserError."""

    output_dir: str = option(help="Where data, cells and results go.")
    arms: dict[str, Any] = option(
        default_factory=dict, help="Name -> options of `train` that differ; `controls` adds arms."
    )
    recipe: dict[str, Any] = option(default_factory=dict, help="Options of `train` that all arms share.")
    data: dict[str, Any] = option(default_factory=dict, help="train and test: options of `prepare`.")
    seeds: list[int] = option(default_factory=lambda: [0, 1, 2, 3, 4], help="One cell of each arm for each.")
    baseline: str | None = option(
        "sft", help="The arm that the others are compared with; null: only `primary` and `comparisons` are made."
    )
    primary: str = option(
        "", help="The arm whose comparison with the baseline decides, or a comparison; named beforehand."
    )
    comparisons: list[str] = option(
        default_factory=list,
        help="More, as `arm - arm`, or `(arm - arm) - (arm - arm)`, an interaction; made are all with the baseline and "
        "of an arm with its controls.",
    )
    grid: dict[str, Any] = option(default_factory=dict, help="Option -> values: every arm with a JEPA term at each.")
    evaluate: dict[str, Any] = option(default_factory=dict, help="Options of `evaluate`.")
    pairing: dict[str, Any] = option(
        default_factory=dict, help="Options of `pairing`; without them views are not measured."
    )
    surprise: dict[str, Any] = option(
        default_factory=dict,
        help="Options of `surprise`, for generated chains; without them it is not measured.",
    )
    measures: list[str] = option(
        default_factory=lambda: [ACCURACY], help="What is compared, the first one by `primary`."
    )
    assumed: dict[str, Any] = option(
        default_factory=dict,
        help="Variances of a paired difference (seed, problem, residual), for the power stated before.",
    )
    quick_changes: dict[str, Any] = option(default_factory=dict, help="What --quick changes.")
    smoke_changes: dict[str, Any] = option(default_factory=dict, help="What --smoke changes.")
    quick: bool = option(False, help="The smaller version, see quick_changes.")
    smoke: bool = option(False, help="The smallest version, which shows that it runs.")
    shard: str = option("0/1", help="i/n: run every n-th cell from the i-th on; for job arrays.")
    workers: int = option(1, help="Cells at a time, which share the processor's cores.", least=1)
    keep_models: bool = option(False, help="Keep the weights of every cell.")
    dry_run: bool = option(False, help="Print the cells and what they will cost, by a timed probe.")
    json: bool = option(False, help="JSON on stdout instead of rows.")
    model_name: str | None = option(None, help="The model of all arms, instead of the recipe's.", is_path=True)
    train_file: str | None = option(None, help="What is trained on, instead of data's input_file.", is_path=True)
    test_file: str | None = option(None, help="What is tested on, instead of data's input_file.", is_path=True)
    name: str = option("experiment", help="Title of the results.")
    note: str = option("", help="A sentence that the results repeat.")

    def __post_init__(self) -> None:
        if self.quick:
            self._change("quick", self.quick_changes)
        if self.smoke:
            self._change("smoke", self.smoke_changes)
        if self.model_name:
            self.recipe = {**self.recipe, "model_name": self.model_name}
        if self.train_file:
            self.data = _merged(self.data, {"train": {"input_file": self.train_file}})
        if self.test_file:
            self.data = _merged(self.data, {"test": {"input_file": self.test_file}})
        self._check_kinds()
        self._check_given()
        check_bounds(self)
        self._check_assumed()
        self._check_measures()

    @staticmethod
    def nested_paths(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        """The options of an experiment's file, with the paths in their tables read from the file's folder."""
        resolved = dict(values)
        for name, command in {"recipe": "train", **{name: name for name in FIXED if name != "train"}}.items():
            if name in values:
                resolved[name] = relative_to(folder, argument_types(command), values[name])
        for name, command in {"arms": "train", "data": "prepare"}.items():
            if isinstance(values.get(name), dict):
                types, tables = argument_types(command), values[name]
                resolved[name] = {key: relative_to(folder, types, table) for key, table in tables.items()}
        for name in ("quick_changes", "smoke_changes"):
            if isinstance(values.get(name), dict):
                resolved[name] = ExperimentArguments.nested_paths(folder, values[name])
        return resolved

    def _change(self, version: str, changes: Options) -> None:
        if not changes:
            raise UserError(f"--{version}: this experiment has no {version}_changes: leave it out, or write them")
        for name, value in changes.items():
            if name not in self.__dataclass_fields__:
                raise UserError(f"{version}_changes has {name}, which is no option of an experiment")
            setattr(self, name, _merged(getattr(self, name), value))

    def _check_kinds(self) -> None:
        """The changes of a version can bring anything."""
        for name, hint in get_type_hints(type(self)).items():
            kind, value = get_origin(hint), getattr(self, name)
            if kind in (list, dict) and not isinstance(value, kind):
                raise UserError(f"{name} = {value}: give a {'list' if kind is list else 'table'}")

    def _check_given(self) -> None:
        if not self.arms or not self.data:
            raise UserError("an experiment needs arms and data: give --config experiments/lab.yaml, or one like it")
        for name in ("seeds", "measures"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name} = {values}: give at least one, and each once")

    def _check_assumed(self) -> None:
        variances = {**ASSUMED, **self.assumed}
        known = variances.keys() == ASSUMED.keys()
        if not known or not all(map(_is_variance, variances.values())) or max(variances.values()) < LEAST_VARIANCE:
            bounds = f"from 0 to {MOST_VARIANCE:g}, one of them {LEAST_VARIANCE:g} or more"
            raise UserError(f"assumed = {self.assumed}: give numbers for {', '.join(ASSUMED)}, {bounds}")

    def _check_measures(self) -> None:
        known = [ACCURACY, *self.evaluate.get("also", ()), *(MEASURES if self.pairing else ())]
        known += SURPRISE_MEASURES if self.surprise else []
        for name in self.measures:
            if name.removesuffix("_to_base") not in known:
                raise UserError(f"measures: there is no {name}: choose among {', '.join(known)}")


def _is_variance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_VARIANCE


def _merged(old: Any, new: Any) -> Any:
    """Tables key by key; anything else is replaced."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key, {}), value) for key, value in new.items()}


# Conditions


@dataclass(frozen=True)
class Comparison:
    """Condition minus baseline."""

    condition: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.condition} - {self.baseline}"

    @property
    def conditions(self) -> tuple[str, str]:
        return self.condition, self.baseline

    def difference(self, table: ScoreTable) -> Difference:
        """Of the scores. Raises UserError as `statistics.difference` does."""
        return statistics.difference(table, self.condition, self.baseline)


@dataclass(frozen=True)
class Interaction:
    """What changes in a comparison by another factor: the first less the second."""

    first: Comparison
    second: Comparison

    def __str__(self) -> str:
        return f"({self.first}) - ({self.second})"

    @property
    def conditions(self) -> tuple[str, ...]:
        return *self.first.conditions, *self.second.conditions

    def difference(self, table: ScoreTable) -> Difference:
        """Of the scores. Raises UserError as `statistics.interaction` does."""
        return statistics.interaction(table, self.first.conditions, self.second.conditions)


Contrast = Comparison | Interaction


def conditions_of(arms: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Options]:
    """The options of every condition by its name.

    Args:
        arms: name -> options of `train`. An arm that names `controls` brings one more condition for each.
        grid: option -> values; multiplies all arms that have a JEPA term.

    Raises:
        UserError: for what is no table or no list.
    """
    for name, values in grid.items():
        if not isinstance(values, list):
            raise UserError(f"grid: {name} is no list of values: write `{name}: [{values}]`")
    conditions: dict[str, Options] = {}
    for name, options in arms.items():
        _check_arm(name, options)
        conditions |= _conditions_of_arm(name, options, grid)
    return conditions


def _check_arm(name: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(f"arms: {name} is no table of options: write `{name}: {{objective: none}}`")
    controls = options.get("controls") or []
    if not isinstance(controls, list):
        raise UserError(f"arms: the controls of {name} are no list: write `controls: [{controls}]`")


def _conditions_of_arm(name: str, options: Options, grid: Mapping[str, Any]) -> dict[str, Options]:
    shared = {key: value for key, value in options.items() if key != "controls"}
    points: Sequence[Options] = [{}] if shared.get("objective") == "none" else list(_points(grid))
    conditions: dict[str, Options] = {}
    for point in points:
        settings = (f"{key}={value}" for key, value in point.items())
        condition = " ".join([name, *settings])
        conditions[condition] = {**shared, **point}
        for control in options.get("controls") or []:
            conditions[f"{condition}.{control}"] = {**shared, **point, "control": control}
    return conditions


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def comparisons_of(conditions: Mapping[str, Options], baseline: str | None) -> list[Comparison]:
    """Each condition against the baseline, if there is one, and against each of its own controls."""
    comparisons = [Comparison(name, baseline) for name in conditions if baseline not in (None, name)]
    for name, options in conditions.items():
        controlled = name.removesuffix(f".{options.get('control')}")
        if controlled != name and controlled in conditions:
            comparisons.append(Comparison(controlled, name))
    return comparisons


# Runs


@dataclass(frozen=True)
class Run:
    """One condition with one seed: a training run and its evaluation.

    folder, data_folder    of this run; of the files that all runs read
    train, evaluate, pairing, surprise
                           options of these commands but seed and files, which are the same in all conditions; pairing
                           and surprise are None where they are not measured
    keep_model             whether the weights stay when all is measured
    """

    condition: str
    seed: int
    folder: Path
    data_folder: Path
    train: Options
    evaluate: Options
    pairing: Options | None
    surprise: Options | None = None
    keep_model: bool = False

    def __str__(self) -> str:
        return f"{self.condition}, seed {self.seed}"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def train_file(self) -> Path:
        return self.data_folder / DATA_FILES["train"]

    @property
    def test_file(self) -> Path:
        return self.data_folder / DATA_FILES["test"]

    def training(self, **changes: Any) -> tuple[TrainArguments, StepJEPAConfig]:
        """Raises UserError for options that `train` refuses."""
        fixed = {"train_file": self.train_file, "output_dir": self.model_folder, "seed": self.seed}
        values = {**self.train, **fixed, **changes}
        arguments, config = arguments_of("train", values)
        return arguments, config

    def evaluation(self, *, overwrite: bool) -> EvaluateArguments:
        """Raises UserError for options that `evaluate` refuses."""
        values = self._for_model({**COMPARABLE, **self.evaluate}, "scores", overwrite)
        (arguments,) = arguments_of("evaluate", values)
        return arguments

    def measuring(self) -> PairingArguments | None:
        """None where views are not measured. Raises UserError for options that `pairing` refuses."""
        if self.pairing is None:
            return None
        values = self._for_model(self.pairing, "pairing", overwrite=True)
        values = {**values, "model_name": [self.model_folder]}
        (arguments,) = arguments_of("pairing", values)
        return arguments

    def surprising(self) -> SurpriseArguments | None:
        """None where surprise is not measured. Raises UserError for options that `surprise` refuses."""
        if self.surprise is None:
            return None
        (arguments,) = arguments_of("surprise", self._for_model(self.surprise, "surprise", overwrite=True))
        return arguments

    def _for_model(self, options: Options, folder: str, overwrite: bool) -> Options:
        files = {"model_name": self.model_folder, "test_file": self.test_file, "output_dir": self.folder / folder}
        return {**options, **files, "overwrite": overwrite}

    def identity(self) -> dict[str, Any]:
        """What a finished run must have in common with this one to stand for it; as JSON reads it."""
        digests = {name: file_digest(self.data_folder / name) for name in DATA_FILES.values()}
        identity = {
            "arm": self.condition,
            "seed": self.seed,
            "train": self.train,
            "evaluate": self.evaluate,
            "pairing": self.pairing,
            "surprise": self.surprise,
            "data": digests,
        }
        return dict(json.loads(json.dumps(identity, default=str)))


@dataclass(frozen=True)
class Plan:
    """All runs, by seed first, so that an interrupted experiment has whole seeds; and the comparisons."""

    runs: list[Run]
    comparisons: list[Contrast]
    primary: Contrast


def planned(args: ExperimentArguments, folder: Path) -> Plan:
    """The plan of an experiment in this folder.

    Raises:
        UserError: for arms that are not there and for options that a command refuses.
    """
    conditions = conditions_of(args.arms, args.grid)
    primary = _primary(args, conditions)
    runs = _runs(args, conditions, folder)
    _check_runs(runs[: len(conditions)])  # seeds differ in nothing that could be refused
    further = [_contrast(text, conditions) for text in args.comparisons]
    unique = list(dict.fromkeys([*comparisons_of(conditions, args.baseline), *further, primary]))
    return Plan(runs, unique, primary)


def _primary(args: ExperimentArguments, conditions: Mapping[str, Options]) -> Contrast:
    """Raises UserError for arms that are not there."""
    if args.baseline is not None:
        _check_arm_exists("baseline", args.baseline, conditions)
    if " - " in args.primary and args.primary not in conditions:
        return _contrast(args.primary, conditions)
    _check_arm_exists("primary", args.primary, conditions)
    if args.baseline is None:
        raise UserError(f"primary is {args.primary}, without a baseline: write it as `arm - arm`, or give a baseline")
    if args.primary == args.baseline:
        raise UserError(f"primary and baseline are both {args.baseline}: nothing would be compared")
    return Comparison(args.primary, args.baseline)


def _check_arm_exists(role: str, name: str, conditions: Mapping[str, Options]) -> None:
    if name not in conditions:
        raise UserError(f"{role} is {name!r}, which is no arm: choose among {', '.join(conditions)}")


def _runs(args: ExperimentArguments, conditions: Mapping[str, Options], folder: Path) -> list[Run]:
    recipe = _expanded("train", args.recipe)
    evaluate, pairing = _expanded("evaluate", args.evaluate), _expanded("pairing", args.pairing)
    surprise = _expanded("surprise", args.surprise)
    types = argument_types("train")
    train = {name: overridden(types, recipe, _expanded("train", options)) for name, options in conditions.items()}
    return [
        Run(
            condition=condition,
            seed=seed,
            folder=folder / "cells" / _file_name(condition) / f"seed-{seed}",
            data_folder=folder / "data",
            train=train[condition],
            evaluate=evaluate,
            pairing=pairing or None,
            surprise=surprise or None,
            keep_model=args.keep_models,
        )
        for seed, condition in product(args.seeds, conditions)
    ]


def _expanded(command: str, options: Options) -> Options:
    """With those of the file that `config` names, as a run is known by its options. Raises UserError."""
    if fixed := sorted(FIXED[command] & options.keys()):
        raise UserError(f"{fixed[0]} follows from the experiment: leave it out of the options of `{command}`")
    of_file = from_file(options["config"], argument_types(command)) if "config" in options else {}
    left_out = FIXED[command] | {"config"}
    values = overridden(argument_types(command), of_file, options)
    return {name: value for name, value in values.items() if name not in left_out}


def _file_name(condition: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in condition)


def _check_runs(runs: Sequence[Run]) -> None:
    """Raises UserError where two would share a folder (some file systems know no case), and for refused options."""
    uses = Counter(str(run.folder).casefold() for run in runs)
    for run in runs:
        if uses[str(run.folder).casefold()] > 1:
            raise UserError(f"arms: {run.condition} and another one would share {run.folder}: give them other names")
        try:
            run.training()
            run.evaluation(overwrite=False)
            run.measuring()
            run.surprising()
        except UserError as error:
            raise UserError(f"arm {run.condition}: {error}") from None


def _contrast(text: str, conditions: Mapping[str, Options]) -> Contrast:
    if interaction := _INTERACTION.fullmatch(text):
        return Interaction(*(_comparison(part, conditions) for part in interaction.groups()))
    return _comparison(text, conditions)


def _comparison(text: str, conditions: Mapping[str, Options]) -> Comparison:
    condition, _, baseline = text.partition(" - ")
    if condition not in conditions or baseline not in conditions:
        raise UserError(
            f"comparisons: {text!r} is no `arm - arm`, nor `(arm - arm) - (arm - arm)`: choose among "
            f"{', '.join(conditions)}"
        )
    return Comparison(condition, baseline)
