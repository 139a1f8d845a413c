"""One raw record -> a conversation with steps, by the format that the record has. Knows no file, tokenizer or model."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, cast

from step_jepa.data.columns import proposed_columns
from step_jepa.data.format_registry import fitting_format, known_keys, record_format
from step_jepa.data.raw_record import RawRecord, Rejected, column, plain
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import Reading, Record, has_solution

_SHOWN_KEYS = 8
_JSON = json.JSONDecoder(parse_constant=lambda name: None if name == "NaN" else float(name))  # as `plain` has values


def to_record(raw: Any, args: ReadArguments) -> Record:
    """One raw record as a conversation with steps.

    Args:
        raw: a dictionary, or a line of JSON that holds one.
        args: how it is read.

    Raises:
        Rejected: it cannot be used.
    """
    return cast(Record, dict(to_reading(raw, args)))


def to_reading(raw: Any, args: ReadArguments) -> Reading:
    """The same, with what became of its columns. Raises Rejected."""
    parsed = parsed_record(raw, args)
    record = record_format(args.format or format_of(parsed)).read(parsed, args)
    reading = record if isinstance(record, Reading) else Reading(record, {}, [])
    if isinstance(parsed.get("template"), int):
        reading["template"] = parsed["template"]
    if not (isinstance(raw, str) and raw.isascii() and "\\u" not in raw):  # most lines need no look
        _refuse_half_characters(reading)
    if not has_solution(reading) and not args.for_evaluation:
        raise Rejected(
            "no solution to learn: there is only a result, for evaluation (step-jepa prepare --for_evaluation keeps "
            "it; where it is all that is to be learned, name its column: --columns solution=KEY)"
        )
    return reading


def _refuse_half_characters(record: Reading) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"text holds half a character (a lone surrogate): {error.reason}") from error


def parsed_record(raw: Any, args: ReadArguments) -> RawRecord:
    """The record with plain values, under the names that the user gives its columns. Raises Rejected."""
    if isinstance(raw, str):
        try:
            parsed = _JSON.decode(raw)
        except (ValueError, RecursionError) as error:
            raise Rejected(f"not JSON: {error}") from error
    else:
        parsed = plain(raw)
    if not isinstance(parsed, dict):
        raise Rejected("not a JSON object")
    return _renamed(parsed, args)


def _renamed(raw: RawRecord, args: ReadArguments) -> RawRecord:
    renamed = dict(raw)
    for ours, theirs in args.renamed_columns:
        if column(raw, theirs) is None:
            raise Rejected(f"column {theirs} (--columns) is missing or empty: keys {', '.join(raw)}")
        _remove(renamed, theirs)
        _remove(renamed, ours)
    return renamed | {ours: column(raw, theirs) for ours, theirs in args.renamed_columns}


def _remove(raw: RawRecord, name: str) -> None:
    outer, _, inner = name.partition(".")
    if name not in raw and isinstance(raw.get(outer), Mapping):
        raw[outer] = {key: value for key, value in raw[outer].items() if key != inner}
    raw.pop(name, None)


def format_of(raw: RawRecord) -> str:
    """The name of the format that a record has. Raises Rejected."""
    if name := fitting_format(_keys(raw)):
        return name
    if null := [key for key, value in raw.items() if value is None and key.lower() in known_keys()]:
        raise Rejected(f"null: {', '.join(null)}, and no format fits the other columns")
    shown = ", ".join(list(raw)[:_SHOWN_KEYS]) + (", ..." if len(raw) > _SHOWN_KEYS else "")
    columns = proposed_columns(raw)
    named = f"perhaps {shlex.join(['--columns', columns])}" if columns else "--columns question=KEY,solution=KEY"
    raise Rejected(f"format not recognised: keys {shown}; name the columns of question and solution: {named}")


def _keys(raw: RawRecord) -> frozenset[str]:
    """Those that hold something, also of objects inside, as they are written and in small letters."""
    keys = {key for key, value in raw.items() if value is not None}
    for key, value in raw.items():
        if isinstance(value, dict):
            keys.update(f"{key}.{inner}" for inner, entry in value.items() if entry is not None)
    return frozenset(keys | {key.lower() for key in keys})
