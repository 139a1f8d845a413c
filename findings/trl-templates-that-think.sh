#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0 (seen November 2026): an answer without thinking is trained behind another beginning than the
# one that generation is prompted with, in the templates that TRL carries for DeepSeek-R1 (distilled), DeepSeek-V3 and
# Nemotron 3, and in the versions of them that it trains with: the prompt opens <think>, the trained row goes on without it or
# closes it at once. So a model that was trained on worked answers is asked, in use, to go on from what it was never shown.
#
# Output seen (what stands behind the prompt's own beginning: in the prompt, in the trained row):
#   25 of 31 training templates begin an answer as they prompt for it
#   deepseek_r1_distill_training: '<think>\n', ''
#   deepseekv3_training: '<think>\n', ''
#   nemotron_3_5_lightning_training: '<think>\n', '<think></think>'
#   nemotron_3_nano_training: '<think>\n', '<think></think>'
#   nemotron_3_super_training: '<think>\n', '<think></think>'
#   nemotron_3_ultra_training: '<think>\n', '<think></think>'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0
cat > "$folder/templates.py" <<'PY'
from importlib.util import find_spec
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

folder = Path(find_spec("trl").submodule_search_locations[0], "chat_templates")


def rendered(template, turns, prompts):
    chat = [{"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in turns]
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return render_jinja_template([chat], chat_template=template, add_generation_prompt=prompts, **tokens)[0][0]


found = {}
for file in sorted(folder.glob("*_training.jinja")):
    in_parts = file.stem.startswith("llava")
    prompt = rendered(file.read_text(), [("user", "2+2?")], True)
    row = rendered(file.read_text(), [("user", "2+2?"), ("assistant", "It is 4.")], False)
    think = prompt.rfind("<think>")
    found[file.stem] = None if row.startswith(prompt) else (prompt[think:], row[think : row.index("It is 4.")])
print(f"{list(found.values()).count(None)} of {len(found)} training templates begin an answer as they prompt for it")
for name, beginnings in found.items():
    if beginnings:
        print(f"{name}: {beginnings[0]!r}, {beginnings[1]!r}")
PY
"$folder/venv/bin/python" "$folder/templates.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
25 of 31 training templates begin an answer as they prompt for it
deepseek_r1_distill_training: '<think>\n', ''
deepseekv3_training: '<think>\n', ''
nemotron_3_5_lightning_training: '<think>\n', '<think></think>'
nemotron_3_nano_training: '<think>\n', '<think></think>'
nemotron_3_super_training: '<think>\n', '<think></think>'
nemotron_3_ultra_training: '<think>\n', '<think></think>'
EXPECTED
