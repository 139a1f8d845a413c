#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (seen November 2026): a 4D boolean attention_mask (True: attend) is taken as it is. With
# sdpa it masks. With eager attention its ones and zeros are added to the scores, so a causal mask lets every token see those
# behind it, and nothing is said. A float mask of zeros and minus infinity gives the same logits with both.
#
# Output seen (do the logits of the first token stay when the last token is changed?):
#   sdpa, boolean mask: True
#   sdpa, float mask: True
#   eager, boolean mask: False
#   eager, float mask: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$folder/causal.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)).eval()
ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 9]])
boolean = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 1, 4, 4)
added = torch.zeros(2, 1, 4, 4).masked_fill(~boolean, -torch.inf)
for attention in ("sdpa", "eager"):
    model.set_attn_implementation(attention)
    for name, mask in (("boolean", boolean), ("float", added)):
        with torch.no_grad():
            first = model(ids, attention_mask=mask).logits[:, 0]
        print(f"{attention}, {name} mask: {torch.allclose(first[0], first[1], atol=1e-4)}")
PY
"$folder/venv/bin/python" "$folder/causal.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
sdpa, boolean mask: True
sdpa, float mask: True
eager, boolean mask: False
eager, float mask: True
EXPECTED
