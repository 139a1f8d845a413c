"""An objective of one's own: every step predicts the first one again, as if to keep it in mind.

    python examples/own_objective.py [MODEL]

Or from the command line: step-jepa train --import examples/own_objective.py --objective recall ...
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peft import LoraConfig

from step_jepa import Objective, StepJEPARepresentationTrainer, option, register_objective, train_config
from step_jepa.rows.branches import Pair, last

PROBLEMS = Path(__file__).with_name("problems.jsonl")


@register_objective("recall")
@dataclass
class Recall(Objective):
    after: int = option(1, help="Steps that lie between, at least.", group="Views", least=1)
    predictor_ids: Sequence[int] = ()

    predicts: ClassVar[bool] = True

    def pairs_of(self, row, example, sampling) -> Iterator[Pair]:
        """One pair for each later step that is not just the answer."""
        start, stop = example.steps[0]
        for step in range(self.after, len(example.steps)):
            if step != example.answer:
                end = example.steps[step][1]
                guess = row.append_branch(self.predictor_ids, position_offset=end, visible_length=end)
                first = row.append_branch(example.input_ids[start:stop], position_offset=start, visible_length=0)
                yield Pair(last(guess or range(end)), last(first), step=step)


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> None:
    config = train_config()(output_dir="out", objective=["recall"], after=1, learning_rate=2e-4, num_train_epochs=1)
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = StepJEPARepresentationTrainer(model, config, str(PROBLEMS), peft_config=lora)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
