"""StepJEPARepresentationTrainer: the representation trainer with Step-JEPA's own part, the branches of its steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal

from step_jepa import branches
from step_jepa.branches import Pairs
from step_jepa.collate import Planner
from step_jepa.errors import UserError
from step_jepa.models import predictor_ids
from step_jepa.representation import RepresentationConfig, RepresentationTrainer

Objective = Literal["step_jepa", "llm_jepa", "none"]


@dataclass
class StepJEPAConfig(RepresentationConfig):
    """TrainingArguments, the options of the JEPA term, and those of Step-JEPA."""

    objective: Objective = field(
        default="step_jepa",
        metadata={"help": "step_jepa: next step from those before; llm_jepa: answer from the user's text; none: SFT."},
    )
    pairs: Pairs = field(
        default="first", metadata={"help": "Which pairs of consecutive steps: the first, all, or some drawn at random."}
    )
    pairs_per_example: int = field(default=4, metadata={"help": "How many pairs of an example, with pairs = random."})

    def __post_init__(self) -> None:
        if self.pairs_per_example < 1:
            raise UserError(f"pairs_per_example = {self.pairs_per_example}: give 1 or more")
        super().__post_init__()


class StepJEPARepresentationTrainer(RepresentationTrainer):
    """Predict the representation of step i+1, read alone, from everything up to step i."""

    @staticmethod
    def has_objective(args: Any) -> bool:
        return args.objective != "none" and RepresentationTrainer.has_objective(args)

    def planner(self) -> Planner:
        if self.args.objective != "step_jepa":
            return super().planner()
        return partial(
            branches.step_jepa,
            predictors=predictor_ids(self.model),
            pairs=self.args.pairs,
            pairs_per_example=self.args.pairs_per_example,
        )


@contextmanager
def untrained(model: Any, *, data: Any, processing_class: Any = None, **options: Any) -> Iterator[Any]:
    """A StepJEPARepresentationTrainer with `data` as its train_dataset and eval_dataset, for its losses and figures
    only: the folder that it wants is thrown away."""
    with TemporaryDirectory() as scratch:
        config = StepJEPAConfig(output_dir=scratch, report_to="none", **options)
        trainer = StepJEPARepresentationTrainer(model, config, data, processing_class=processing_class)
        trainer.eval_dataset = trainer.train_dataset
        yield trainer
