"""What the finished runs of an experiment say, as results.json has it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from step_jepa.experiments.run import Seconds
from step_jepa.run_files.names import RESULTS_FILE
from step_jepa.run_files.reading import read_json
from step_jepa.statistics.differences import ConditionSummary, Difference
from step_jepa.statistics.significance import ALPHA
from step_jepa.statistics.variance import Components

FreeFigures = dict[str, dict[str, "FreeFigure"]]  # by measure and free baseline


@dataclass(frozen=True)
class About:
    """What was run, when and where; `power` is what could be shown, stated before, `missing` are unfinished runs,
    `closing` is said last."""

    name: str
    date: str
    command: str
    machine: str
    seeds: list[int]
    power: str
    missing: list[str]
    closing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConditionResult:
    """Of one condition: a summary of each measure, and means over runs; a figure that a run lacks is None."""

    measures: dict[str, ConditionSummary]
    figures: dict[str, float | None]
    steps: float
    tokens: float
    flops: float
    seconds: Seconds


@dataclass(frozen=True)
class FreeFigure:
    """The mean of a free baseline over problems, and its 95 % interval for new problems."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison on a measure; holm is its p-value after Holm over all comparisons of the experiment but the primary
    one, which has none, detectable and seeds_needed follow from its own variances. None where they cannot be had."""

    measure: str
    primary: bool
    difference: Difference
    holm: float | None
    detectable: float | None
    seeds_needed: int | None
    sentence: str
    sign_flips: str

    @property
    def shows_difference(self) -> bool:
        """Whether it rejects, after Holm unless it is the primary one."""
        decisive = self.difference.p if self.primary else self.holm
        return decisive is not None and decisive <= ALPHA


@dataclass(frozen=True)
class ExperimentResults:
    """All that results.json holds, where `conditions` are called arms; `free` is of the primary baseline's runs."""

    about: About
    measures: list[str]
    conditions: dict[str, ConditionResult]
    free: FreeFigures
    comparisons: list[ComparisonResult]

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return {
            **content["about"],
            "measures": self.measures,
            "arms": content["conditions"],
            "free": content["free"],
            "comparisons": [_comparison_to_json(comparison) for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ExperimentResults":
        free: FreeFigures = {}
        for measure, scorers in content["free"].items():
            free[measure] = {scorer: FreeFigure(**figure) for scorer, figure in scorers.items()}
        return cls(
            about=About(**{each.name: content[each.name] for each in fields(About) if each.name in content}),
            measures=content["measures"],
            conditions={name: _condition_from_json(condition) for name, condition in content["arms"].items()},
            free=free,
            comparisons=[_comparison_from_json(comparison) for comparison in content["comparisons"]],
        )


def _condition_from_json(content: Mapping[str, Any]) -> ConditionResult:
    measures = {name: ConditionSummary(**_tuples(summary)) for name, summary in content["measures"].items()}
    return ConditionResult(**{**content, "measures": measures, "seconds": Seconds(**content["seconds"])})


def _comparison_to_json(comparison: ComparisonResult) -> dict[str, Any]:
    """The difference is called found, and its condition arm."""
    renamed = {"difference": "found"}
    content = {renamed.get(name, name): value for name, value in asdict(comparison).items()}
    condition = content["found"].pop("condition")
    content["found"] = {"arm": condition, **content["found"]}
    return content


def _comparison_from_json(content: Mapping[str, Any]) -> ComparisonResult:
    others = {name: value for name, value in content.items() if name != "found"}
    figures = _tuples(content["found"])
    figures["condition"] = figures.pop("arm")
    if figures["components"] is not None:
        figures["components"] = Components(**figures["components"])
    return ComparisonResult(difference=Difference(**figures), **others)


def _tuples(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals and seeds are tuples, which JSON does not know."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in figures.items()}


def read_results(folder: Path) -> ExperimentResults:
    """Of the experiment in this folder. Raises UserError for a file that is not JSON."""
    return ExperimentResults.from_json(read_json(folder / RESULTS_FILE))
