"""When the command began, its imports included: the time that a user gives it counts from there."""

import time
from contextvars import ContextVar

BEGAN: ContextVar[float] = ContextVar("began")  # by the clock of `time.monotonic`


def command_began() -> float:
    """By the clock of `time.monotonic`; now, where Python calls us and no command was given."""
    return BEGAN.get(time.monotonic())
