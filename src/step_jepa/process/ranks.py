"""Several processes (ranks) of one run: which of them says why it ends, and how it leaves."""

import os
import re
import sys
from functools import cache
from typing import Any, NoReturn

# How gloo, NCCL and their stores say that another process is gone
_LOST = re.compile(r"Connection (closed|reset|refused)|Broken pipe|gloo|NCCL|TCPStore", re.IGNORECASE)


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def named() -> str:
    """Which one it is, of several."""
    return f"rank {os.environ.get('RANK', '?')}: " if several() else ""


@cache
def speaks() -> bool:
    """Whether this process says why it ends: of several the first one that asks, as the others end because of it.
    Before they have met, one of each machine."""
    if not several():
        return True
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        store = distributed.distributed_c10d._get_default_store()
        return bool(store.add("step_jepa/ended", 1) == 1)
    except RuntimeError:  # the process that kept it is gone
        return True


def is_lost(error: BaseException) -> bool:
    """Whether it says that another rank is gone."""
    return several() and isinstance(error, RuntimeError | OSError) and _LOST.search(str(error)) is not None


def end(code: int) -> NoReturn:
    """Leave at once: libraries would wait for the other ranks as they clean up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
