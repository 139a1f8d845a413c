#!/usr/bin/env bash
# torch 2.13.0 on a CPU (seen November 2026): F.cross_entropy in float32 over a language model's vocabulary is off always to
# one side, and the more the larger the vocabulary is. logsumexp minus the label's logit, from the same float32 logits, is
# over a hundred times nearer to float64, and so are its gradients. Losses that differ by less than 1e-5 nats a token, as
# those of two implementations may, cannot be told apart by it.
#
# The mean error of 2,000 random rows was -9e-7, -4e-6 and -1e-5 nats; of a real model's logits over 49,152 tokens -7e-6.
# Output seen, the same with ATEN_CPU_CAPABILITY default, avx2 and avx512:
#   49152 tokens: cross_entropy is too small by 5e-07 or more: True; logsumexp is 10 times nearer or more: True
#   128256 tokens: cross_entropy is too small by 2e-06 or more: True; logsumexp is 10 times nearer or more: True
#   262144 tokens: cross_entropy is too small by 5e-06 or more: True; logsumexp is 10 times nearer or more: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/errors.py" <<'PY'
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
for vocabulary, least in ((49_152, 5e-7), (128_256, 2e-6), (262_144, 5e-6)):
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(20):
        logits = 3 * torch.randn(100, vocabulary, generator=generator)
        labels = torch.randint(vocabulary, (100,), generator=generator)
        exact = F.cross_entropy(logits.double(), labels, reduction="none")
        fused = F.cross_entropy(logits, labels, reduction="none")
        plain = logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]
        errors.append([float((ours.double() - exact).mean()) for ours in (fused, plain)])
    fused, plain = torch.tensor(errors).mean(0).tolist()
    off = f"cross_entropy is too small by {least:.0e} or more: {-fused >= least}"
    print(f"{vocabulary} tokens: {off}; logsumexp is 10 times nearer or more: {abs(fused) >= 10 * abs(plain)}")
PY
"$folder/venv/bin/python" "$folder/errors.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
49152 tokens: cross_entropy is too small by 5e-07 or more: True; logsumexp is 10 times nearer or more: True
128256 tokens: cross_entropy is too small by 2e-06 or more: True; logsumexp is 10 times nearer or more: True
262144 tokens: cross_entropy is too small by 5e-06 or more: True; logsumexp is 10 times nearer or more: True
EXPECTED
