"""A specimen: one example, the row that training plans from it, and who sees whom in either implementation."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from step_jepa.data.tokens import Example
from step_jepa.inspection.sights import Sights
from step_jepa.rows.branches import Row
from step_jepa.rows.regions import Region


@dataclass(frozen=True)
class Specimen:
    """pieces     the text of each token of the row
    sights     of the row, trunk and branches
    in_place   of the standalone implementation's second pass; None where it has no pair
    """

    example: Example
    row: Row
    pieces: list[str]
    objective: str
    sights: Sights
    in_place: Sights | None

    def masks(self) -> Iterator[tuple[str, list[Region], Tensor]]:
        """Title, regions and mask, bool (L, L), of every kind of layer in either implementation."""
        for kind, seen in self.sights.layers.items():
            layers = "" if list(self.sights.layers) == ["full_attention"] else f", {kind}"
            yield f"trunk and branches{layers}", self.sights.regions, seen
            if self.in_place:
                yield f"in place (standalone){layers}", self.in_place.regions, self.in_place.layers[kind]
