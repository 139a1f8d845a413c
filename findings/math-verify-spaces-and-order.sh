#!/usr/bin/env bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0 (seen November 2026): numbers with a space between them are added, so
# a thousands separator that is a space, as in much of Europe, makes 12345 into 357 and the mixed number 3 1/2 into 2, while
# 3\frac{1}{2} is 3.5. A thin space multiplies instead. And a list is a set: the answers 1, 2 and 2, 1 are equal. Rewards made
# by it are wrong in both directions for such answers.
#
# Output seen:
#   \boxed{12 345} is 12345: False, is 357: True
#   \boxed{3 1/2} is 7/2: False, is 2: True
#   \boxed{3\frac{1}{2}} is 7/2: True, is 2: False
#   \boxed{2\,000} is 2000: False, is 0: True
#   \boxed{1,2} is 2,1: True, is 1,3: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
cat > "$folder/equal.py" <<'PY'
from math_verify import parse, verify

CASES = [
    ("12 345", "12345", "357"),
    ("3 1/2", "7/2", "2"),
    (r"3\frac{1}{2}", "7/2", "2"),
    (r"2\,000", "2000", "0"),
    ("1,2", "2,1", "1,3"),
]
for answer, one, other in CASES:
    boxed = rf"\boxed{{{answer}}}"
    equal = [verify(parse(f"${gold}$"), parse(f"${boxed}$")) for gold in (one, other)]
    print(f"{boxed} is {one}: {equal[0]}, is {other}: {equal[1]}")
PY
"$folder/venv/bin/python" "$folder/equal.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
\boxed{12 345} is 12345: False, is 357: True
\boxed{3 1/2} is 7/2: False, is 2: True
\boxed{3\frac{1}{2}} is 7/2: True, is 2: False
\boxed{2\,000} is 2000: False, is 0: True
\boxed{1,2} is 2,1: True, is 1,3: False
EXPECTED
