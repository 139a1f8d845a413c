"""`step-jepa train`: fine-tune a model on a file of conversations, by either implementation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from rich.console import Console

from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.errors import UserError

console = Console(highlight=False)


@dataclass
class TrainArguments:
    """What is trained on what; everything else is in StepJEPAConfig."""

    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    approach: Literal["adapted", "standalone"] = field(
        default="adapted", metadata={"help": "adapted: every option, one pass. standalone: one readable file, two passes."}
    )
    eval_file: str | None = field(default=None, metadata={"help": "Held-out records: LM and JEPA loss are reported."})
    step_jepa: bool = field(default=False, metadata={"help": "Alias of --objective step_jepa."})
    lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter (and the predictor tokens)."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter."})
    lora_target_modules: str = field(
        default="all-linear", metadata={"help": "Modules to adapt: all-linear, or names separated by commas."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: load the base model in 4 bits (CUDA)."})
    overwrite: bool = field(default=False, metadata={"help": "Write into an output folder that is not empty."})


def peft_config(args: TrainArguments) -> LoraConfig | None:
    """The adapter that the arguments ask for."""
    if not args.lora:
        return None
    modules: Any = args.lora_target_modules
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=modules if modules == "all-linear" else modules.split(","),
        task_type="CAUSAL_LM",
    )


def quantization_config(args: TrainArguments) -> Any:
    """4-bit NormalFloat with bfloat16 computation (QLoRA, arXiv 2305.14314)."""
    if not args.load_in_4bit:
        return None
    if not args.lora:
        raise UserError("4-bit weights are frozen: add --lora to --load_in_4bit")
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
    )


def check_output_dir(folder: str, *, overwrite: bool, resume: bool) -> None:
    """Raises UserError rather than mix a run with what the folder holds."""
    path = Path(folder)
    if path.is_file():
        raise UserError(f"{folder} is a file: give another --output_dir")
    if path.is_dir() and any(path.iterdir()) and not (overwrite or resume):
        raise UserError(f"{folder} is not empty: give another --output_dir, --overwrite, or --resume_from_checkpoint True")


def run(args: TrainArguments, config: StepJEPAConfig) -> None:
    """Train, evaluate on the held-out file, export. Raises UserError."""
    assert config.output_dir
    resume: Any = config.resume_from_checkpoint
    resume = {"true": True, "false": None}.get(str(resume).lower(), resume)
    check_output_dir(config.output_dir, overwrite=args.overwrite, resume=bool(resume))
    if args.step_jepa:
        config.objective = "step_jepa"
    if args.eval_file and config.eval_strategy == "no":
        config.eval_strategy = "epoch"
    trainer = standalone_trainer(args, config) if args.approach == "standalone" else adapted_trainer(args, config)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        raise UserError(
            f"interrupted at step {trainer.state.global_step}: --resume_from_checkpoint True goes on from the last checkpoint"
        ) from None
    trainer.save_model()
    trainer.save_state()
    console.print(f"model, tokenizer and trainer_state.json lie in {config.output_dir}")


def adapted_trainer(args: TrainArguments, config: StepJEPAConfig) -> StepJEPARepresentationTrainer:
    """The recommended implementation, on files."""
    trainer = StepJEPARepresentationTrainer(
        model=args.model_name,
        args=config,
        train_dataset=args.train_file,
        eval_dataset=args.eval_file,
        peft_config=peft_config(args),
        quantization_config=quantization_config(args),
    )
    for name, data in trainer.data.items():
        if data:
            console.print(f"{name}: {data}")
    return trainer
