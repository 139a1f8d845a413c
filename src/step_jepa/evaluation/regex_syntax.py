"""The regular expressions of NL-RX, from their text: those of Python's `re` that are regular, with `&` for what both
sides match and `~` for what its operand does not match.

    either    = both ("|" both)*
    both      = sequence ("&" sequence)*
    sequence  = repeated*
    repeated  = operand ("*" | "+" | "?" | "{n}" | "{n,}" | "{n,m}")*
    operand   = "~" operand | "(" either ")" | "[" class "]" | "." | "\\b" | escape | character
"""

import re
from dataclasses import dataclass

from step_jepa.evaluation.regular_expressions import ALPHABET, WORD, Term, Terms, TooMuchWork, same_strings

DIGITS, SPACES = frozenset("0123456789"), frozenset(" \t")
CLASSES = {"d": DIGITS, "w": WORD, "s": SPACES}
CLASSES |= {name.upper(): ALPHABET - characters for name, characters in CLASSES.items()}
REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTED = re.compile(r"\{(?P<least>\d+)(?P<comma>,(?P<most>\d+)?)?\}")
_CLASS = re.compile(r"\[(?P<negated>\^?)(?P<members>\]?(?:\\.|[^\]\\])*)\]")
_MEMBER = re.compile(r"\\?.")
MOST_CHARACTERS = 1000


def equivalent(first: str, second: str) -> bool | None:
    """Whether the two match the same lines, as wholes; None where that takes too long to tell, less than a second.

    Raises:
        ValueError: for what is no such expression.
    """
    terms = Terms()
    try:
        return same_strings(terms, parsed(first, terms), parsed(second, terms))
    except (TooMuchWork, RecursionError):
        return None


def parsed(text: str, terms: Terms) -> Term:
    """The term. Raises ValueError for what is no such expression, and TooMuchWork."""
    if len(text) > MOST_CHARACTERS:
        raise TooMuchWork
    parser = _Parser(text, terms)
    term = parser.either()
    if parser.position < len(text):
        raise ValueError(f"{text!r}: unexpected {text[parser.position]!r} at {parser.position}")
    return term


@dataclass
class _Parser:
    """Reads from `position` on; each method what its name says in the grammar."""

    text: str
    terms: Terms
    position: int = 0

    def _takes(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.position)
        self.position += len(sign) * found
        return found

    def _next(self) -> str:
        """Raises ValueError at the end."""
        character = self.text[self.position : self.position + 1]
        if not character:
            raise ValueError(f"{self.text!r}: it ends too early")
        self.position += 1
        return character

    def either(self) -> Term:
        parts = [self._both()]
        while self._takes("|"):
            parts.append(self._both())
        return self.terms.either(*parts)

    def _both(self) -> Term:
        parts = [self._sequence()]
        while self._takes("&"):
            parts.append(self._sequence())
        return self.terms.both(*parts)

    def _sequence(self) -> Term:
        parts: list[Term] = []
        while self.position < len(self.text) and self.text[self.position] not in "|&)":
            parts.append(self._repeated())
        return self.terms.sequence(*parts)

    def _repeated(self) -> Term:
        term = self._operand()
        while (repeat := self._repeat()) is not None:
            term = self.terms.repeated(term, *repeat)
        return term

    def _repeat(self) -> tuple[int, int | None] | None:
        """The fewest and the most times; None where none is written."""
        if counted := _COUNTED.match(self.text, self.position):
            self.position = counted.end()
            least = int(counted["least"])
            most = int(counted["most"]) if counted["most"] else None if counted["comma"] else least
            if most is not None and most < least:
                raise ValueError(f"{self.text!r}: {counted[0]} has more at least than at most")
            return least, most
        return next((times for sign, times in REPEATS.items() if self._takes(sign)), None)

    def _operand(self) -> Term:
        if bracketed := _CLASS.match(self.text, self.position):
            self.position = bracketed.end()
            members = _members(bracketed["members"])
            return self.terms.character(ALPHABET - members if bracketed["negated"] else members)
        match sign := self._next():
            case "~":
                return self.terms.complement(self._operand())
            case "(":
                return self._group()
            case ".":
                return self.terms.character(ALPHABET)
            case "\\":
                escaped = self._next()
                return self.terms.boundary if escaped == "b" else self.terms.character(_escaped(escaped))
            case "*" | "+" | "?" | "[" | "{":
                raise ValueError(f"{self.text!r}: unexpected {sign!r} at {self.position - 1}")
        return self.terms.character(sign)

    def _group(self) -> Term:
        self._takes("?:")
        term = self.either()
        if not self._takes(")"):
            raise ValueError(f"{self.text!r}: a bracket is not closed")
        return term


def _escaped(letter: str) -> frozenset[str]:
    """Raises ValueError for an escape that is not known."""
    if letter.isalnum() and letter not in CLASSES:
        raise ValueError(f"\\{letter} is not known")
    return CLASSES.get(letter, frozenset(letter))


def _members(text: str) -> frozenset[str]:
    """Of a class. Raises ValueError for a range that goes down."""
    signs = _MEMBER.findall(text)
    members: frozenset[str] = frozenset()
    while signs:
        if len(signs) > 2 and signs[1] == "-":
            first, _, last = signs[:3]
            del signs[:3]
            members |= _range(first[-1], last[-1])
        else:
            sign = signs.pop(0)
            members |= _escaped(sign[1]) if len(sign) > 1 else {sign}
    return members


def _range(first: str, last: str) -> frozenset[str]:
    if first > last:
        raise ValueError(f"[{first}-{last}] goes down")
    return frozenset(character for character in ALPHABET if first <= character <= last)
