#!/usr/bin/env bash
# datasets 5.2.0 (seen November 2026): load_dataset("json") reads a column that holds both strings and numbers, as answers
# often do, as its type Json, and then decodes the strings too: "72.0" comes back as a number, "007" as 7, "null" as None
# and "[1, 2]" as a list; what is no JSON stays a string. A column of strings that all look like dates becomes datetimes,
# and an integer beyond 64 bits makes its column floats. Files written back have another answer than those that were read.
#
# Output seen:
#   ["x = 2", "72.0", "007", "null", "[1, 2]"]: ['x = 2', '72.0', '007', 'null', '[1, 2]']
#   ["x = 2", "72.0", "007", "null", "[1, 2]", 5]: ['x = 2', 72.0, 7, None, [1, 2], 5]
#   ["2024-05-01", "2024-05-02"]: [datetime.datetime(2024, 5, 1, 0, 0), datetime.datetime(2024, 5, 2, 0, 0)]
#   [9007199254740993, 9223372036854775808]: [9007199254740992.0, 9.223372036854776e+18]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/read.py" <<'PY'
import json
import sys
from pathlib import Path

from datasets import load_dataset

folder = Path(sys.argv[1])
STRINGS = ["x = 2", "72.0", "007", "null", "[1, 2]"]
COLUMNS = [STRINGS, [*STRINGS, 5], ["2024-05-01", "2024-05-02"], [2**53 + 1, 2**63]]
for number, answers in enumerate(COLUMNS):
    file = folder / f"{number}.jsonl"
    file.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    print(f"{json.dumps(answers)}: {rows['answer'][:]}")
PY
"$folder/venv/bin/python" "$folder/read.py" "$folder" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
["x = 2", "72.0", "007", "null", "[1, 2]"]: ['x = 2', '72.0', '007', 'null', '[1, 2]']
["x = 2", "72.0", "007", "null", "[1, 2]", 5]: ['x = 2', 72.0, 7, None, [1, 2], 5]
["2024-05-01", "2024-05-02"]: [datetime.datetime(2024, 5, 1, 0, 0), datetime.datetime(2024, 5, 2, 0, 0)]
[9007199254740993, 9223372036854775808]: [9007199254740992.0, 9.223372036854776e+18]
EXPECTED
