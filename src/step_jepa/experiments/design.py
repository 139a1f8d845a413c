"""What an experiment is: arms and seeds make cells, each one training run and its evaluation."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from step_jepa.adapted import StepJEPAConfig
from step_jepa.data.prepare import PrepareArguments
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.evaluation.heldout import PairingArguments
from step_jepa.options import parse, words
from step_jepa.train import TrainArguments

Options = Mapping[str, Any]
TRAIN, TEST = "train.jsonl", "test.jsonl"


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. `options` are those of `train` but seed and files, which are the same in all arms;
    `pairing` is None where views are not measured."""

    arm: str
    seed: int
    folder: Path
    data: Path
    options: Options
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
        files = {"train_file": self.data / TRAIN, "output_dir": self.model, "seed": self.seed}
        found = parse("train", [TrainArguments, StepJEPAConfig], words({**self.options, **files, **changes}))
        return found[0], found[1]

    def evaluation(self, **changes: Any) -> EvaluateArguments:
        """Raises UserError for options that `evaluate` refuses."""
        files = {"model_name": self.model, "test_file": self.data / TEST, "output_dir": self.folder / "scores"}
        return parse("evaluate", [EvaluateArguments], words({**self.evaluate, **files, "overwrite": True, **changes}))[
            0
        ]

    def pairing_measures(self) -> PairingArguments | None:
        """Raises UserError for options that `pairing` refuses."""
        if self.pairing is None:
            return None
        files = {"model_name": self.model, "test_file": self.data / TEST, "output_dir": self.folder / "pairing"}
        return parse("pairing", [PairingArguments], words({**self.pairing, **files, "overwrite": True}))[0]

    def identity(self) -> dict[str, Any]:
        """What a finished cell must have in common with this one to stand for it; as JSON reads it."""
        files = {name: (self.data / name).read_bytes() for name in (TRAIN, TEST)}
        about = {"arm": self.arm, "seed": self.seed, "train": self.options, "evaluate": self.evaluate}
        about |= {
            "pairing": self.pairing,
            "data": {name: hashlib.sha256(text).hexdigest() for name, text in files.items()},
        }
        return dict(json.loads(json.dumps(about, default=str)))


@dataclass(frozen=True)
class Comparison:
    """Arm minus baseline."""

    arm: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.arm} - {self.baseline}"


def arms_of(arms: Mapping[str, Options], grid: Mapping[str, Sequence[Any]]) -> dict[str, Options]:
    """The options of every arm by its name. An arm that names `controls` brings one more for each; the grid multiplies
    all arms that have a JEPA term. Raises UserError for an arm that is no table."""
    found: dict[str, Options] = {}
    for name, options in arms.items():
        if not isinstance(options, Mapping):
            raise UserError(f"arms: {name} is no table of options: write `{name}: {{objective: none}}`")
        rest = {key: value for key, value in options.items() if key != "controls"}
        points = [{}] if rest.get("objective") == "none" else list(_points(grid))
        for point in points:
            named = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
            found[named] = {**rest, **point}
            for control in options.get("controls", []):
                found[f"{named}.{control}"] = {**rest, **point, "control": control}
    return found


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def comparisons_of(arms: Sequence[str], baseline: str) -> list[Comparison]:
    """Each arm against the baseline, and against each of its own controls."""
    pairs = [(arm, baseline) for arm in arms if arm != baseline]
    pairs += [(control.rpartition(".")[0], control) for control in arms]
    return [Comparison(arm, other) for arm, other in pairs if arm in arms]


def data_of(data: Mapping[str, Options], folder: Path) -> list[PrepareArguments]:
    """How train.jsonl and test.jsonl are made. Raises UserError."""
    if set(data) != {"train", "test"}:
        raise UserError(f"data names {', '.join(data) or 'nothing'}: give options of `prepare` for train and for test")
    files = {"train": folder / TRAIN, "test": folder / TEST}
    return [
        parse("prepare", [PrepareArguments], words({**options, "output_file": files[name]}))[0]
        for name, options in data.items()
    ]
