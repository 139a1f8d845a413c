r"""Whether two formulas are the same, by math-verify: what is read in part, or cannot be solved, is not.

LaTeX without dollars, such as `\frac{1}{2}` or `(x, y) = (3, 4)`.
"""

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import math_verify
import sympy
from antlr4 import CommonTokenStream, InputStream, Token
from antlr4.error.ErrorListener import ErrorListener
from latex2sympy2_extended.antlr_parser import PSLexer, PSParser
from latex2sympy2_extended.logic import And
from math_verify.errors import TimeoutException

SECONDS = 10  # for a comparison

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time is not limited: it is, here


def same(given: str, wanted: str) -> bool:
    """Whether one is the other. Never raises: what cannot be judged in time is not."""
    try:
        with time_limit(SECONDS):
            return _equal(_parsed(wanted), _parsed(given))
    except (Exception, TimeoutException):  # sympy raises all sorts of things at what a model writes
        return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutException in this thread, whichever it is, if what is inside takes longer.

    math-verify's own limit is a signal, which only the main thread gets."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread = ctypes.c_ulong(threading.get_ident())
    timer = threading.Timer(seconds, raise_in, (thread, ctypes.py_object(TimeoutException)))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        raise_in(thread, None)  # should it have been raised and not have come yet


def _parsed(latex: str) -> list[Any]:
    """What it means, where all of it is understood, and its text."""
    # Between dollars the text is one formula; bare, math-verify would pick whatever number it likes.
    parsed: list[Any] = math_verify.parse(f"${latex}$", parsing_timeout=None)  # type: ignore[arg-type]
    return parsed if parsed and _is_read_whole(parsed[-1]) else parsed[-1:]


class _Refusal(ErrorListener):  # type: ignore[misc]
    def syntaxError(self, *_: Any) -> None:
        raise ValueError


def _is_read_whole(latex: str) -> bool:
    """Whether the grammar takes all of it: math-verify is content with a formula that it begins with."""
    lexer = PSLexer(InputStream(latex))
    parser = PSParser(CommonTokenStream(lexer))
    for each in (lexer, parser):
        each.removeErrorListeners()
        each.addErrorListener(_Refusal())
    try:
        parser.math()
        return bool(parser.getCurrentToken().type == Token.EOF)
    except ValueError:
        return False


def _equal(wanted: list[Any], given: list[Any]) -> bool:
    if wanted[-1] == given[-1]:
        return True
    if len(wanted) == 1 or len(given) == 1:  # one of them is not understood
        return False
    one, other = _without_common_left(_shortened(wanted[0]), _shortened(given[0]))
    if not math_verify.verify(one, other, timeout_seconds=None):
        return False
    equations = isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq)
    return not equations or _is_shown(one, other)


def _shortened(formula: Any) -> Any:
    """A chain of equations from its first to its last side; of one between numbers, what they are."""
    if not (isinstance(formula, sympy.Eq) or _is_chain(formula)):
        return formula
    links = formula._unsorted_args if _is_chain(formula) else [formula]
    left, right = links[0].lhs, links[-1].rhs
    return sympy.Eq(left, right, evaluate=False) if left.free_symbols else right


def _is_chain(formula: Any) -> bool:
    return isinstance(formula, And) and all(isinstance(link, sympy.Eq) for link in formula._unsorted_args)


def _without_common_left(one: Any, other: Any) -> tuple[Any, Any]:
    """Two tuples or sets of one name as what they are, for math-verify compares those piece by piece."""
    equations = isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq)
    return (one.rhs, other.rhs) if equations and one.lhs == other.lhs else (one, other)


def _is_shown(one: sympy.Eq, other: sympy.Eq) -> bool:
    """Whether equations that math-verify calls equal are: it says so of any two that it cannot solve."""
    difference = (one.lhs - one.rhs) - (other.lhs - other.rhs)
    return bool(sympy.solve(one, one.free_symbols)) or sympy.simplify(difference) == 0
