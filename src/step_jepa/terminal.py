"""What the terminal shows. Figures go to stdout; what was read, progress, warnings and where things lie go to stderr.

A command begins with what it read (in the log), shows one bar at a time (`bar`), and ends with its figures and one bold
sentence (`result`), or JSON (`show_json`), and with where things lie and what comes next (`ends`). With --quiet there
are figures and warnings alone; of several ranks one speaks. rich is imported where it is used: help does without.
"""

import io
import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "transformers")  # which log by handlers of their own
IN_A_FILE = 30.0  # seconds between two lines of what would be a bar

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_part: ContextVar[bool] = ContextVar("part", default=False)  # of another command
_bars: WeakSet[Any] = WeakSet()


def speaks() -> bool:
    """Whether this process is the one of several that shows things."""
    return os.environ.get("RANK", "0") == "0"


def set_up(*, quiet: bool, alone: bool) -> None:
    """How a command speaks. What was set up before, by Python that calls us, stays.

    Args:
        quiet: figures, warnings and errors alone.
        alone: whether this process is there for the command.
    """
    _quiet.set(quiet)
    if quiet and alone:
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # of libraries
    logging.basicConfig(format="%(message)s", handlers=[Messages() if speaks() else logging.NullHandler()])
    logging.getLogger("step_jepa").setLevel(logging.WARNING if quiet else logging.INFO)
    if alone:
        warnings.showwarning = _log_warning


def adopt_libraries() -> None:
    """Have what libraries log, once they are imported, shown as ours is, and the bars of transformers not beside
    ours."""
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]


class Messages(logging.Handler):
    """The log on stderr, in one style. What warned once does not warn again."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno < logging.WARNING:
            note(text)
        elif text not in self.shown:
            self.shown.add(text)
            level = record.levelname.lower()
            _aside(text, f"{level}: ", "bold red" if record.levelno > logging.WARNING else "bold yellow")


def _for_python() -> None:
    """Python that has set up no log sees our warnings as the command line does."""
    handler = Messages(logging.WARNING)
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    logging.getLogger("step_jepa").addHandler(handler)


def _log_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    words = " ".join(str(message).split())
    logging.getLogger("py.warnings").warning("%s (%s, %s:%d)", words, category.__name__, filename, lineno)


# On stderr


def note(text: str) -> None:
    """A line for whoever watches."""
    if not _quiet.get() and speaks():
        _aside(text)


def heading(text: str) -> None:
    """Of what follows."""
    if not _quiet.get() and speaks():
        console(stderr=True).rule(f" {text} ", align="left", style="bold")


def error(text: str) -> None:
    """What ends a command, in one line."""
    _aside(text, "step-jepa: ", "bold red")


def ends(where: str = "", *following: str) -> None:
    """Where things lie, if anywhere; and the commands that one would type next."""
    if where:
        note(where)
    for command in () if _part.get() else following:
        note(f"next: {command}")


@contextmanager
def as_part() -> Iterator[None]:
    """Around a command that another one calls: its figures are no result, and what comes next is the other's to say."""
    token = _part.set(True)
    try:
        with redirect_stdout(io.StringIO() if _quiet.get() else sys.stderr):
            yield
    finally:
        _part.reset(token)


def typed(command: str, options: Mapping[str, Any]) -> str:
    """A command as one would type it."""
    words = ["step-jepa", *command.split()]
    for name, value in options.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def training(model_name: str, train_file: Any) -> str:
    """The recommended training of a model on a file, as one would type it."""
    files = {"model_name": model_name, "train_file": train_file, "output_dir": "run"}
    return typed("train", {"config": "recipes/adapted.yaml", **files})


def reporting(folder: Any) -> str:
    """The page on a folder of results, as one would have it made."""
    page = Path(folder, "report.html")
    again = {"overwrite": True} if page.exists() else {}
    return typed("report", {"runs": [folder], "output": page, **again})


def bar(things: Iterable[Any] | None = None, *, label: str, unit: str, total: int | None = None) -> Any:
    """A labelled bar of tqdm, with rate and time left, around things or to be updated by hand. While another one is
    open it shows nothing; in a file it is a line now and then."""
    from tqdm.auto import tqdm

    another = any(not each.disable for each in _bars)
    in_file = not sys.stderr.isatty() and "ipykernel" not in sys.modules
    look = {"file": _Lines(), "mininterval": IN_A_FILE, "delay": 1} if in_file else {"leave": False, "ncols": _width()}
    hidden = _quiet.get() or not speaks() or another
    made: Any = tqdm(things, desc=label, unit=f" {unit}", total=total, disable=hidden, **look)
    made.ticked = time.monotonic()
    _bars.add(made)
    return made


def _width() -> int | None:
    """As the bar finds it by itself, but in a terminal that does not tell its width, as in containers: no bar fits
    into that."""
    try:
        return None if os.get_terminal_size(sys.stderr.fileno()).columns else 80
    except (OSError, ValueError):  # a notebook
        return None


def tick() -> None:
    """The open bar shows what time it is: by itself it does so only when something is done."""
    for each in _bars:
        if not each.disable and time.monotonic() - each.ticked >= max(each.mininterval, 1):
            each.ticked = time.monotonic()
            each.refresh()


class _Lines:
    """What a bar writes, as lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress_console() -> "Console":
    """For what moves, other than a bar: on stderr."""
    made = console(stderr=True)
    made.quiet = _quiet.get() or not speaks()
    return made


def _aside(text: str, label: str = "", style: str = "") -> None:
    from rich.text import Text

    with _without_bars():
        console(stderr=True).print(Text.assemble((label, style), text))


def _without_bars() -> AbstractContextManager[None]:
    """Bars are taken away for a moment, so that a line can be written."""
    tqdm = sys.modules.get("tqdm")
    return nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=sys.stderr)


def show_aside(*things: "RenderableType") -> None:
    """Texts and tables that are no result."""
    progress_console().print(*things)


# On stdout


def show(*things: "RenderableType") -> None:
    """Texts and tables, in which nothing is markup."""
    console().print(*things)


def show_json(value: Any) -> None:
    """What a program reads; nothing else is then on stdout."""
    print(json.dumps(value))


def result(rows: Mapping[str, str], sentence: str) -> None:
    """What came of it: a few figures, and one bold sentence."""
    from rich.text import Text

    width = max(map(len, rows), default=0)
    for name, figure in rows.items():
        show(Text(f"{name:{width}}  {figure}"))
    show(Text(sentence, "bold"))


def console(*, stderr: bool = False, soft_wrap: bool = True) -> "Console":
    """For texts in which nothing is markup; anew for each use, as streams may be redirected."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=soft_wrap)
    made.on_broken_pipe = _reraise  # type: ignore[method-assign] # rich would end all, with 1
    return made


def _reraise() -> NoReturn:
    raise  # the BrokenPipeError that is being handled


_for_python()
