"""LLM-JEPA (arXiv 2509.14252): predict the answer from the user's text, each read alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from step_jepa.data.tokens import Example, Turn
from step_jepa.errors import UserError
from step_jepa.objectives.base import Objective
from step_jepa.rows.branches import Pair, Row, View, last
from step_jepa.rows.controls import Control, SamplingContext


@dataclass(frozen=True)
class LLMJEPA(Objective):
    """predictors     ids of the K predictor tokens
    front_pred     they stand before the text instead of after it
    reverse_pred   the answer predicts the text
    last_token     which token of either view is read, counted from its end: -1 is the last one
    plain          the contents alone, without the chat template's framing around each
    """

    predictors: Sequence[int] = ()
    front_pred: bool = False
    reverse_pred: bool = False
    last_token: int = -1
    plain: bool = False

    predicts: ClassVar[bool] = True
    turns: ClassVar[bool] = True
    controls: ClassVar[frozenset[Control]] = frozenset({"shuffled_pairs", "frozen_target", "random_target"})
    options: ClassVar[frozenset[str]] = frozenset({"front_pred", "reverse_pred", "last_token"})

    @classmethod
    def from_config(cls, config: Any, predictors: Sequence[int]) -> "LLMJEPA":
        if config.front_pred and not predictors:
            raise UserError("--front_pred has no predictor token to put in front: use --predictors 1 or more")
        if config.reverse_pred and config.control == "shuffled_pairs":
            raise UserError("--control shuffled_pairs shuffles answers as targets: leave out --reverse_pred")
        return cls(tuple(predictors), config.front_pred, config.reverse_pred, config.last_token, config.plain)

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
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
        ids = [*turn.input_ids[:place], *self.predictors, *turn.input_ids[place:]]
        return ids[start : stop + len(self.predictors)] if self.plain else ids

    def _view(self, row: Row, input_ids: list[int]) -> View:
        branch = row.append_branch(input_ids, position_offset=0, visible_length=0)
        return last(branch[: max(1, len(branch) + 1 + self.last_token)])
