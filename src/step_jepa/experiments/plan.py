"""Conditions and seeds make runs, and some pairs of conditions are compared.

A condition is called an arm, and a run a cell, in the files and messages that users read.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from step_jepa.adapted import StepJEPAConfig
from step_jepa.arguments.parsing import from_file, overridden
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.experiments.arguments import FIXED, ExperimentArguments, argument_types, arguments_of
from step_jepa.experiments.conditions import Options, conditions_of
from step_jepa.experiments.contrasts import Comparison, Contrast, comparisons_of, contrast_of
from step_jepa.pairing.command import PairingArguments
from step_jepa.run_files.identity import file_digest
from step_jepa.surprise.command import SurpriseArguments
from step_jepa.train.arguments import TrainArguments

DATA_FILES = {"train": "train.jsonl", "test": "test.jsonl"}
# How held-out losses are taken, so that arms that were trained on different ones can be compared.
COMPARABLE: Options = {"objective": ["step_jepa"], "pairs": "all", "loss": "cosine"}


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
    further = [contrast_of(text, conditions) for text in args.comparisons]
    unique = list(dict.fromkeys([*comparisons_of(conditions, args.baseline), *further, primary]))
    return Plan(runs, unique, primary)


def _primary(args: ExperimentArguments, conditions: Mapping[str, Options]) -> Contrast:
    """Raises UserError for arms that are not there."""
    if args.baseline is not None:
        _check_arm_exists("baseline", args.baseline, conditions)
    if " - " in args.primary and args.primary not in conditions:
        return contrast_of(args.primary, conditions)
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
