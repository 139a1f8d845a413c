"""Which conditions are held against each other."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from step_jepa.errors import UserError
from step_jepa.experiments.conditions import Options
from step_jepa.statistics import differences
from step_jepa.statistics.differences import Difference, ScoreTable

_INTERACTION = re.compile(r"\((.+)\) - \((.+)\)")


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
        """Of the scores. Raises UserError as `differences.difference` does."""
        return differences.difference(table, self.condition, self.baseline)


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
        """Of the scores. Raises UserError as `differences.interaction` does."""
        return differences.interaction(table, self.first.conditions, self.second.conditions)


Contrast = Comparison | Interaction


def comparisons_of(conditions: Mapping[str, Options], baseline: str | None) -> list[Comparison]:
    """Each condition against the baseline, if there is one, and against each of its own controls."""
    comparisons = [Comparison(name, baseline) for name in conditions if baseline not in (None, name)]
    for name, options in conditions.items():
        controlled = name.removesuffix(f".{options.get('control')}")
        if controlled != name and controlled in conditions:
            comparisons.append(Comparison(controlled, name))
    return comparisons


def contrast_of(text: str, conditions: Mapping[str, Options]) -> Contrast:
    """What `arm - arm` or `(arm - arm) - (arm - arm)` says. Raises UserError for anything else."""
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
