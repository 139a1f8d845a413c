"""The tokenizer of generated chains: a closed vocabulary, with digits one by one."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from step_jepa.data.chains import NAMES, OPERATIONS

SPECIAL_TOKENS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|unknown|>"}
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAINS_TEMPLATE = (
    "{{ bos_token }}"
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>' + turn['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chains_tokenizer() -> PreTrainedTokenizerFast:
    """Every word is a token, with the space before it if there is one, so that decoding gives back the text; every
    other word is <|unknown|>."""
    words = ["\n", "\n\n", "####", " =", *(f" {sign}" for sign in OPERATIONS)]
    for character in (*NAMES, *"0123456789"):
        words += [character, f" {character}"]
    tokens = [*SPECIAL_TOKENS.values(), *ROLE_TOKENS, *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, SPECIAL_TOKENS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+| ?(?:[0-9]|[^\s0-9]+)"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(ROLE_TOKENS), **SPECIAL_TOKENS
    )
    tokenizer.chat_template = CHAINS_TEMPLATE
    return tokenizer
