"""Options of a command: dataclasses from the command line, and from a YAML file with `--config`."""

import json
from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from step_jepa.errors import UserError


def parse(command: str, types: list[Any], argv: list[str]) -> tuple[Any, ...]:
    """The dataclasses from the options; those of `--config` first, so that later ones override them."""

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message} (step-jepa {command} --help lists the options)")

        def add_argument(self, *names: Any, **settings: Any) -> Any:
            settings.pop("facts", None)  # of `option`; argparse knows none
            return super().add_argument(*names, **settings)

    parser = Parser(types, prog=f"step-jepa {command}", allow_abbrev=False)
    for name, hint in _hints(types):  # HfArgumentParser would take the number alone, and knows no table
        if hint == float | str:
            parser._option_string_actions[f"--{name}"].type = _number_or_word
        if get_origin(hint) is dict:
            parser._option_string_actions[f"--{name}"].type = _table
    parser.add_argument("--config", help="YAML file of options; options on the command line override it.")
    argv = _with_config(_with_first(types, argv))
    _check_names(command, argv, list(parser._option_string_actions))
    needs_output = any(option.dest == "output_dir" for option in parser._actions)
    if needs_output and not {"_h", "__help", "__output_dir"} & {word.split("=")[0].replace("-", "_") for word in argv}:
        raise UserError("--output_dir is required: say where the results go")
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except UserError:
        raise
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses
        raise UserError(str(error).strip().splitlines()[0]) from None
    if unknown:
        raise UserError(f"unknown: {' '.join(unknown)} (step-jepa {command} --help lists the options)")
    return tuple(parsed[: len(types)])


def _check_names(command: str, argv: list[str], names: list[str]) -> None:
    """A misspelt option is the reason for the one that then is missing, so it is named first."""
    for name in (word.split("=")[0] for word in argv if word.startswith("--")):
        if name not in names:
            meant = "".join(f"did you mean {other}? " for other in get_close_matches(name, names, n=1))
            raise UserError(f"unknown: {name} ({meant}step-jepa {command} --help lists the options)")


def _hints(types: list[Any]) -> list[tuple[str, Any]]:
    return [hint for kind in types for hint in get_type_hints(kind).items()]


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _table(text: str) -> dict[str, Any]:
    """A table of `--config`, as `_word` writes it; on the command line it is JSON."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise ArgumentTypeError(f"{text} is no table: write lines such as `name: value` under it") from None


def _with_first(types: list[Any], argv: list[str]) -> list[str]:
    """argv with its leading words as the command's first option, where that takes a list: `report RUN RUN`."""
    first = fields(types[0])[0]
    leading = bool(argv) and not argv[0].startswith("-") and get_type_hints(types[0])[first.name] == list[str]
    return [f"--{first.name}", *argv] if leading else argv


def _with_config(argv: list[str]) -> list[str]:
    """argv with the options of its `--config` file put before the others."""
    rest, path = [], None
    left = iter(argv)
    for word in left:
        if word.split("=")[0] == "--config":
            if path:
                raise UserError("--config is given twice: give one file, and other options on the command line")
            path = word.partition("=")[2] or next(left, None)
            if not path:
                raise UserError("--config needs a file")
        else:
            rest.append(word)
    return [*words(from_file(path)), *rest] if path else rest


def from_file(path: str) -> dict[str, Any]:
    """The options that a YAML file holds. Raises UserError."""
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}): give a YAML file of options") from None
    if not isinstance(options, dict):
        raise UserError(f"{path} is no table of options: write lines such as `lbd: 0.1`")
    if "config" in options:
        raise UserError(f"{path} names another file of options: write them into one")
    return options


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as one would type them; None is left out."""
    argv: list[str] = []
    for name, value in options.items():
        if value is not None:
            argv += [f"--{name}", *map(_word, value if isinstance(value, list) else [value])]
    return argv


def _word(value: Any) -> str:
    """A YAML value as one would type it; `no` is a truth value to YAML, and a word to `--save_strategy`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict) else str(value)
