"""A file -> its rows, each with its line. JSON lines, arrays and CSV are read here, line by line and as they are
written; Parquet and Arrow by `datasets`, whose reading of JSON makes the records of a file alike."""

import codecs
import csv
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from step_jepa.errors import UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
JSON = (".jsonl", ".json", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
BY_DATASETS = {".parquet": "parquet", ".arrow": "arrow"}
_LONGEST_CELL = 2**31 - 1


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    return suffixes[-1] if suffixes else ""


def file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, raw record) of a file; in an array and in what `datasets` reads the record's number takes the place of the
    line. A line that is still to be parsed is a str. Raises UserError for what cannot be read."""
    kind = kind_of(path)
    if kind in BY_DATASETS:
        return _rows_by_datasets(path, BY_DATASETS[kind])
    if kind in DELIMITERS:
        return _csv_rows(path, DELIMITERS[kind])
    return _array_items(path) if _begins_array(path) else _lines(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_bytes_of(path), 1):
        if text := _decoded(line, f"{path}:{number}").strip():
            yield number, text


def _bytes_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked."""
    try:
        with fsspec.open(str(path), "rb", compression="infer") as lines:
            yield from lines
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _begins_array(path: Path) -> bool:
    """The first line that says anything is "[", or goes on after it as an array of objects does."""
    for line in _bytes_of(path):
        if text := line.removeprefix(codecs.BOM_UTF8).strip():
            return text.startswith(b"[")
    return False


def _array_items(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        items = json.loads(_decoded(b"".join(_bytes_of(path)), str(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; correct it") from error
    except RecursionError:
        raise UserError(f"{path}: arrays or objects within one another a thousand times: correct it") from None
    yield from enumerate(items, 1)


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; convert the file to UTF-8") from error


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Cells are text, as they are written; an empty one is None."""
    csv.field_size_limit(_LONGEST_CELL)
    lines = (_decoded(line, f"{path}:{number}") for number, line in enumerate(_bytes_of(path), 1))
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    start = 2
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{path}:{start}: the row has more cells than there are columns; correct it")
            yield start, {name: cell or None for name, cell in row.items()}
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not CSV: {error}; correct it") from error


def _rows_by_datasets(path: Path, module: str) -> Iterator[tuple[int, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(module, data_files={"train": str(path)}, split="train", streaming=True)
        yield from enumerate(rows, 1)
    except Exception as error:  # every loader has its own
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
