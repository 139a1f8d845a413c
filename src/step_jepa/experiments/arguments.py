"""What an experiment is asked for: its options, and those of the commands that its runs call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from step_jepa.adapted import train_config
from step_jepa.arguments.parsing import from_values, relative_to
from step_jepa.data.prepare import PrepareArguments
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.experiments.conditions import Options
from step_jepa.options import check_bounds, option
from step_jepa.pairing.command import PairingArguments
from step_jepa.pairing.measures import MEASURES
from step_jepa.surprise.command import SurpriseArguments
from step_jepa.surprise.measures import MEASURES as SURPRISE_MEASURES
from step_jepa.train.arguments import TrainArguments

ACCURACY = "accuracy"
# 0/1 scores that differ on a fifth of the problems, and two points of accuracy between seeds
ASSUMED = {"seed": 0.02**2, "problem": 0.0, "residual": 0.2}
LEAST_VARIANCE, MOST_VARIANCE = 1e-12, 1e6  # beyond these no score of ours is, and float64 loses its way
# What follows from the experiment; a condition that gave it would not be what it says.
FIXED = {
    "train": {"train_file", "output_dir", "seed", "overwrite", "resume_from_checkpoint"},
    "evaluate": {"model_name", "test_file", "output_dir", "overwrite"},
    "pairing": {"model_name", "test_file", "output_dir", "overwrite"},
    "surprise": {"model_name", "base_model", "test_file", "output_dir", "overwrite"},
}


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
