#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (seen November 2026): NEFTune's noise on a row's embeddings depends on what lies in the batch
# with it. Its size is alpha / sqrt(length * hidden size) with the length of the tensor, padding included: a short row beside a
# long one gets the long one's, smaller noise, and rows laid end to end (DataCollatorWithFlattening, padding-free and packed
# training) get that of one row as long as the batch. The paper's length is the row's own. So batch size, the order of rows and the
# collator change neftune_noise_alpha: 100 flat rows get a tenth of the noise of rows alone.
#
# Output seen (greatest noise on the 8 tokens of a row, in parts of that of the row alone):
#   the row alone: 1.00
#   padded to the 128 tokens of another: 0.25
#   flat, 100 rows of 8 tokens: 0.10
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$folder/noise.py" <<'PY'
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, set_seed
from transformers.integrations.neftune import activate_neftune

set_seed(0)
shape = {"hidden_size": 4096, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).train()
embed = model.get_input_embeddings()
clean = embed.weight.detach()
activate_neftune(model, 5.0)


def greatest_noise(input_ids):
    """On the first eight tokens of a batch."""
    return (embed(input_ids) - clean[input_ids])[0, :8].abs().max().item()


row, long_row = list(range(8)), [9] * 128
alone = greatest_noise(torch.tensor([row]))
padded = pad_sequence([torch.tensor(row), torch.tensor(long_row)], batch_first=True)
flat = DataCollatorWithFlattening()([{"input_ids": row} for _ in range(100)])["input_ids"]
print(f"the row alone: {1:.2f}")
print(f"padded to the 128 tokens of another: {greatest_noise(padded) / alone:.2f}")
print(f"flat, 100 rows of 8 tokens: {greatest_noise(flat) / alone:.2f}")
PY
"$folder/venv/bin/python" "$folder/noise.py" | grep -E "^(the row|padded|flat)" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
the row alone: 1.00
padded to the 128 tokens of another: 0.25
flat, 100 rows of 8 tokens: 0.10
EXPECTED
