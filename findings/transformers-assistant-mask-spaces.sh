#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3 (seen November 2026): apply_chat_template(return_assistant_tokens_mask=True) looks up
# the token at the first and at the last character of each `generation` block. Where the byte-level post-processor trims
# offsets (trim_offsets=True, as in GPT-2's tokenizer), a space has no token. So one answer that begins with a space leaves
# itself and all answers after it out of the mask, and one that ends with a space puts all that follows in it, the next
# question too. Nothing is raised or logged, so a loss on the assistant's tokens alone is then taken on others.
#
# Output seen (the tokens under the mask):
#   trim_offsets=False, first answer 'four': ['four', 'five']
#   trim_offsets=False, first answer ' four': [' four', 'five']
#   trim_offsets=False, first answer 'four ': ['four', ' ', 'five']
#   trim_offsets=True, first answer 'four': ['four', 'five']
#   trim_offsets=True, first answer ' four': []
#   trim_offsets=True, first answer 'four ': ['four', ' ', '<user>', 'three', '<model>', 'five']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$folder/mask.py" <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["two", "three", "four", "five", "\u0120four", "\u0120"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'model' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def masked(trim_offsets, answer):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="two"))
    backend.add_special_tokens(["<user>", "<model>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    turns = [("user", "two"), ("model", answer), ("user", "three"), ("model", "five")]
    chat = [{"role": role, "content": content} for role, content in turns]
    read = tokenizer.apply_chat_template(chat, chat_template=TEMPLATE, return_dict=True, return_assistant_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(read["input_ids"])
    return [token.replace("\u0120", " ") for token, seen in zip(tokens, read["assistant_masks"]) if seen]


for trim_offsets in (False, True):
    for answer in ("four", " four", "four "):
        print(f"trim_offsets={trim_offsets}, first answer {answer!r}: {masked(trim_offsets, answer)}")
PY
"$folder/venv/bin/python" "$folder/mask.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
trim_offsets=False, first answer 'four': ['four', 'five']
trim_offsets=False, first answer ' four': [' four', 'five']
trim_offsets=False, first answer 'four ': ['four', ' ', 'five']
trim_offsets=True, first answer 'four': ['four', 'five']
trim_offsets=True, first answer ' four': []
trim_offsets=True, first answer 'four ': ['four', ' ', '<user>', 'three', '<model>', 'five']
EXPECTED
