#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (seen November 2026): Trainer with train_sampling_strategy
# "group_by_length" draws its order from torch's global generator. Resumed within the second epoch it draws that epoch in
# another order and skips as many batches as it had done, so some rows are read twice in the epoch and some not at all.
# With "random", the default, the order follows from seed and epoch, and the resumed run reads the rest.
#
# Output seen (64 rows, two epochs in batches of 4, resumed in the middle of the second):
#   random: the second epoch read 64 of 64 rows
#   group_by_length: the second epoch read fewer than 64 rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/resume.py" <<'PY'
import sys

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
rows = [{"input_ids": [1] * (2 + number * 37 % 29), "number": number} for number in range(64)]


def rows_read(strategy, resumed):
    read = []

    def collate(batch):
        read.extend(row["number"] for row in batch)
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in batch], batch_first=True)
        return {"input_ids": ids, "labels": ids}

    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 24, "remove_unused_columns": False}
    arguments = TrainingArguments(
        f"{sys.argv[1]}/{strategy}", train_sampling_strategy=strategy, use_cpu=True, report_to="none", disable_tqdm=True, **options
    )
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)), arguments, collate, rows)
    trainer.train(resume_from_checkpoint=f"{arguments.output_dir}/checkpoint-24" if resumed else None)
    return read


for strategy in ("random", "group_by_length"):
    whole, rest = (rows_read(strategy, resumed) for resumed in (False, True))
    second_epoch = set(whole[64:96]) | set(rest[-32:])
    print(f"{strategy}: the second epoch read {'64 of' if len(second_epoch) == 64 else 'fewer than'} 64 rows")
PY
"$folder/venv/bin/python" "$folder/resume.py" "$folder" | grep rows | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
random: the second epoch read 64 of 64 rows
group_by_length: the second epoch read fewer than 64 rows
EXPECTED
