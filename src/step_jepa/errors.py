"""What is addressed to the user: exceptions, and what is said once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line. The command line prints it and exits with `exit_code`."""

    exit_code = 2


class Interrupted(UserError):
    """Ctrl-C, and how to go on."""

    exit_code = 130


class Terminated(Interrupted):
    """SIGTERM or SIGUSR1, and how to go on."""

    exit_code = 143


@contextmanager
def library_refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Around the call of a library: what it refuses becomes one line for the user, with the library's words.

    Args:
        kinds: the exceptions that the library refuses with; others, and bugs of ours elsewhere, keep their traceback.

    Raises:
        UserError: in place of these.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(" ".join(str(error).split())[:300] or type(error).__name__) from error


@lru_cache
def say_once(text: str) -> None:
    """A warning of something that a process meets many times."""
    logger.warning("%s", text)
