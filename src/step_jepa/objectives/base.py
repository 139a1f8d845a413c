"""What every objective is."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from step_jepa.data.example import Example
from step_jepa.data.examples import FilledSteps
from step_jepa.rows.branches import Pair, Row
from step_jepa.rows.controls import Control, SamplingContext

EntropyOf = Literal["model", "base"]


class Objective:
    """Which branches are appended to a row, and where its pairs of views are read.

    Subclass it as a dataclass and give it `pairs_of`. Fields made by `options.option` are options of the run, by the
    same name on the command line and in the configuration; `predictor_ids` gets the ids of the K predictor tokens.

    predicts   whether it uses the K predictor tokens
    turns      whether it reads `example.turns`, question and answer each rendered alone
    loss       its own distance, a name in LOSSES; None for the run's --loss
    controls   the controls that mean something for it, beside no_loss

    entropy_filter   of how many pairs of an example the loss is taken in training; None for all
    entropy_of       whose entropy decides which
    """

    entropy_filter: int | None = None
    entropy_of: EntropyOf = "model"

    predicts: ClassVar[bool] = False
    turns: ClassVar[bool] = False
    loss: ClassVar[str | None] = None
    controls: ClassVar[frozenset[Control]] = frozenset({"frozen_target", "random_target"})

    @classmethod
    def from_config(cls, config: Any, predictor_ids: Sequence[int]) -> Self:
        """The objective with the values that a run's options have.

        Args:
            config: has an attribute for each of the fields.
            predictor_ids: token ids of the K predictor tokens.

        Raises:
            UserError: where the options contradict each other, see `check_options`.
        """
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        values = {name: getattr(config, name) for name in names if name != "predictor_ids"}
        if "predictor_ids" in names:
            values["predictor_ids"] = tuple(predictor_ids)
        objective = cls(**values)
        objective.check_options(config)
        return objective

    def check_options(self, config: Any) -> None:
        """Raises UserError where options of the run contradict each other."""

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        """Append branches to the row and say which views make a pair."""
        raise NotImplementedError

    def branch_tokens(self, steps: FilledSteps, rows: int) -> NDArray[np.int64] | None:
        """int64 (rows,), tokens of the branches that it appends to each row, where that follows from the steps alone;
        None where it has to be planned."""
        return None

    def check_data(self, examples: Sequence[Example]) -> None:
        """Raises UserError where the data cannot serve it."""

    def left_out(self, examples: Sequence[Example]) -> Counter[str]:
        """How many pairs it leaves out, by reason."""
        return Counter()
