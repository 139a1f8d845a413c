"""Step-JEPA: predict step i + h, read alone, from everything up to step i."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

from step_jepa.data.tokens import Example
from step_jepa.errors import UserError
from step_jepa.objectives.base import Objective
from step_jepa.rows.branches import Pair, Row, View, last, mean
from step_jepa.rows.controls import Control, SamplingContext

Pairs = Literal["first", "all", "random"]
Target = Literal["isolated", "context"]
Pooling = Literal["last", "mean"]
Read = Literal["separator", "content"]
Sees = Literal["nothing", "bos"]


@dataclass(frozen=True)
class StepJEPA(Objective):
    """predictors         ids of the K predictor tokens; with none, the trunk's own states of step i predict
    pairs              the first pair of steps, all of them, or `pairs_per_example` drawn at random
    horizon            h: step i predicts step i + h
    target             the step alone, or as it stands in the trunk, which costs nothing
    pooling            a view is the state of its last token, or the mean over its tokens
    read               whether a step ends with the separator that closes it, or with its content
    target_sees        whether an isolated step sees the trunk's first token, the usual sink of attention
    skip_answer_step   leave out pairs whose target is just the final answer
    """

    predictors: Sequence[int] = ()
    choice: Pairs = "first"
    pairs_per_example: int = 4
    horizon: int = 1
    target: Target = "isolated"
    pooling: Pooling = "last"
    read: Read = "separator"
    target_sees: Sees = "nothing"
    skip_answer_step: bool = True

    predicts: ClassVar[bool] = True
    controls: ClassVar[frozenset[Control]] = frozenset(
        {"shuffled_pairs", "shuffled_steps", "past_target", "random_boundaries", "frozen_target", "random_target"}
    )
    options: ClassVar[frozenset[str]] = frozenset(
        {"horizon", "target", "pooling", "read", "target_sees", "skip_answer_step"}
    )

    @classmethod
    def from_config(cls, config: Any, predictors: Sequence[int]) -> "StepJEPA":
        if config.target == "context" and config.target_sees == "bos":
            raise UserError("--target_sees is for isolated targets: leave it out, or use --target isolated")
        if config.target == "context" and config.control in ("past_target", "shuffled_steps") and not predictors:
            raise UserError(f"--control {config.control} would compare a view with itself: use --predictors 1 or more")
        if config.target == "context" and config.control == "shuffled_pairs":
            raise UserError(
                "--control shuffled_pairs needs --target isolated: another example is not in the row's trunk"
            )
        return cls(
            predictors=tuple(predictors),
            choice=config.pairs,
            pairs_per_example=config.pairs_per_example,
            horizon=config.horizon,
            target=config.target,
            pooling=config.pooling,
            read=config.read,
            target_sees=config.target_sees,
            skip_answer_step=config.skip_answer_step,
        )

    def pairs(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        for seen, wanted in self._chosen(example, sampling.rng):
            predicted = self._predicted(row, example, seen)
            yield Pair(predicted, self._target(row, *sampling.target_step(example, seen, wanted)), step=wanted)

    def possible(self, example: Example) -> list[tuple[int, int]]:
        """(i, i + h) for all steps with tokens of their own; a step may share its only token with its neighbour."""
        filled = [step for step, (start, stop) in enumerate(example.steps) if start < stop]
        return list(zip(filled, filled[self.horizon :], strict=False))

    def skipped(self, example: Example) -> int:
        """How many of them have just the final answer as their target and are left out."""
        possible = self.possible(example)[: 1 if self.choice == "first" else None]
        return sum(self.skip_answer_step and wanted == example.answer for _, wanted in possible)

    def check(self, examples: Sequence[Example]) -> None:
        if self.horizon > 1 and not any(map(self._kept, examples)):
            most = max(len(example.steps) for example in examples)
            raise UserError(
                f"horizon = {self.horizon}: no step has that many after it: examples have at most {most} "
                "steps, answer lines included: lower it"
            )

    def left_out(self, examples: Sequence[Example]) -> int:
        return sum(map(self.skipped, examples))

    def _kept(self, example: Example) -> list[tuple[int, int]]:
        return [pair for pair in self.possible(example) if not (self.skip_answer_step and pair[1] == example.answer)]

    def _chosen(self, example: Example, rng: Random) -> list[tuple[int, int]]:
        pairs = self._kept(example)
        if self.choice == "first":
            return pairs[:1]
        if self.choice == "random" and len(pairs) > self.pairs_per_example:
            return [pairs[place] for place in sorted(rng.sample(range(len(pairs)), self.pairs_per_example))]
        return pairs

    def _tokens(self, example: Example, step: int) -> range:
        start, stop = example.steps[step]
        return range(start, example.contents[step] if self.read == "content" else stop)

    def _pooled(self, indices: range) -> View:
        return mean(indices) if self.pooling == "mean" else last(indices)

    def _predicted(self, row: Row, example: Example, step: int) -> View:
        if not self.predictors:
            return self._pooled(self._tokens(example, step))
        before = example.steps[step][1]
        return self._pooled(row.append_branch(self.predictors, position_offset=before, visible_length=before))

    def _target(self, row: Row, example: Example, step: int) -> View:
        tokens = self._tokens(example, step)
        if self.target == "context":
            return self._pooled(tokens)
        alone = example.input_ids[tokens.start : tokens.stop]
        return self._pooled(
            row.append_branch(alone, position_offset=tokens.start, visible_length=int(self.target_sees == "bos"))
        )
