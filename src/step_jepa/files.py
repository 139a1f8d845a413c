"""Files that appear whole or not at all, whatever happens on the way."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write the text, or its parts in order, in UTF-8; the folder is made. A file that was there is replaced at the end
    only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines([text] if isinstance(text, str) else text)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
