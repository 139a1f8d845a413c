"""Runs under FSDP2 on CPU ranks, many in one start of processes, and the same in one process. See test_sharding.py.

accelerate looks at an FSDP plugin only where processes are on accelerators; elsewhere it runs DDP. Its state is told
otherwise here, so that gloo shards for real.
"""

import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from conftest import byte_tokenizer, conversation, tiny_model
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.models import lm_head

STEPS = [1, 4, 3, 2, 1, 1, 3]  # of each row; with one there is no pair: in places a rank has none
ROWS = 4  # of a step over all ranks; the last step of an epoch has three
SETTINGS = {
    **{"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1},
    **{"max_steps": 5, "learning_rate": 2e-3, "lr_scheduler_type": "constant", "pairs": "all", "lbd": 1.0},
    **{"train_sampling_strategy": "sequential", "diagnostics_steps": 2, "per_device_eval_batch_size": 2},
}


def records() -> list[dict[str, Any]]:
    return [
        conversation(*[f"So {a} + {b} = {a + b}." for b in range(count)], question=f"Is it {a}?")
        for a, count in enumerate(STEPS)
    ]


def shard_on_cpu() -> None:
    """Have accelerate use the FSDP plugin that it is given."""
    make = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def trainer_of(folder: Path, ranks: int | None, options: dict[str, Any]) -> StepJEPARepresentationTrainer:
    """Of one process without FSDP where `ranks` is None."""
    options = dict(options)
    lora, tied, vocabulary = (options.pop(name, None) for name in ("lora", "tied", "vocabulary"))
    # In chunks: of the rows of a step some ranks have more logits than that, and others not.
    lm_head.WHOLE, lm_head.LEAST_CHUNK = (10_000, 8) if options.pop("chunks", False) else (2**24, 128)
    form = {"state_dict_type": options.pop("form", "FULL_STATE_DICT"), **options.pop("fsdp_config", {})}
    if ranks is not None:
        options |= {"fsdp": True, "fsdp_config": form}
    accumulation = min(options.pop("gradient_accumulation_steps", 1), ROWS // (ranks or 1))  # four ranks need no more
    together = (ranks or 1) * accumulation
    config = StepJEPAConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS // together,
        gradient_accumulation_steps=accumulation,
        **{**SETTINGS, **options},
    )
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    model = tiny_model(tie_word_embeddings=bool(tied), rows=vocabulary or 264)
    data = records()
    return StepJEPARepresentationTrainer(
        model, config, data, data[:5], processing_class=byte_tokenizer(), peft_config=adapter
    )


def run(folder: Path, ranks: int | None, options: dict[str, Any]) -> None:
    """Train, evaluate, export; figures.json holds the log and the held-out figures, start/ the export before."""
    options = dict(options)
    checkpoint = options.pop("resume", None)
    trainer = trainer_of(folder, ranks, options)
    if ranks is None:
        trainer.save_model(str(folder / "start"))
    trainer.train(resume_from_checkpoint=checkpoint)
    if ranks is not None:
        check_shards(trainer)
    figures = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        log = [entry for entry in trainer.state.log_history if entry["step"] > 2 or not checkpoint]
        (folder / "figures.json").write_text(json.dumps([log, figures]))


def check_shards(trainer: Any) -> None:
    """Each layer is sharded by itself, and every parameter and average is a shard."""
    model = trainer.model
    layers = [module for module in model.modules() if type(module).__name__.endswith("LlamaDecoderLayer")]
    assert layers
    assert all(isinstance(module, FSDPModule) for module in (model, *layers))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    assert all(isinstance(value, DTensor) for value in model.parameters())
    encoder = trainer.representation.forward.target_encoder
    assert encoder is None or all(isinstance(value, DTensor) for value in encoder.buffers())


class Held(TrainerCallback):
    """Bytes of the parameters, gradients and optimiser state that a rank holds between a step and the next."""

    bytes = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
        moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
        held = [*model.parameters(), *(value.grad for value in model.parameters()), *moments]
        local = (value.to_local() if isinstance(value, DTensor) else value for value in held if value is not None)
        self.bytes = max(self.bytes, sum(value.nbytes for value in local))


def measure(folder: Path, options: dict[str, Any]) -> None:
    """Train the model of some name on a few short rows of a file; memory-RANK.json holds the losses, what the rank
    held, and what it held at most with its largest parameter, and the gradient of that, whole."""
    options = {**SETTINGS, **options, "diagnostics_steps": 0, "max_steps": 3}
    model, file = options.pop("model"), options.pop("file")
    config = StepJEPAConfig(output_dir=str(folder), fsdp=True, per_device_train_batch_size=1, max_length=128, **options)
    folder.mkdir(parents=True, exist_ok=True)
    held = Held()
    trainer = StepJEPARepresentationTrainer(model, config, file, callbacks=[held])
    trainer.train()
    check_shards(trainer)
    largest = max(value.numel() * value.element_size() for value in trainer.model.parameters())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {"held": held.bytes, "peak": held.bytes + 2 * largest, "losses": losses}
    (folder / f"memory-{trainer.args.process_index}.json").write_text(json.dumps(figures))


def rank_of(rank: int, ranks: int, port: int, folder: str, cases: dict[str, dict[str, Any]]) -> None:
    """A rank's process: every case in a folder of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    shard_on_cpu()
    try:
        for name, options in cases.items():
            faulthandler.dump_traceback_later(100, exit=True)  # ranks that wait for each other
            if "file" in options:
                measure(Path(folder, name), options)
            else:
                run(Path(folder, name), ranks, options)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # gloo now and then aborts a process that ends the usual way


def start(ranks: int, port: int, folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """All cases on so many ranks."""
    torch.multiprocessing.spawn(rank_of, (ranks, port, str(folder), cases), nprocs=ranks)
