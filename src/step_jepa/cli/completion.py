"""`step-jepa completion`: a script by which a shell completes commands, options, their choices and files."""

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any

import shtab

from step_jepa.arguments.help import Page, add_options
from step_jepa.cli import COMMANDS
from step_jepa.cli.dispatch import page_of
from step_jepa.errors import UserError
from step_jepa.options import option

SHELLS = ("bash", "zsh", "fish")


@dataclass
class CompletionArguments:
    """Of which shell. Raises UserError for another one."""

    shell: list[str] = option(
        help='bash, zsh or fish; then `eval "$(step-jepa completion bash)"` in its start-up file.'
    )

    def __post_init__(self) -> None:
        if len(self.shell) != 1 or self.shell[0] not in SHELLS:
            raise UserError(f"shell = {' '.join(self.shell)}: give one of {', '.join(SHELLS)}")


def run(args: CompletionArguments) -> None:
    """Print the script."""
    print(shtab.complete(_parser(), args.shell[0]))


def _parser() -> ArgumentParser:
    """Of all commands, as argparse would have them."""
    parser = ArgumentParser("step-jepa")
    commands = parser.add_subparsers()
    inside: dict[str, Any] = {}  # of a command, where others of two words begin with it
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second and first not in inside:
            inside[first] = commands.choices[first].add_subparsers()
        group: Any = inside[first] if second else commands
        options = {"help": command[2], "add_help": False, "conflict_handler": "resolve"}  # --debug of TrainingArguments
        _add(group.add_parser(second or first, **options), page_of(name, command))
    return parser


def _add(parser: ArgumentParser, page: Page) -> None:
    """The options of a page: a value that is no choice may be a file."""
    add_options(parser, page)
    parser.add_argument("--config", metavar="TEXT")
    parser.add_argument("--import", metavar="TEXT")
    for flag in ("--help", "--print_config", "--quiet", "--debug"):
        parser.add_argument(flag, action="store_true")
    if page["words_alone"]:
        parser.add_argument("words", nargs="*", metavar="TEXT")
    for action in parser._actions:
        kind = action.metavar
        if kind == "TEXT":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif isinstance(kind, str) and kind.startswith("{"):
            action.choices = kind.strip("{}").split(",")
