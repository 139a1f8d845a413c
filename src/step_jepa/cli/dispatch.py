"""Running a command that the command line names; what a user can mend ends it with one line."""

import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from typing import Any

import step_jepa
from step_jepa import terminal
from step_jepa.errors import Interrupted, UserError
from step_jepa.process import ranks
from step_jepa.process.clock import BEGAN

Command = tuple[str, list[str], str]  # see cli.COMMANDS
OUR_BUG, RANK_LOST = 1, 3  # exit codes
LOST = "start again with --resume_from_checkpoint True, which goes on from the last checkpoint"


def run_command(argv: list[str], commands: Mapping[str, Command], *, alone: bool) -> int:
    """Run a command, and say what went wrong; its exit code. Of several processes, the first one that fails says why.

    Args:
        argv: the command, and its words.
        commands: that there are, by their names.
        alone: whether this process is there for the command, and cannot have registered things of its own.
    """
    BEGAN.set(time.monotonic())
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's, about itself
    argv, quiet = _without_quiet(argv)
    terminal.set_up(quiet=quiet, alone=alone)
    debug = False
    try:
        argv, modules = _without_imports(argv)
        argv, debug = _without_debug(argv)
        code = _dispatch(argv, modules, commands, alone=alone)
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        code = _exit_code(error)
        if code == OUR_BUG and not ranks.several():
            raise
        _trace(debug or code == OUR_BUG)
        _say(_reason(error))
    if ranks.several() and code != 0:
        ranks.end(code)
    return code


def _exit_code(error: Exception) -> int:
    if isinstance(error, UserError):
        return error.exit_code
    if ranks.is_lost(error):
        return RANK_LOST
    return 2 if isinstance(error, OSError) else OUR_BUG


def _reason(error: Exception) -> str:
    """In one line, with the rank where there are several and it is not what all of them were told."""
    if isinstance(error, Interrupted):
        return str(error)
    if isinstance(error, UserError):
        return f"{ranks.named()}{error}"
    words = str(error).strip().partition("\n")[0]
    if ranks.is_lost(error):
        return f"{ranks.named()}another rank is gone, killed or out of reach ({words:.80}): {LOST}"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return f"{ranks.named()}{error.strerror or error}: {error.filename or 'give another place'}"
    return f"{ranks.named()}{type(error).__name__}: {words}"


def _trace(shown: bool) -> None:
    if shown and ranks.speaks():
        traceback.print_exc()


def _say(message: str) -> None:
    """One line on stderr, from one of several processes."""
    if ranks.speaks():
        terminal.error(message)


def _dispatch(argv: list[str], modules: list[str], commands: Mapping[str, Command], *, alone: bool) -> int:
    """Run the command that `argv` names, the modules of --import loaded; its exit code."""
    if argv == ["--version"]:
        print(f"step-jepa {step_jepa.__version__}")
        return 0
    length = 2 if argv[:1] == ["inspect"] and argv[1:] and not argv[1].startswith("-") else 1
    name, words = " ".join(argv[:length]), argv[length:]
    if name not in commands:
        meant = " or ".join(get_close_matches(name, commands))
        remedy = f"did you mean {meant}?" if meant else "step-jepa --help lists all"
        raise UserError(f"no command {name!r}: {remedy}")
    plugins = import_module("step_jepa.plugins")
    as_shipped = alone and not modules and not plugins.installed_plugins()
    if as_shipped and _answered(name, commands[name], words):
        return 0
    plugins.load_plugins(modules)  # before the dataclasses, which know what is registered
    home, _, function = commands[name][0].partition(":")
    run = getattr(import_module(f"step_jepa.{home}"), function or "run")
    if alone:
        terminal.adopt_libraries()
    arguments = import_module("step_jepa.arguments.parsing").parse(name, dataclasses_of(commands[name]), words)
    return run(*arguments) or 0


def _answered(name: str, command: Command, words: list[str]) -> bool:
    """What takes no torch and transformers, where the command's page of help is kept: whether the words ask for help,
    which is printed. Raises UserError for an option that is misspelt, or missing."""
    help, page = import_module("step_jepa.arguments.help"), page_of(name, command)
    if help.ASKS & {*words}:
        print(help.laid_out(name, page, everything="--help-all" in words))
        return True
    help.check_words(name, words, page)
    return False


def page_of(name: str, command: Command) -> Any:
    """What the help of a command says, without torch and transformers, where the page is kept."""
    help, help_pages = import_module("step_jepa.arguments.help"), import_module("step_jepa.arguments.help_pages")
    return help_pages.kept_page(name, lambda: help.described(dataclasses_of(command)))


def ship_help(commands: Mapping[str, Command]) -> None:
    """Make the pages of all commands for the wheel that is built next."""
    help, help_pages = import_module("step_jepa.arguments.help"), import_module("step_jepa.arguments.help_pages")
    kinds = {name: dataclasses_of(command) for name, command in commands.items()}
    help_pages.ship({name: help.described(types) for name, types in kinds.items()})


def dataclasses_of(command: Command) -> list[Any]:
    """Those of its arguments."""
    home = command[0].partition(":")[0]
    return [_dataclass(home, name) for name in command[1]]


def _without_imports(argv: list[str]) -> tuple[list[str], list[str]]:
    """The other words, and what `--import` names. Raises UserError."""
    rest, modules = [], []
    words = iter(argv)
    for word in words:
        option, _, value = word.partition("=")
        if option != "--import":
            rest.append(word)
        elif value or (value := next(words, "")):
            modules.append(value)
        else:
            raise UserError("--import needs a file ending in .py, or a module")
    return rest, modules


def _without_quiet(argv: list[str]) -> tuple[list[str], bool]:
    """The other words, and whether `--quiet` stands among them."""
    return [word for word in argv if word != "--quiet"], "--quiet" in argv


def _without_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The other words, and whether `--debug` stands among them; with a value it is TrainingArguments' option."""
    ours = [
        word == "--debug" and (argv[0] != "train" or after.startswith("-")) for word, after in pairwise([*argv, "--"])
    ]
    return [word for word, taken in zip(argv, ours, strict=True) if not taken], any(ours)


def _dataclass(home: str, name: str) -> Any:
    """A dataclass of a command's module or, with a dot, of another one; with () what a function there returns."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(f"step_jepa.{module or home}"), attribute.removesuffix("()"))
    return found() if attribute.endswith("()") else found
