#!/usr/bin/env bash
# torch 2.13.0 on a CPU (seen November 2026): F.cosine_similarity of bfloat16 vectors is computed in bfloat16. A vector's
# cosine with itself is then anything from .992 to 1.008, so a loss 1 - cos of equal vectors is negative for some, and it
# takes no value between. CPU autocast casts the arguments of mse_loss and cross_entropy to float32, but not these.
#
# Output seen:
#   dtype under autocast: cosine_similarity torch.bfloat16, mse_loss torch.float32, cross_entropy torch.float32
#   cosines of 1000 vectors with themselves: [0.9921875, 0.99609375, 1.0, 1.0078125]
#   in float32 all within 1e-6 of 1: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/cosine.py" <<'PY'
import torch
import torch.nn.functional as F

torch.manual_seed(0)
vectors = torch.randn(1000, 576).bfloat16()
with torch.autocast("cpu", dtype=torch.bfloat16):
    cosine = F.cosine_similarity(vectors, vectors, dim=-1)
    squares = F.mse_loss(vectors, vectors)
    entropy = F.cross_entropy(vectors, torch.zeros(1000, dtype=torch.long))
print(f"dtype under autocast: cosine_similarity {cosine.dtype}, mse_loss {squares.dtype}, cross_entropy {entropy.dtype}")
print(f"cosines of 1000 vectors with themselves: {cosine.float().unique().tolist()}")
exact = F.cosine_similarity(vectors.float(), vectors.float(), dim=-1)
print(f"in float32 all within 1e-6 of 1: {bool(((exact - 1).abs() < 1e-6).all())}")
PY
"$folder/venv/bin/python" "$folder/cosine.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
dtype under autocast: cosine_similarity torch.bfloat16, mse_loss torch.float32, cross_entropy torch.float32
cosines of 1000 vectors with themselves: [0.9921875, 0.99609375, 1.0, 1.0078125]
in float32 all within 1e-6 of 1: True
EXPECTED
