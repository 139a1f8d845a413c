"""What an experiment is: arms and seeds make cells, each one training run and its evaluation."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from step_jepa.adapted import StepJEPAConfig
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.experiments.data import FILES
from step_jepa.pairing.command import PairingArguments
from step_jepa.parsing import parse, words
from step_jepa.run_files import file_digest
from step_jepa.train import TrainArguments

Options = Mapping[str, Any]
# What follows from the experiment; an arm that gave it would not be what it says.
FIXED = {
    "train": {"train_file", "output_dir", "seed", "overwrite", "resume_from_checkpoint"},
    "evaluate": {"model_name", "test_file", "output_dir", "overwrite"},
    "pairing": {"model_name", "test_file", "output_dir", "overwrite"},
}


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. `train` has the options of that command but seed and files, which are the same in all
    arms; `pairing` is None where views are not measured."""

    arm: str
    seed: int
    folder: Path
    data: Path
    train: Options
    evaluate: Options
    pairing: Options | None
    keep_model: bool = False

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def training(self, **changes: Any) -> tuple[TrainArguments, StepJEPAConfig]:
        """Raises UserError for options that `train` refuses."""
        own = {"train_file": self.data / FILES["train"], "output_dir": self.model, "seed": self.seed}
        arguments, config = parse("train", [TrainArguments, StepJEPAConfig], words({**self.train, **own, **changes}))
        return arguments, config

    def evaluation(self, *, overwrite: bool) -> EvaluateArguments:
        """Raises UserError for options that `evaluate` refuses."""
        (arguments,) = parse("evaluate", [EvaluateArguments], words(self._of_model(self.evaluate, "scores", overwrite)))
        return arguments

    def measuring(self) -> PairingArguments | None:
        """Raises UserError for options that `pairing` refuses."""
        if self.pairing is None:
            return None
        (arguments,) = parse("pairing", [PairingArguments], words(self._of_model(self.pairing, "pairing", True)))
        return arguments

    def _of_model(self, options: Options, folder: str, overwrite: bool) -> Options:
        files = {"model_name": self.model, "test_file": self.data / FILES["test"], "output_dir": self.folder / folder}
        return {**options, **files, "overwrite": overwrite}

    def identity(self) -> dict[str, Any]:
        """What a finished cell must have in common with this one to stand for it; as JSON reads it."""
        about = {"arm": self.arm, "seed": self.seed, "train": self.train, "evaluate": self.evaluate}
        about |= {"pairing": self.pairing, "data": {name: file_digest(self.data / name) for name in FILES.values()}}
        return dict(json.loads(json.dumps(about, default=str)))


@dataclass(frozen=True)
class Comparison:
    """Arm minus baseline."""

    arm: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.arm} - {self.baseline}"


def arms_of(arms: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Options]:
    """The options of every arm by its name. An arm that names `controls` brings one more for each; the grid multiplies
    all arms that have a JEPA term. Raises UserError for what is no table or no list."""
    for name, values in grid.items():
        if not isinstance(values, list):
            raise UserError(f"grid: {name} is no list of values: write `{name}: [{values}]`")
    found: dict[str, Options] = {}
    for name, options in arms.items():
        if not isinstance(options, Mapping):
            raise UserError(f"arms: {name} is no table of options: write `{name}: {{objective: none}}`")
        controls = options.get("controls") or []
        if not isinstance(controls, list):
            raise UserError(f"arms: the controls of {name} are no list: write `controls: [{controls}]`")
        rest = {key: value for key, value in options.items() if key != "controls"}
        for point in [{}] if rest.get("objective") == "none" else _points(grid):
            named = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
            found[named] = {**rest, **point}
            found |= {f"{named}.{control}": {**found[named], "control": control} for control in controls}
    return found


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def comparisons_of(arms: Mapping[str, Options], baseline: str) -> list[Comparison]:
    """Each arm against the baseline, and against each of its own controls."""
    own = [(name.removesuffix(f".{options.get('control')}"), name) for name, options in arms.items()]
    pairs = [(name, baseline) for name in arms if name != baseline] + [(arm, name) for arm, name in own if arm != name]
    return [Comparison(arm, other) for arm, other in pairs if arm in arms]
