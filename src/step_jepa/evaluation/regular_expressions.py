"""Regular expressions as terms that are made once each, their derivatives, and whether two match the same strings.

Derivatives (Brzozowski, Journal of the ACM 11, 1964, p. 481) know `&` and `~` as they know `|`. What is matched in a
place knows whether the character before it and the one behind it are of a word, which is all that a word boundary looks
at. Tried in place of this (November 2026): greenery 4.2.3, interegular 0.3.3, automata-lib 9.2.0, pyformlang 1.0.11,
FAdo 2.2.0 and the solver z3 5.4.0. None has the boundary, which every fifth row of NL-RX has; `regex` 2026.11 has it,
and compares nothing. Only z3 can be told to stop in time, and an expression from which boundaries are written out grows
at each operator. The work of the others has no bound: greenery takes seconds for "dog" and "truck" in either order,
interegular and automata-lib make 2^n states where strings differ at the nth letter from the end.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce

PRINTABLE = frozenset(map(chr, range(32, 127))) | {"\t"}
ALPHABET = PRINTABLE | {"\N{GREEK SMALL LETTER ALPHA}"}  # any other one; a string is a line
WORD = frozenset(character for character in ALPHABET if character.isalnum() or character == "_")
MOST_WORK = 200_000  # parts that are gone through, in less than half a second; two of NL-RX take some thousand


class TooMuchWork(Exception):
    """A comparison was given up."""


class Kind(Enum):
    NOTHING = "no string"
    EMPTY = "the empty string"
    BOUNDARY = "the empty string between a character of a word and one of none"
    CHARACTER = "one of its characters"
    SEQUENCE = "its parts, one after the other"
    EITHER = "what one of its parts matches"
    BOTH = "what all of its parts match"
    NOT = "what its part does not match"
    STAR = "its part any number of times"


# Of the parts' matching the empty string
COMBINED: dict[Kind, Callable[[Iterable[bool]], bool]] = {Kind.SEQUENCE: all, Kind.BOTH: all, Kind.EITHER: any}


@dataclass(frozen=True, eq=False)  # equal ones are one: compared by identity
class Term:
    """`number` is its place among those that were made."""

    number: int
    kind: Kind
    parts: tuple["Term", ...] = ()
    characters: frozenset[str] = frozenset()


@dataclass
class Terms:
    """All terms of a comparison. Whatever is asked of them raises TooMuchWork beyond MOST_WORK."""

    made: dict[tuple[Kind, tuple[int, ...], frozenset[str]], Term] = field(default_factory=dict)
    derivatives: dict[tuple[int, bool, str], Term] = field(default_factory=dict)
    work: int = 0

    def __post_init__(self) -> None:
        self.nothing, self.empty = self._term(Kind.NOTHING), self._term(Kind.EMPTY)
        self.boundary = self._term(Kind.BOUNDARY)
        self.anything = self._term(Kind.NOT, self.nothing)

    def go_through(self, parts: int) -> None:
        """Count them as work."""
        self.work += parts
        if self.work > MOST_WORK:
            raise TooMuchWork

    def _term(self, kind: Kind, *parts: Term, characters: frozenset[str] = frozenset()) -> Term:
        self.go_through(1 + len(parts))
        key = (kind, tuple(part.number for part in parts), characters)
        if key not in self.made:
            self.made[key] = Term(len(self.made), kind, parts, characters)
        return self.made[key]

    def character(self, characters: Iterable[str]) -> Term:
        known = frozenset(characters) & ALPHABET
        return self._term(Kind.CHARACTER, characters=known) if known else self.nothing

    def sequence(self, *parts: Term) -> Term:
        return reduce(lambda rest, part: self._pair(part, rest), reversed(parts), self.empty)

    def _pair(self, first: Term, rest: Term) -> Term:
        if self.nothing in (first, rest):
            return self.nothing
        if self.empty in (first, rest):
            return rest if first is self.empty else first
        if first.kind is Kind.SEQUENCE:
            return self._pair(first.parts[0], self._pair(first.parts[1], rest))
        return self._term(Kind.SEQUENCE, first, rest)

    def either(self, *parts: Term) -> Term:
        return self._joined(Kind.EITHER, parts, neutral=self.nothing, absorbing=self.anything)

    def both(self, *parts: Term) -> Term:
        return self._joined(Kind.BOTH, parts, neutral=self.anything, absorbing=self.nothing)

    def _joined(self, kind: Kind, parts: Iterable[Term], *, neutral: Term, absorbing: Term) -> Term:
        """In one order and without repeats: else derivatives would not come to an end."""
        flat: set[Term] = set()
        for part in parts:
            found = part.parts if part.kind is kind else (part,)
            self.go_through(len(found))
            flat.update(found)
        flat -= {neutral}
        if absorbing in flat or any(self.complement(part) in flat for part in flat):
            return absorbing
        if len(flat) < 2:
            return flat.pop() if flat else neutral
        return self._term(kind, *sorted(flat, key=lambda part: part.number))

    def complement(self, part: Term) -> Term:
        return part.parts[0] if part.kind is Kind.NOT else self._term(Kind.NOT, part)

    def star(self, part: Term) -> Term:
        if part in (self.nothing, self.empty, self.boundary):
            return self.empty
        if part.kind is Kind.STAR or part is self.anything:
            return part
        return self.anything if part.characters == ALPHABET else self._term(Kind.STAR, part)

    def repeated(self, part: Term, least: int, most: int | None) -> Term:
        self.go_through(max(least, most or 0))
        rest = self.star(part) if most is None else self.empty
        for _ in range((most or least) - least):
            rest = self.either(self.empty, self._pair(part, rest))
        return self.sequence(*[part] * least, rest)

    def derivative(self, term: Term, after_word: bool, character: str) -> Term:
        """What is left to match once the term has read the character, behind a word's character or not."""
        key = (term.number, after_word, character)
        if key not in self.derivatives:
            self.derivatives[key] = self._derivative(term, after_word, character)
        return self.derivatives[key]

    def _derivative(self, term: Term, after_word: bool, character: str) -> Term:
        def derived(part: Term) -> Term:
            return self.derivative(part, after_word, character)

        match term.kind:
            case Kind.CHARACTER:
                return self.empty if character in term.characters else self.nothing
            case Kind.SEQUENCE:
                first, rest = term.parts
                read_by_first = self._pair(derived(first), rest)
                skips = self.match_empty(first, after_word, character in WORD)
                return self.either(read_by_first, derived(rest)) if skips else read_by_first
            case Kind.EITHER:
                return self.either(*map(derived, term.parts))
            case Kind.BOTH:
                return self.both(*map(derived, term.parts))
            case Kind.NOT:
                return self.complement(derived(term.parts[0]))
            case Kind.STAR:
                return self._pair(derived(term.parts[0]), term)
            case _:
                return self.nothing

    def match_empty(self, term: Term, after_word: bool, before_word: bool) -> bool:
        """Whether it matches the empty string between two characters, given which of them are of a word."""
        self.go_through(1)
        combined = COMBINED.get(term.kind)
        if combined is not None:
            return combined(self.match_empty(part, after_word, before_word) for part in term.parts)
        if term.kind is Kind.NOT:
            return not self.match_empty(term.parts[0], after_word, before_word)
        return term.kind in (Kind.EMPTY, Kind.STAR) or (term.kind is Kind.BOUNDARY and after_word != before_word)


def same_strings(terms: Terms, first: Term, second: Term) -> bool:
    """Whether no line is matched, as a whole, by one alone. Raises TooMuchWork."""
    characters = _representatives(terms)
    start = (first, second, False)
    waiting, seen = [start], {start}
    while waiting:
        left, right, after_word = waiting.pop()
        terms.go_through(len(characters))
        if terms.match_empty(left, after_word, False) != terms.match_empty(right, after_word, False):
            return False
        for character in characters:
            new_left, new_right = (terms.derivative(term, after_word, character) for term in (left, right))
            state = (new_left, new_right, character in WORD)
            if new_left is not new_right and state not in seen:
                seen.add(state)
                waiting.append(state)
    return True


def _representatives(terms: Terms) -> list[str]:
    """One of the characters that no term, and no boundary, tells apart."""
    sets = [WORD, *dict.fromkeys(term.characters for term in terms.made.values())]
    by_membership = {tuple(character in each for each in sets): character for character in sorted(ALPHABET)}
    return list(by_membership.values())
