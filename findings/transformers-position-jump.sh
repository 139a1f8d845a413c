#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (seen November 2026): with the cache off and no attention_mask, a jump in position_ids is
# taken for the border between two packed documents, and attention is cut there. So tokens that are left out of a text by
# skipping their positions hide all that stands before the gap. With the cache on, which is the default of a forward pass, or
# with a mask of ones, they do not: the same call gives other logits once training turns the cache off.
#
# Output seen (which tokens' logits change with the first token):
#   positions 0 1 2 3, cache on: [True, True, True, True]
#   positions 0 1 2 3, cache off: [True, True, True, True]
#   positions 0 1 7 8, cache on: [True, True, True, True]
#   positions 0 1 7 8, cache off: [True, True, False, False]
#   positions 0 1 7 8, cache off, a mask of ones: [True, True, True, True]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$folder/jump.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)).eval()
texts = [torch.tensor([[first, 2, 3, 4]]) for first in (1, 9)]


def changed(positions, cache, mask=None):
    with torch.no_grad():
        one, other = (
            model(ids, position_ids=torch.tensor([positions]), use_cache=cache, attention_mask=mask).logits for ids in texts
        )
    return ((one - other).abs().amax(-1)[0] > 1e-4).tolist()


for positions in ([0, 1, 2, 3], [0, 1, 7, 8]):
    for cache in (True, False):
        print(f"positions {' '.join(map(str, positions))}, cache {'on' if cache else 'off'}: {changed(positions, cache)}")
ones = torch.ones(1, 4, dtype=torch.long)
print(f"positions 0 1 7 8, cache off, a mask of ones: {changed([0, 1, 7, 8], False, ones)}")
PY
"$folder/venv/bin/python" "$folder/jump.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
positions 0 1 2 3, cache on: [True, True, True, True]
positions 0 1 2 3, cache off: [True, True, True, True]
positions 0 1 7 8, cache on: [True, True, True, True]
positions 0 1 7 8, cache off: [True, True, False, False]
positions 0 1 7 8, cache off, a mask of ones: [True, True, True, True]
EXPECTED
