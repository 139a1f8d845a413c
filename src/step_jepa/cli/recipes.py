"""`step-jepa recipes`: the recipes and experiments that come with the package, to be read or copied."""

import re
import shutil
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from step_jepa import terminal
from step_jepa.arguments.parsing import SHIPPED
from step_jepa.errors import UserError
from step_jepa.options import option


@dataclass
class RecipesArguments:
    """Which, and where to. Raises UserError."""

    names: list[str] = option(
        default_factory=list, help="Files or folders to print or copy, such as recipes/demo.yaml; all by default."
    )
    copy_to: str | None = option(None, help="Folder to copy them into, with their names: copies go before ours.")


def run(args: RecipesArguments) -> None:
    """List them, print those that are named, or copy them. Raises UserError."""
    files = [file for name in args.names or ["."] for file in _files(name)]
    if args.copy_to is not None:
        _copy(files, Path(args.copy_to))
    elif args.names:
        print("\n".join(file.read_text(encoding="utf-8") for file in files), end="")
    else:
        described = [file for file in files if "tokenizer" not in file.parent.name]  # it says nothing of itself
        print("\n".join(f"{file.relative_to(SHIPPED)!s:42} {_first_sentence(file)}" for file in described))
        terminal.ends("", terminal.training("smollm2", "TRAIN.jsonl"))


def _files(name: str) -> list[Path]:
    """A shipped file, or all of a shipped folder. Raises UserError."""
    place = SHIPPED / name
    found = [place] if place.is_file() else sorted(filter(_is_ours, place.rglob("*")))
    if not found or not place.resolve().is_relative_to(SHIPPED):
        raise UserError(f"no recipe {name} is shipped: step-jepa recipes lists them")
    return found


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


def _first_sentence(file: Path) -> str:
    """What the file says of itself."""
    lines = takewhile(bool, (line.lstrip('# "') for line in file.read_text(encoding="utf-8").splitlines()))
    return re.split(r"(?<=[.?]) |:$|: |\"\"\"", " ".join(line for line in lines if not line.startswith("!")))[0]


def _copy(files: list[Path], folder: Path) -> None:
    """Raises UserError, before anything is written, where one would be replaced."""
    targets = {file: folder / file.relative_to(SHIPPED) for file in files}
    for target in targets.values():
        if target.exists():
            raise UserError(f"{target} exists: move it away, or give another --copy_to")
    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        print(target)
