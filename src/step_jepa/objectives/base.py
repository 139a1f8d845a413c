"""What every objective is."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from step_jepa.data.tokens import Example
from step_jepa.losses.distances import Loss
from step_jepa.rows.branches import Pair, Row
from step_jepa.rows.controls import Control, SamplingContext


class Objective:
    """Subclass it as a frozen dataclass and give it `pairs`.

    predicts   whether it uses the K predictor tokens
    turns      whether it reads `example.turns`, question and answer each rendered alone
    loss       its own distance; None for the run's --loss
    controls   the controls that mean something for it, beside no_loss
    options    names of the options that it reads and not every objective does. Not pairs and pairs_per_example, though
               llm_jepa and ssp ignore them: recipes give pairs, and other objectives are tried with those recipes
    """

    predicts: ClassVar[bool] = False
    turns: ClassVar[bool] = False
    loss: ClassVar[Loss | None] = None
    controls: ClassVar[frozenset[Control]] = frozenset({"frozen_target", "random_target"})
    options: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_config(cls, config: Any, predictors: Sequence[int]) -> "Objective":
        """From the options of a run and the ids of its predictor tokens. Raises UserError where they contradict."""
        return cls()

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        """Hang branches on the row and say which views make a pair."""
        raise NotImplementedError

    def check(self, examples: Sequence[Example]) -> None:
        """Raises UserError where the data cannot serve it."""

    def left_out(self, examples: Sequence[Example]) -> int:
        """How many pairs it leaves out because their target is just the final answer."""
        return 0
