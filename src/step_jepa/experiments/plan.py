"""The plan of an experiment, from its options: which cells, and which of them are compared."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from step_jepa.errors import UserError
from step_jepa.experiments.design import FIXED, Cell, Comparison, Options, arms_of, comparisons_of
from step_jepa.pairing.measures import MEASURES
from step_jepa.parsing import from_file

ACCURACY = "accuracy"
# 0/1 scores that differ on a fifth of the problems, and two points of accuracy between seeds
ASSUMED = {"seed": 0.02**2, "problem": 0.0, "residual": 0.2}


@dataclass
class ExperimentArguments:
    """What is run; the tables among these are written in the file given as --config. Raises UserError."""

    output_dir: str = field(metadata={"help": "Where data, cells and results go."})
    arms: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Name -> options of `train` that differ; `controls` adds arms."}
    )
    recipe: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of `train` that all arms share."})
    data: dict[str, Any] = field(default_factory=dict, metadata={"help": "train and test: options of `prepare`."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "One cell of each arm for each."}
    )
    baseline: str = field(default="sft", metadata={"help": "The arm that the others are compared with."})
    primary: str = field(
        default="", metadata={"help": "The arm whose comparison with the baseline decides; named beforehand."}
    )
    comparisons: list[str] = field(
        default_factory=list,
        metadata={"help": "More, as `arm - arm`; made are all with the baseline and of an arm with its controls."},
    )
    grid: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Option -> values: every arm with a JEPA term at each."}
    )
    evaluate: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of `evaluate`."})
    pairing: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of `pairing`; without them views are not measured."}
    )
    measures: list[str] = field(
        default_factory=lambda: [ACCURACY], metadata={"help": "What is compared, the first one by `primary`."}
    )
    assumed: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Variances of a paired difference (seed, problem, residual), for the power stated before."},
    )
    quick_changes: dict[str, Any] = field(default_factory=dict, metadata={"help": "What --quick changes."})
    smoke_changes: dict[str, Any] = field(default_factory=dict, metadata={"help": "What --smoke changes."})
    quick: bool = field(default=False, metadata={"help": "The smaller version, see quick_changes."})
    smoke: bool = field(default=False, metadata={"help": "The smallest version, which shows that it runs."})
    shard: str = field(default="0/1", metadata={"help": "i/n: run every n-th cell from the i-th on; for job arrays."})
    workers: int = field(default=1, metadata={"help": "Cells at a time, which share the processor's cores."})
    keep_models: bool = field(default=False, metadata={"help": "Keep the weights of every cell."})
    dry_run: bool = field(
        default=False, metadata={"help": "Print the cells and what they will cost, by a timed probe."}
    )
    model_name: str | None = field(default=None, metadata={"help": "The model of all arms, instead of the recipe's."})
    train_file: str | None = field(default=None, metadata={"help": "What is trained on, instead of data's input_file."})
    test_file: str | None = field(default=None, metadata={"help": "What is tested on, instead of data's input_file."})
    name: str = field(default="experiment", metadata={"help": "Title of the results."})

    def __post_init__(self) -> None:
        for name in ("quick", "smoke"):
            if getattr(self, name):
                self._change(name, getattr(self, f"{name}_changes"))
        if self.model_name:
            self.recipe = {**self.recipe, "model_name": self.model_name}
        for name, file in (("train", self.train_file), ("test", self.test_file)):
            if file:
                self.data = _merged(self.data, {name: {"input_file": file}})
        self._check()

    def _change(self, version: str, changes: Options) -> None:
        if not changes:
            raise UserError(f"--{version}: this experiment has no {version}_changes: leave it out, or write them")
        for name, value in changes.items():
            if name not in self.__dataclass_fields__:
                raise UserError(f"{version}_changes has {name}, which is no option of an experiment")
            setattr(self, name, _merged(getattr(self, name), value))

    def _check(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            kind = get_origin(hint)
            if kind in (list, dict) and not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} = {getattr(self, name)}: give a {'list' if kind is list else 'table'}")
        if not self.arms or not self.data:
            raise UserError("an experiment needs arms and data: give --config experiments/lab.yaml, or one like it")
        if self.workers < 1:
            raise UserError(f"workers = {self.workers}: give 1 or more")
        for name in ("seeds", "measures"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise UserError(f"{name} = {given}: give at least one, and each once")
        if self.assumed.keys() - ASSUMED or not all(isinstance(each, int | float) for each in self.assumed.values()):
            raise UserError(f"assumed = {self.assumed}: give numbers for {', '.join(ASSUMED)}")
        known = [ACCURACY, *(MEASURES if self.pairing else ())]
        if unknown := [name for name in self.measures if name.removesuffix("_to_base") not in known]:
            raise UserError(f"measures: there is no {unknown[0]}: choose among {', '.join(known)}")


def _merged(old: Any, new: Any) -> Any:
    """Tables key by key; anything else is replaced."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key, {}), value) for key, value in new.items()}


@dataclass(frozen=True)
class Plan:
    """All cells, by seed first, so that an interrupted experiment has whole seeds; and the comparisons."""

    cells: list[Cell]
    comparisons: list[Comparison]
    primary: Comparison


def planned(args: ExperimentArguments, folder: Path) -> Plan:
    """Raises UserError for arms that are not there and for options that a command refuses."""
    arms = arms_of(args.arms, args.grid)
    for role, name in (("baseline", args.baseline), ("primary", args.primary)):
        if name not in arms:
            raise UserError(f"{role} is {name!r}, which is no arm: choose among {', '.join(arms)}")
    if args.primary == args.baseline:
        raise UserError(f"primary and baseline are both {args.baseline}: nothing would be compared")
    recipe = _expanded("train", args.recipe)
    evaluate, pairing = _expanded("evaluate", args.evaluate), _expanded("pairing", args.pairing)
    cells = [
        Cell(
            arm=arm,
            seed=seed,
            folder=folder / "cells" / _file_name(arm) / f"seed-{seed}",
            data=folder / "data",
            train={**recipe, **_expanded("train", options)},
            evaluate=evaluate,
            pairing=pairing or None,
            keep_model=args.keep_models,
        )
        for seed in args.seeds
        for arm, options in arms.items()
    ]
    _check_arms(cells[: len(arms)])
    made = comparisons_of(arms, args.baseline) + [_comparison(text, arms) for text in args.comparisons]
    return Plan(cells, list(dict.fromkeys(made)), Comparison(args.primary, args.baseline))


def _expanded(command: str, options: Options) -> Options:
    """With those of the file that `config` names, as a cell is known by its options. Raises UserError."""
    if fixed := sorted(FIXED[command] & options.keys()):
        raise UserError(f"{fixed[0]} follows from the experiment: leave it out of the options of `{command}`")
    of_file = from_file(options["config"]) if "config" in options else {}
    both = {**of_file, **options}
    return {name: value for name, value in both.items() if name not in FIXED[command] | {"config"}}


def _file_name(arm: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in arm)


def _check_arms(cells: list[Cell]) -> None:
    places = Counter(str(cell.folder).casefold() for cell in cells)
    for cell in cells:
        if places[str(cell.folder).casefold()] > 1:
            raise UserError(f"arms: {cell.arm} and another one would share {cell.folder}: give them other names")
        try:
            cell.training()
            cell.evaluation(overwrite=False)
            cell.measuring()
        except UserError as error:
            raise UserError(f"arm {cell.arm}: {error}") from None


def _comparison(text: str, arms: Mapping[str, Options]) -> Comparison:
    arm, _, other = text.partition(" - ")
    if arm not in arms or other not in arms:
        raise UserError(f"comparisons: {text!r} is no `arm - arm`: choose among {', '.join(arms)}")
    return Comparison(arm, other)
