"""A script for TRL's SFTTrainer of which two lines are changed: python examples/from_trl.py [MODEL]

Each changed line stands below what it was. The trained model lies in out/.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig

# from trl import SFTConfig as Config, SFTTrainer as Trainer
from step_jepa import StepJEPAConfig as Config, StepJEPARepresentationTrainer as Trainer

MODEL = sys.argv[1] if sys.argv[1:] else "HuggingFaceTB/SmolLM2-135M-Instruct"
PROBLEMS = Path(__file__).with_name("problems.jsonl")


def conversation(problem: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    turns = {"user": problem["question"], "assistant": problem["answer"]}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


data = load_dataset("json", data_files=str(PROBLEMS), split="train")
data = data.map(conversation, remove_columns=data.column_names)

# config = Config(output_dir="out", learning_rate=2e-4, num_train_epochs=1)
config = Config(output_dir="out", learning_rate=2e-4, num_train_epochs=1, loss="infonce", pairs="all")

lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
trainer = Trainer(model=MODEL, args=config, train_dataset=data, peft_config=lora)
trainer.train()
trainer.save_model()
