#!/usr/bin/env bash
# reasoning-gym 0.1.25 (seen November 2026): nearly all of its generators draw problem i of seed s from s + i alone. Two sets
# whose seeds differ by less than their size thus share problems: with seeds 0 and 1 all but one, so that held-out data of
# "another seed" are training data. gsm_symbolic also shuffles its templates by the seed, and shares few. Seeds must lie as far
# apart as the sets are large.
#
# Output seen (of 100 problems of seed 0, those that are among 100 of another seed):
#   basic_arithmetic: 99 of seed 1, 0 of seed 100
#   simple_equations: 99 of seed 1, 0 of seed 100
#   gsm_symbolic: 4 of seed 1, 0 of seed 100
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/seeds.py" <<'PY'
from reasoning_gym import create_dataset

for name in ("basic_arithmetic", "simple_equations", "gsm_symbolic"):
    drawn, neighbour, far = (
        {row["question"] for row in create_dataset(name, seed=seed, size=100)} for seed in (0, 1, 100)
    )
    print(f"{name}: {len(drawn & neighbour)} of seed 1, {len(drawn & far)} of seed 100")
PY
"$folder/venv/bin/python" "$folder/seeds.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
basic_arithmetic: 99 of seed 1, 0 of seed 100
simple_equations: 99 of seed 1, 0 of seed 100
gsm_symbolic: 4 of seed 1, 0 of seed 100
EXPECTED
