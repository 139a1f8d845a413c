#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (seen November 2026): Trainer's eval_loss is a mean over rows of the mean
# loss of the batch that each row lies in. So one model on the same rows has another eval_loss for another
# per_device_eval_batch_size, where rows differ in length, and none need be the mean over tokens that the training loss is
# (which counts the labels of all micro-batches). Losses of two runs can be compared at one batch size only.
#
# Output seen (a model that gives token 1 a loss of 0 and token 2 one of 8; rows of 9, 1 and 1 labels):
#   batch size 1: eval_loss 5.33
#   batch size 2: eval_loss 3.20
#   batch size 3: eval_loss 1.45
#   mean over tokens: 1.45
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/evaluate.py" <<'PY'
import sys

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=3, **shape))
model.forward = lambda input_ids, labels, **_: {"loss": (8.0 * (labels == 2)).sum() / (labels != -100).sum()}
rows = [{"labels": torch.tensor(labels)} for labels in ([1] * 9, [2], [2])]


def collate(batch):
    labels = pad_sequence([row["labels"] for row in batch], batch_first=True, padding_value=-100)
    return {"input_ids": labels.clamp(min=0), "labels": labels}


for size in (1, 2, 3):
    options = {"per_device_eval_batch_size": size, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    trainer = Trainer(model, TrainingArguments(sys.argv[1], **options), collate, eval_dataset=rows)
    print(f"batch size {size}: eval_loss {trainer.evaluate()['eval_loss']:.2f}")
labels = torch.cat([row["labels"] for row in rows])
print(f"mean over tokens: {8.0 * (labels == 2).float().mean():.2f}")
PY
"$folder/venv/bin/python" "$folder/evaluate.py" "$folder" | grep -E "^(batch|mean)" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
batch size 1: eval_loss 5.33
batch size 2: eval_loss 3.20
batch size 3: eval_loss 1.45
mean over tokens: 1.45
EXPECTED
