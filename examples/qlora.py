"""QLoRA on one GPU: the base model in 4 bits, an adapter on top (arXiv 2305.14314): python examples/qlora.py [MODEL]

Needs a CUDA device and `pip install bitsandbytes`. The adapter lies in out/.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer

MODEL = sys.argv[1] if sys.argv[1:] else "meta-llama/Llama-3.2-1B-Instruct"
PROBLEMS = Path(__file__).with_name("problems.jsonl")

four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
config = StepJEPAConfig(
    output_dir="out",
    loss="infonce",
    pairs="all",
    keep_adapter=True,  # weights in 4 bits cannot take the adapter in without loss
    bf16=True,
    activation_checkpointing=True,
    learning_rate=2e-4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    num_train_epochs=1,
)
trainer = StepJEPARepresentationTrainer(
    MODEL,
    config,
    str(PROBLEMS),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    quantization_config=four_bits,
)
trainer.train()
trainer.save_model()
