#!/usr/bin/env bash
# accelerate 1.15.0, transformers 5.23.0, torch 2.13.0 (seen November 2026): TrainingArguments(fsdp=True, use_cpu=True) over two
# processes trains with DDP, every process with the whole model, and says nothing: accelerate looks at FSDP only where
# processes are on accelerators. torch's own fully_shard works with gloo. Whoever tries a sharded run on CPUs first, as one
# would before renting GPUs, has tried another one.
#
# Output seen:
#   arguments.fsdp True, is_fsdp_enabled False
#   distributed type MULTI_CPU, model wrapped as DistributedDataParallel, sharded parameters 0 of 12
#   fully_shard alone: sharded parameters 12 of 12
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/shard.py" <<'PY'
import sys

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def sharded(model):
    are_sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    return f"sharded parameters {sum(are_sharded)} of {len(are_sharded)}"


model, other = (LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)) for _ in range(2))
arguments = TrainingArguments(sys.argv[1], fsdp=True, use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
trainer = Trainer(model, arguments, train_dataset=[{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8)
trainer.train()
fully_shard(other)
if arguments.process_index == 0:
    kind, wrapped = trainer.accelerator.distributed_type.name, type(trainer.model_wrapped).__name__
    print(f"arguments.fsdp {arguments.fsdp}, is_fsdp_enabled {trainer.is_fsdp_enabled}")
    print(f"distributed type {kind}, model wrapped as {wrapped}, {sharded(model)}")
    print(f"fully_shard alone: {sharded(other)}")
torch.distributed.destroy_process_group()
PY
"$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$folder/shard.py" "$folder" |
    grep -E "^(arguments|distributed|fully)" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
arguments.fsdp True, is_fsdp_enabled False
distributed type MULTI_CPU, model wrapped as DistributedDataParallel, sharded parameters 0 of 12
fully_shard alone: sharded parameters 12 of 12
EXPECTED
