"""What `--help` prints: our options by purpose; those of transformers.TrainingArguments with `--help-all`."""

from typing import Any


def page(command: str, types: list[Any], *, everything: bool) -> str:
    """The help of a command."""
    return f"usage: step-jepa {command} {types} {everything}"
