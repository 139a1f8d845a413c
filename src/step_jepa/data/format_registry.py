"""The formats of raw records that are known: those of formats.py, and a user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from step_jepa.data.raw_record import RawRecord

if TYPE_CHECKING:
    from step_jepa.data.reading_options import ReadArguments
    from step_jepa.data.records import Reading, Record


@dataclass(frozen=True)
class RecordFormat:
    """A kind of raw record.

    name   what `--format` calls it
    keys   a record that has all of them, none of them null, is taken for one; "metadata.answer_cot" is a key of the
           object under "metadata", and of "problem|question" one is enough
    read   makes a conversation of it, or raises Rejected; a Reading also says what became of its columns
    """

    name: str
    keys: frozenset[str]
    read: Callable[[RawRecord, "ReadArguments"], "Record | Reading"]

    def fits(self, keys: frozenset[str]) -> bool:
        """Whether a record that has these keys is one."""
        return all(not keys.isdisjoint(_alternatives(key)) for key in self.keys)


@cache
def _alternatives(key: str) -> list[str]:
    return key.split("|")


_FORMATS: dict[str, RecordFormat] = {}


def register_format(record_format: RecordFormat) -> None:
    """Make a format known, in place of one of the same name.

    The last one registered is the first that a record is held against, so general formats go before particular ones.
    """
    _FORMATS.pop(record_format.name, None)  # so that it becomes the last
    _FORMATS[record_format.name] = record_format
    fitting_format.cache_clear()


@lru_cache(maxsize=256)  # the records of one file have few sets of keys
def fitting_format(keys: frozenset[str]) -> str | None:
    """The name of the first format that a record with these keys has; None where there is none."""
    return next((name for name in format_names() if _FORMATS[name].fits(keys)), None)


def format_names() -> list[str]:
    """All that are known, in the order in which a record is held against them."""
    return list(reversed(_FORMATS))


def known_keys() -> set[str]:
    """All that any format looks for."""
    keys = chain.from_iterable(each.keys for each in formats())
    return set(chain.from_iterable(map(_alternatives, keys)))


def record_format(name: str) -> RecordFormat:
    """The one with that name."""
    return _FORMATS[name]


def formats() -> list[RecordFormat]:
    """All that are known."""
    return list(_FORMATS.values())
