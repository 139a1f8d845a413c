#!/usr/bin/env bash
# transformers 5.23.0 (seen November 2026): HfArgumentParser hands every key of a dataclass field's `metadata` to
# argparse's add_argument. A field that carries anything of its own there, which dataclasses provide metadata for, cannot
# be parsed at all; TRL's TrlParser, which extends it, inherits that. A str subclass as the help text gets through.
#
# Output seen:
#   help alone: Options(steps=3)
#   help and a key of our own: TypeError: ... got an unexpected keyword argument 'unit'
#   the same fact on the help text: Options(steps=3) seconds
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
cat > "$folder/parse.py" <<'PY'
from dataclasses import dataclass, field, fields

from transformers import HfArgumentParser


def parsed(metadata):
    @dataclass
    class Options:
        steps: int = field(default=1, metadata=metadata)

    Options.__qualname__ = "Options"
    return HfArgumentParser(Options).parse_args_into_dataclasses(["--steps", "3"])[0]


class Help(str):
    unit = "seconds"


print("help alone:", parsed({"help": "How many."}))
try:
    print("help and a key of our own:", parsed({"help": "How many.", "unit": "seconds"}))
except TypeError as error:
    print("help and a key of our own: TypeError: ...", str(error).partition("() ")[2])
options = parsed({"help": Help("How many.")})
print("the same fact on the help text:", options, fields(options)[0].metadata["help"].unit)
PY
"$folder/venv/bin/python" "$folder/parse.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
help alone: Options(steps=3)
help and a key of our own: TypeError: ... got an unexpected keyword argument 'unit'
the same fact on the help text: Options(steps=3) seconds
EXPECTED
