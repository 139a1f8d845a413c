"""What `--help` prints: our options by purpose; those of transformers.TrainingArguments with `--help-all`. And what is
said of an option that is not among them."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import MISSING, Field
from difflib import get_close_matches
from enum import Enum
from types import NoneType
from typing import Any, Literal, TypedDict, get_args, get_origin

from step_jepa.errors import UserError
from step_jepa.options import default_of, facts, is_required, members_of, options_of

ASKS = {"-h", "--help", "--help-all"}
CONFIG, PRINT_CONFIG = "--config", "--print_config"
REQUIRED, OTHERS = "required", "transformers.TrainingArguments"
PLACEHOLDERS = {int: "N", float: "X", dict: "TABLE"}
OF_EVERY_COMMAND = """\
of every command:
  --config FILE.yaml    options from a file; those on the command line override it
  --import FILE.py      load objectives and the like of your own first; or a module
  --print_config        print the options as such a file, with those by default, and end
  --quiet               figures, warnings and errors alone
  --debug               show where an error arose"""

Option = tuple[Field, Any]  # and its type hint


class Page(TypedDict):
    """What a page of help says, as JSON.

    words_alone   what may stand without the name of its option
    groups        heading -> options, each as ArgumentParser.add_argument takes it
    """

    words_alone: str
    groups: dict[str, list[dict[str, Any]]]


def page(command: str, types: list[Any], *, everything: bool) -> str:
    """The help of a command.

    Args:
        command: its name.
        types: the dataclasses of its arguments.
        everything: with the options of transformers.TrainingArguments.
    """
    return laid_out(command, described(types), everything=everything)


def described(types: list[Any]) -> Page:
    """What a page of help says of the dataclasses of a command's arguments."""
    groups = {heading: [_described(*option) for option in options] for heading, options in groups_of(types).items()}
    return {"words_alone": _words_alone(types), "groups": groups}


def laid_out(command: str, page: Page, *, everything: bool) -> str:
    """The same as text, as wide as the terminal; TrainingArguments' own options only with `everything`."""
    left_out = OTHERS in page["groups"] and not everything
    parser = ArgumentParser(
        usage=f"step-jepa {command}{page['words_alone']} [--config FILE.yaml] [--option value ...]",
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        epilog=_epilog(command, others_left_out=left_out),
    )
    shown = {heading: options for heading, options in page["groups"].items() if heading != OTHERS or everything}
    add_options(parser, {**page, "groups": shown})
    return parser.format_help().rstrip()


def names_of(page: Page) -> list[str]:
    """What may be typed: the names of all options."""
    names = [CONFIG, PRINT_CONFIG]
    for options in page["groups"].values():
        for option in options:
            names += option["names"]
    return names


def check_words(command: str, words: Sequence[str], page: Page) -> None:
    """Raises UserError for what the page of help shows to be wrong: an option that there is not, and one that must be
    given and is not, unless a file may have it."""
    check_names(command, words, names_of(page))
    given = set(map(_name_in, words))
    required = [option["names"][0] for option in page["groups"].get(REQUIRED, ())]
    left_out = [name for name in required if name not in given]
    if left_out and CONFIG not in given and not page["words_alone"]:
        raise missing(command, left_out)


def check_names(command: str, words: Iterable[str], names: Collection[str]) -> None:
    """Raises UserError for a word that begins as an option does and is the name of none, with - or with _."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and " " not in name and _name_in(word) not in names:
            raise unknown(command, name, names)


def _name_in(word: str) -> str:
    """The name of the option that the word begins with, if any."""
    name = word.partition("=")[0]
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else ""


def missing(command: str, names: Collection[str]) -> UserError:
    """Of options that must be given."""
    if "--output_dir" in names:
        return UserError("--output_dir is required: say where the results go")
    listed = ", ".join(names)
    return UserError(f"the following arguments are required: {listed} (step-jepa {command} --help lists the options)")


def unknown(command: str, name: str, names: Iterable[str]) -> UserError:
    """Of an option that there is not, with the one that may be meant."""
    meant = "".join(f"did you mean {other}? " for other in get_close_matches(name, names, n=1))
    return UserError(f"unknown: {name} ({meant}step-jepa {command} --help lists the options)")


def add_options(parser: ArgumentParser, page: Page) -> None:
    """The options of a page, group by group."""
    for heading, options in page["groups"].items():
        group = parser.add_argument_group(heading)
        for option in options:
            group.add_argument(*option["names"], **option["about"])


def _epilog(command: str, *, others_left_out: bool) -> str:
    others = f"More options, such as --learning_rate and --max_steps, are those of {OTHERS}:"
    where = f"step-jepa {command} --help-all lists them too."
    return f"{OF_EVERY_COMMAND}\n\n{others}\n{where}" if others_left_out else OF_EVERY_COMMAND


def _words_alone(types: list[Any]) -> str:
    """What may stand on the command line without the name of its option; see `parsing`."""
    field, hint = options_of(types)[0]
    return f" [{field.name.upper()} ...]" if hint == list[str] else ""


def groups_of(types: list[Any]) -> dict[str, list[Option]]:
    """Heading -> options: first what must be given, TrainingArguments' last, others as their headings are met."""
    groups: dict[str, list[Option]] = {REQUIRED: []}
    for kind in types:
        for field, hint in options_of([kind]):
            options = groups.setdefault(_heading(kind, field), [])
            (groups[REQUIRED] if is_required(field) else options).append((field, hint))
    others = groups.pop(OTHERS, [])
    return {heading: options for heading, options in {**groups, OTHERS: others}.items() if options}


def _heading(kind: Any, field: Field) -> str:
    if any(_declares(base, field) for base in kind.__mro__ if base.__name__ == "TrainingArguments"):
        return OTHERS
    summary = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return facts(field).group or summary.partition(" Raises ")[0].rstrip(".")


def _declares(base: Any, field: Field) -> bool:
    """Whether the field is the base's own, not one that was declared anew by us."""
    return base.__dataclass_fields__.get(field.name) is field


def _described(field: Field, hint: Any) -> dict[str, Any]:
    default = shown(default_of(field))
    about = field.metadata.get("help", "") + (f" (default: {default})".replace("%", "%%") if default else "")
    names = [f"--{field.name}"]
    if hint is bool:
        names += [f"--no_{field.name}"] if field.default is True else []
        return {"names": names, "about": {"action": "store_true", "help": about}}
    if get_origin(hint) is list:
        return {"names": names, "about": {"nargs": "+", "metavar": placeholder(get_args(hint)[0]), "help": about}}
    return {"names": names, "about": {"metavar": placeholder(hint), "help": about}}


def shown(default: Any) -> str:
    """A default as one would type it; nothing for none."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list):
        return " ".join(map(str, default))
    if isinstance(default, Enum):
        return str(default.value)
    return "" if default is None or default is MISSING else str(default)


def placeholder(hint: Any) -> str:
    kinds = [member for member in members_of(hint) if member is not NoneType]
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, get_args(kinds[0]))) + "}"
    return PLACEHOLDERS.get(get_origin(kinds[0]) or kinds[0], "TEXT")
