"""Modules of users' own, whose objectives, losses, formats and checks register themselves when they are imported.

They come from `--import`, and from installed packages with entry points of the group `step_jepa.plugins`.
"""

import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from step_jepa.errors import UserError

GROUP = "step_jepa.plugins"
_named: list[str] = []  # what --import named, from wherever a process stands


def load_plugins(names: Iterable[str] = ()) -> None:
    """Imports what `names` and installed packages name, each once in a process.

    A process that is started by other means than a fork calls it before it reads options, with the `named_plugins` of
    its parent.

    Args:
        names: files ending in .py, or modules as `import` takes them.

    Raises:
        UserError: where one is not there. What goes wrong inside a module keeps its traceback.
    """
    _load_installed()
    for place in map(_from_anywhere, names):
        _load(place)
        if place not in _named:
            _named.append(place)


def named_plugins() -> list[str]:
    """What this process was told to import, for the processes that it starts."""
    return list(_named)


def installed_plugins() -> bool:
    """Whether an installed package has any."""
    return bool(entry_points(group=GROUP))


def _from_anywhere(name: str) -> str:
    """Raises UserError for what is neither a file's name nor a module's."""
    if name.endswith(".py"):
        return str(Path(name).resolve())
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"--import {name}: give a file whose name ends in .py, or a module")
    return name


@lru_cache
def _load_installed() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"plugin {entry.name} ({entry.value}) cannot be loaded: {error}") from error


def _load(place: str) -> None:
    if place.endswith(".py"):
        _load_file(Path(place))
        return
    try:
        import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise UserError(f"--import {place}: there is no such module; a file's name ends in .py") from error


def _load_file(path: Path) -> None:
    """As a module of its file's folder, so that processes which unpickle what it defines find it by its name."""
    if not path.is_file():
        raise UserError(f"--import {path}: there is no such file")
    if not path.stem.isidentifier():
        raise UserError(f"--import {path}: give the file a name that a module can have, without dots and dashes")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file beside it must not take the place of a library
    module = import_module(path.stem)
    if Path(module.__file__ or "").resolve() != path:
        raise UserError(f"--import {path}: {path.stem} is the name of another module: give the file another name")
