"""LLM-JEPA (arXiv 2509.14252): predict the answer from the user's text, each read alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from step_jepa.data.example import Example, Turn
from step_jepa.errors import UserError
from step_jepa.objectives.base import Objective
from step_jepa.options import option
from step_jepa.rows.branches import Pair, Row, View, last
from step_jepa.rows.controls import Control, SamplingContext


@dataclass
class TurnOptions:
    """How the two turns are read."""

    front_pred: bool = option(False, help="llm_jepa: predictor tokens before the text.", group="Views")
    reverse_pred: bool = option(False, help="llm_jepa: the answer predicts the text.", group="Views")
    last_token: int = option(
        -1,
        help="llm_jepa: the token of a view that is read, from its end.",
        group="Views",
        most=-1,
        remedy="-1 for the last token, -2 for the one before",
    )


@dataclass
class LLMJEPA(TurnOptions, Objective):
    """The answer from the question.

    plain           the contents alone, without the chat template's framing around each
    predictor_ids   of the K predictor tokens
    """

    plain: bool = False
    predictor_ids: Sequence[int] = ()

    predicts: ClassVar[bool] = True
    turns: ClassVar[bool] = True
    controls: ClassVar[frozenset[Control]] = frozenset({"shuffled_pairs", "frozen_target", "random_target"})

    def check_options(self, config: Any) -> None:
        if self.front_pred and not self.predictor_ids:
            raise UserError("--front_pred has no predictor token to put in front: use --predictors 1 or more")
        if self.reverse_pred and config.control == "shuffled_pairs":
            raise UserError("--control shuffled_pairs shuffles answers as targets: leave out --reverse_pred")

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        if example.turns is None:
            return
        target_turns = sampling.target_answer(example).turns
        assert target_turns is not None
        text, answer = example.turns.user, target_turns.assistant
        source, target = (answer, text) if self.reverse_pred else (text, answer)
        predicted = self._view(row, self._with_predictors(source))
        yield Pair(predicted, self._view(row, self._framed(target)))

    def _framed(self, turn: Turn) -> list[int]:
        start, stop = turn.content if self.plain else (0, len(turn.input_ids))
        return turn.input_ids[start:stop]

    def _with_predictors(self, turn: Turn) -> list[int]:
        start, stop = turn.content
        place = start if self.front_pred else stop
        ids = [*turn.input_ids[:place], *self.predictor_ids, *turn.input_ids[place:]]
        return ids[start : stop + len(self.predictor_ids)] if self.plain else ids

    def _view(self, row: Row, input_ids: list[int]) -> View:
        branch = row.append_branch(input_ids, position_offset=0, visible_length=0)
        return last(branch[: max(1, len(branch) + 1 + self.last_token)])
