"""StepJEPARepresentationTrainer: the representation trainer with Step-JEPA's own part, the views of reasoning steps."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from step_jepa.batches.collate import PlannedRows
from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES
from step_jepa.objectives.step_jepa import Pairs, Pooling, Read, Sees, Target
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.representation import RepresentationTrainer


@dataclass
class StepJEPAConfig(RepresentationConfig):
    """TrainingArguments, the options of the JEPA term, and those of Step-JEPA."""

    objective: list[str] = field(
        default_factory=lambda: ["step_jepa"],
        metadata={"help": f"One or more of {', '.join(OBJECTIVES)}, or none for plain SFT."},
    )
    weights: list[float] = field(
        default_factory=list, metadata={"help": "Weight of each objective within the JEPA loss; 1 each by default."}
    )
    pairs: Pairs = field(
        default="first", metadata={"help": "Which pairs of steps: the first, all, or some drawn at random."}
    )
    pairs_per_example: int = field(
        default=4, metadata={"help": "How many pairs of an example with pairs random; spans of stp unless pairs first."}
    )
    horizon: int = field(default=1, metadata={"help": "h: step i predicts step i + h."})
    target: Target = field(
        default="isolated", metadata={"help": "The target step read alone, or in its context, which costs nothing."}
    )
    pooling: Pooling = field(default="last", metadata={"help": "A view is its last token's state, or the mean."})
    read: Read = field(
        default="separator", metadata={"help": "A step is read at the separator that closes it, or where content ends."}
    )
    target_sees: Sees = field(
        default="nothing", metadata={"help": "What an isolated step sees of the trunk: nothing, or its first token."}
    )
    skip_answer_step: bool = field(
        default=True, metadata={"help": "Leave out pairs whose target is just the final answer line."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.objective, str):
            self.objective = [self.objective]
        unknown = [name for name in self.objective if name not in (*OBJECTIVES, "none")]
        if unknown or not self.objective:
            raise UserError(f"objective = {' '.join(unknown)}: give some of {', '.join(OBJECTIVES)}, or none")
        if len(set(self.objective)) < len(self.objective) or ("none" in self.objective and len(self.objective) > 1):
            raise UserError(f"objective = {' '.join(self.objective)}: give each once, and none alone")
        if self.weights and len(self.weights) != len(self.objective):
            raise UserError(f"{len(self.weights)} weights for {len(self.objective)} objectives: give one each")
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise UserError(f"weights = {' '.join(map(str, self.weights))}: give more than 0 each")
        for name in ("pairs_per_example", "horizon"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give 1 or more")
        super().__post_init__()

    @property
    def objectives(self) -> list[tuple[str, float]]:
        if not self.lbd or self.objective == ["none"]:
            return []
        return list(zip(self.objective, self.weights or [1.0] * len(self.objective), strict=True))

    def _check_combinations(self) -> None:
        super()._check_combinations()
        chosen = [OBJECTIVES[name] for name, _ in self.objectives]
        if not chosen:
            return
        for name in sorted({option for kind in OBJECTIVES.values() for option in kind.options}):
            if getattr(self, name) != self.__dataclass_fields__[name].default and not any(
                name in kind.options for kind in chosen
            ):
                homes = [home for home, kind in OBJECTIVES.items() if name in kind.options]
                raise UserError(f"--{name} is for the objective {', '.join(homes)}: leave it out")


def train_config() -> type[StepJEPAConfig]:
    """The dataclass of `step-jepa train`, asked for when users' modules are imported."""
    return StepJEPAConfig


class StepJEPARepresentationTrainer(RepresentationTrainer):
    """Predict the representation of step i+1, read alone, from everything up to step i; or what `objective` names."""


@contextmanager
def untrained(
    model: Any, *, data: Any, processing_class: Any = None, peft_config: Any = None, **options: Any
) -> Iterator[Any]:
    """A StepJEPARepresentationTrainer with `data` as its train_dataset and eval_dataset, for its losses and figures
    only: the folder that it wants is thrown away."""
    with TemporaryDirectory() as scratch:
        config = StepJEPAConfig(output_dir=scratch, report_to="none", **options)
        trainer = StepJEPARepresentationTrainer(
            model, config, data, processing_class=processing_class, peft_config=peft_config
        )
        examples = trainer.train_dataset.examples
        trainer.eval_dataset = PlannedRows(examples, trainer.planner(examples, learning=False))
        yield trainer
