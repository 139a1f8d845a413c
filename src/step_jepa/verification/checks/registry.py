"""The checks by name, in the order in which they are made."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from step_jepa.errors import UserError
from step_jepa.verification.context import VerificationContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    passed   None where it could not be made
    figure   what was found, in one line; where the check could not be made, why
    remedy   what to do where it failed; None where the figure says it already, and for checks that did not fail
    """

    passed: bool | None
    figure: str
    remedy: str | None = None


CheckFunction = Callable[[VerificationContext], CheckResult]


@dataclass(frozen=True)
class Check:
    """A check, and what to do where it fails."""

    function: CheckFunction
    remedy: str


CHECKS: dict[str, Check] = {}


def register_check(name: str, *, remedy: str) -> Callable[[CheckFunction], CheckFunction]:
    """A function decorator: `step-jepa verify` makes this check too, after those that are known by now.

    Args:
        name: what it is called in the table and in the JSON.
        remedy: what to do where it fails, for the user.

    Raises:
        UserError: for a name that is taken.
    """

    def register(function: CheckFunction) -> CheckFunction:
        if name in CHECKS:
            raise UserError(f"check {name} is there already: give another name")
        CHECKS[name] = Check(function, remedy)
        return function

    return register


def check_results(
    context: VerificationContext, names: Sequence[str] | None = None
) -> Iterator[tuple[str, CheckResult]]:
    """The name and the result of each check, in order. What cannot be set up fails once; checks that need it are not
    made.

    Args:
        context: what is checked.
        names: of the checks; all by default.
    """
    known_reasons: set[str] = set()
    for name in names or list(CHECKS):
        try:
            result = CHECKS[name].function(context)
        except Exception as error:  # whatever a strange model or tokenizer makes of it is a result
            result = _failure(name, error, known_reasons)
            known_reasons.add(result.figure)
        else:
            result = replace(result, remedy=CHECKS[name].remedy if result.passed is False else None)
        yield name, result


def _failure(name: str, error: Exception, known_reasons: set[str]) -> CheckResult:
    """The result of a check that could not be made. The user's own error says what to do; any other may be a bug of
    ours and keeps its traceback."""
    foreseen = isinstance(error, UserError)
    reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())[:300]
    if reason in known_reasons:
        return CheckResult(None, reason)
    if foreseen:
        return CheckResult(False, reason)
    logger.error("check %s", name, exc_info=error)
    return CheckResult(False, reason, CHECKS[name].remedy)
