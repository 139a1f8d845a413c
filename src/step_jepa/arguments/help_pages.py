"""Pages of `--help` that were made before: to make one, torch and transformers are loaded, which takes seconds.

They are kept with a checksum of the package's source, in the wheel (`make wheel`) and in the user's cache.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from step_jepa.arguments.help import Page
from step_jepa.run_files.names import cache_folder
from step_jepa.run_files.writing import write_json

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_PAGES = PACKAGE / "help_pages.json"


def kept_page(command: str, make: Callable[[], Page]) -> Page:
    """The page of a command, of this very source; made by `make`, and kept, where none is."""
    kept = cache_folder() / SHIPPED_PAGES.name
    source = _checksum()
    for file in (SHIPPED_PAGES, kept):
        if page := _pages(file, source).get(command):
            return page
    page = make()
    with suppress(OSError):  # a cache that cannot be written is none
        _write(kept, source, {**_pages(kept, source), command: page})
    return page


def ship(pages: Mapping[str, Page]) -> None:
    """Into the wheel that is built next."""
    _write(SHIPPED_PAGES, _checksum(), pages)


def _write(file: Path, source: int, pages: Mapping[str, Page]) -> None:
    write_json(file, {"source": source, "pages": pages}, indent=None)


def _pages(file: Path, source: int) -> dict[str, Page]:
    """Those that a file keeps of the source; none where it is of another one, or cannot be read."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return dict(kept["pages"]) if kept["source"] == source else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checksum() -> int:
    sum = 0
    for file in sorted(PACKAGE.rglob("*.py"), key=os.fspath):
        sum = crc32(file.read_bytes(), sum)
    return sum
