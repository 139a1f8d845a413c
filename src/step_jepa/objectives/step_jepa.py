"""Step-JEPA: predict step i + h, read alone, from everything up to step i."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from step_jepa.data.example import Example
from step_jepa.data.examples import FilledSteps
from step_jepa.errors import UserError
from step_jepa.objectives.base import EntropyOf, Objective
from step_jepa.options import Needs, option
from step_jepa.rows.branches import Pair, Row, View, last, mean
from step_jepa.rows.controls import Control, SamplingContext
from step_jepa.rows.least_certain import least_certain

Pairs = Literal["first", "all", "random"]
Target = Literal["isolated", "context"]
Pooling = Literal["last", "mean"]
Read = Literal["separator", "content"]
Sees = Literal["nothing", "bos"]

# Why a pair is left out
JUST_THE_ANSWER = "whose target is just the answer (skip_answer_step)"
WITHOUT_SPANS = ("step_jepa", "llm_jepa", "ssp", "none")
SINK = "whose target is one token, which says nothing read alone (--target_sees bos reads it)"


def _draws_pairs(config: Any) -> bool:
    """Whether something is drawn of each example. Of --pairs all, step_jepa takes all; spans of stp are drawn."""
    return config.pairs == "random" or (config.pairs == "all" and not {*config.objective} <= {*WITHOUT_SPANS})


_DRAWN = Needs("--pairs random (stp: or all)", _draws_pairs)
_SEVERAL = Needs("--pairs all or random", lambda config: config.pairs != "first")
_FILTERED = Needs("--entropy_filter", lambda config: config.entropy_filter is not None)


@dataclass
class PairOptions:
    """How many pairs of an example."""

    pairs: Pairs = option(
        "first",
        help="Which pairs of steps: the first, all, or some drawn at random.",
        group="Views",
        of_jepa_term=True,
    )
    pairs_per_example: int = option(
        4,
        help="How many pairs of an example with pairs random; spans of stp unless pairs first.",
        group="Views",
        least=1,
        needs=_DRAWN,
        standalone=True,
    )


@dataclass
class ReadOptions:
    """Where a step ends."""

    read: Read = option(
        "separator",
        help="A step is read at the separator that closes it, or where content ends.",
        group="Views",
        changes_views=True,
    )


@dataclass
class StepOptions(ReadOptions, PairOptions):
    """Which steps, and how their views are read."""

    horizon: int = option(1, help="h: step i predicts step i + h.", group="Views", least=1)
    target: Target = option(
        "isolated", help="The target step read alone, or in its context, which costs nothing.", group="Views"
    )
    pooling: Pooling = option(
        "last", help="A view is its last token's state, or the mean.", group="Views", changes_views=True
    )
    target_sees: Sees = option(
        "nothing",
        help="What an isolated step sees of the trunk: nothing, or its first token.",
        group="Views",
        changes_views=True,
    )
    pair_tokens: int | None = option(
        None,
        help="Most tokens that pairs add to an example, predictor tokens and isolated targets; of more, some pairs are "
        "drawn at random.",
        group="Views",
        least=1,
    )
    skip_answer_step: bool = option(
        True, help="Leave out pairs whose target is just the final answer line.", group="Views", standalone=True
    )
    entropy_filter: int | None = option(
        None,
        help="Train on only so many of an example's pairs: those at whose boundary the model is least certain of the "
        "token that comes next, the first of the next step (entropy of its distribution at the last token read; of "
        "equal ones the earlier). Held-out figures are of all pairs.",
        group="Views",
        least=1,
        needs=_SEVERAL,
        of_training=True,
    )
    entropy_of: EntropyOf = option(
        "model",
        help="Whose entropy: the model's as it trains, in the same pass, where all branches run; or the base model's, "
        "which reads all rows once before training, so that only the kept pairs have branches.",
        group="Views",
        needs=_FILTERED,
        of_training=True,
    )


@dataclass
class StepJEPA(StepOptions, Objective):
    """Step i + h from everything up to step i.

    predictor_ids   of the K predictor tokens; with none, the trunk's own states of step i predict
    """

    predictor_ids: Sequence[int] = ()

    predicts: ClassVar[bool] = True
    controls: ClassVar[frozenset[Control]] = frozenset(
        {"shuffled_pairs", "shuffled_steps", "past_target", "random_boundaries", "frozen_target", "random_target"}
    )

    def check_options(self, config: Any) -> None:
        if config.control == "random_boundaries" and self.entropy_of == "base":
            raise UserError(
                "--control random_boundaries moves the boundaries that the base model read: use --entropy_of model"
            )
        if self.target != "context":
            return
        if self.target_sees == "bos":
            raise UserError("--target_sees is for isolated targets: leave it out, or use --target isolated")
        if config.control in ("past_target", "shuffled_steps") and not self.predictor_ids:
            raise UserError(f"--control {config.control} would compare a view with itself: use --predictors 1 or more")
        if config.control == "shuffled_pairs":
            raise UserError(
                "--control shuffled_pairs needs --target isolated: another example is not in the row's trunk"
            )

    def pairs_of(self, row: Row, example: Example, sampling: SamplingContext) -> Iterator[Pair]:
        in_pass = self.entropy_filter is not None and self.entropy_of == "model"
        for read, wanted, source, step in self._planned(example, sampling):
            predicted = self._predicted(row, example, read)
            boundary = example.steps[read][1] - 1 if in_pass else None
            yield Pair(predicted, self._target(row, source, step), step=wanted, boundary=boundary)

    def possible(self, example: Example) -> list[tuple[int, int]]:
        """(i, i + h) for all steps with tokens of their own."""
        filled = example.filled_steps
        return list(zip(filled, filled[self.horizon :], strict=False))

    def kept(self, example: Example) -> list[tuple[int, int]]:
        """Those of them that may be taken."""
        return [(read, wanted) for read, wanted in self._considered(example) if not self._reason(example, wanted)]

    def skipped(self, example: Example) -> Counter[str]:
        """How many of them may not, by reason."""
        return Counter(reason for _, wanted in self._considered(example) if (reason := self._reason(example, wanted)))

    def _considered(self, example: Example) -> list[tuple[int, int]]:
        return self.possible(example)[: 1 if self.pairs == "first" else None]

    def _reason(self, example: Example, wanted: int) -> str | None:
        """Why a pair with this target is left out; None where it is not."""
        if self.skip_answer_step and wanted == example.answer:
            return JUST_THE_ANSWER
        if self.pair_tokens is not None and self._branch_tokens(example, wanted) > self.pair_tokens:
            return f"of more than {self.pair_tokens} tokens (pair_tokens)"
        return SINK if self._is_sink(example, wanted) else None

    def _is_sink(self, example: Example, step: int) -> bool:
        """Whether the step's only state would be that of a first token: models take it for an attention sink, and those
        of different tokens are all alike."""
        alone = self.target == "isolated" and self.target_sees == "nothing"
        return alone and len(self._tokens(example, step)) == 1

    def branch_tokens(self, steps: FilledSteps, rows: int) -> NDArray[np.int64] | None:
        if self.pairs == "random" or self.pair_tokens is not None:
            return None
        lengths = (steps.content if self.read == "content" else steps.stop) - steps.start
        taken = steps.place == self.horizon if self.pairs == "first" else steps.place >= self.horizon
        taken &= ~(steps.is_answer & self.skip_answer_step)
        taken &= ~((lengths == 1) & (self.target == "isolated") & (self.target_sees == "nothing"))
        tokens = len(self.predictor_ids) + (self.target == "isolated") * lengths
        counts: NDArray[Any] = np.bincount(steps.row[taken], tokens[taken], minlength=rows)
        return counts.astype(np.int64)

    def check_data(self, examples: Sequence[Example]) -> None:
        if self.horizon > 1 and not any(map(self.kept, examples)):
            most = max(len(example.steps) for example in examples)
            raise UserError(
                f"horizon = {self.horizon}: no step has that many after it: examples have at most {most} "
                "steps, answer lines included: lower it"
            )

    def left_out(self, examples: Sequence[Example]) -> Counter[str]:
        return sum(map(self.skipped, examples), Counter())

    def _planned(self, example: Example, sampling: SamplingContext) -> list[tuple[int, int, Example, int]]:
        """(i, i + h, the example that has the target, the target's index there) of each pair."""
        planned = []
        for read, wanted in self._chosen(example, sampling.rng):
            source, step = sampling.target_step(example, read, wanted)
            if not self._is_sink(source, step):
                planned.append((read, wanted, source, step))
        if self.entropy_filter is None or sampling.entropies is None:
            return planned
        entropies = [sampling.entropies[example.index][read] for read, *_ in planned]
        kept = least_certain(entropies, [0] * len(planned), self.entropy_filter)
        return [planned[place] for place in kept]

    def _chosen(self, example: Example, rng: Random) -> list[tuple[int, int]]:
        pairs = self.kept(example)
        if self.pairs == "random" and len(pairs) > self.pairs_per_example:
            pairs = sorted(rng.sample(pairs, self.pairs_per_example))
        return pairs if self.pair_tokens is None else self._affordable(pairs, example, self.pair_tokens, rng)

    def _affordable(
        self, pairs: list[tuple[int, int]], example: Example, tokens: int, rng: Random
    ) -> list[tuple[int, int]]:
        """All pairs where their branches have no more tokens; else those that fit, as they are drawn one by one."""
        chosen = []
        for pair in rng.sample(pairs, len(pairs)):
            cost = self._branch_tokens(example, pair[1])
            if cost <= tokens:
                chosen.append(pair)
                tokens -= cost
        return sorted(chosen)

    def _branch_tokens(self, example: Example, wanted: int) -> int:
        """Of the branches of a pair."""
        return len(self.predictor_ids) + (self.target == "isolated") * len(self._tokens(example, wanted))

    def _tokens(self, example: Example, step: int) -> range:
        start, stop = example.steps[step]
        return range(start, example.contents[step] if self.read == "content" else stop)

    def _pooled(self, indices: range) -> View:
        return mean(indices) if self.pooling == "mean" else last(indices)

    def _predicted(self, row: Row, example: Example, step: int) -> View:
        if not self.predictor_ids:
            return self._pooled(self._tokens(example, step))
        end = example.steps[step][1]
        return self._pooled(row.append_branch(self.predictor_ids, position_offset=end, visible_length=end))

    def _target(self, row: Row, example: Example, step: int) -> View:
        tokens = self._tokens(example, step)
        if self.target == "context":
            return self._pooled(tokens)
        step_ids = example.input_ids[tokens.start : tokens.stop]
        # The step keeps the positions that it has in the trunk, so that a model with absolute positions sees the same.
        visible = 1 if self.target_sees == "bos" else 0
        return self._pooled(row.append_branch(step_ids, position_offset=tokens.start, visible_length=visible))
