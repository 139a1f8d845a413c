"""What `--help` prints: our options by purpose; those of transformers.TrainingArguments with `--help-all`."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import MISSING, Field
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from transformers import TrainingArguments

from step_jepa.options import default_of, facts, is_required, members_of, options_of

REQUIRED, OTHERS = "required", "transformers.TrainingArguments"
PLACEHOLDERS = {int: "N", float: "X", dict: "TABLE"}
OF_EVERY_COMMAND = """\
of every command:
  --config FILE.yaml    options from a file; those on the command line override it
  --import FILE.py      load objectives and the like of your own first; or a module
  --debug               show where an error arose"""

Option = tuple[Field, Any]  # and its type hint


def page(command: str, types: list[Any], *, everything: bool) -> str:
    """The help of a command.

    Args:
        command: its name.
        types: the dataclasses of its arguments.
        everything: with the options of transformers.TrainingArguments.
    """
    groups = groups_of(types)
    left_out = [] if everything else groups.pop(OTHERS, [])
    parser = ArgumentParser(
        usage=f"step-jepa {command}{_words_alone(types)} [--config FILE.yaml] [--option value ...]",
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        epilog=OF_EVERY_COMMAND,
    )
    for heading, options in groups.items():
        group = parser.add_argument_group(heading)
        for field, hint in options:
            _add(group, field, hint)
    if left_out:
        parser.epilog = f"{OF_EVERY_COMMAND}\n\n{len(left_out)} more options, such as --learning_rate and --max_steps, "
        parser.epilog += f"are those of {OTHERS}:\nstep-jepa {command} --help-all lists them too."
    return parser.format_help().rstrip()


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
    if TrainingArguments.__dataclass_fields__.get(field.name) is field:  # inherited, not declared anew by us
        return OTHERS
    summary = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return facts(field).group or summary.partition(" Raises ")[0].rstrip(".")


def _add(group: Any, field: Field, hint: Any) -> None:
    default = shown(default_of(field))
    about = field.metadata.get("help", "") + (f" (default: {default})".replace("%", "%%") if default else "")
    if hint is bool:
        names = [f"--{field.name}", *([f"--no_{field.name}"] if field.default is True else [])]
        group.add_argument(*names, action="store_true", help=about)
    elif get_origin(hint) is list:
        group.add_argument(f"--{field.name}", nargs="+", metavar=placeholder(get_args(hint)[0]), help=about)
    else:
        group.add_argument(f"--{field.name}", metavar=placeholder(hint), help=about)


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
