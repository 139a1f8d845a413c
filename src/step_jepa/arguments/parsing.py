"""Options of a command: dataclasses from the command line, from plain values, and from a YAML file with `--config`.

argparse only cuts the command line into names and words. Words, values of a YAML file and values given in Python then
go the same way: `from_values` checks their names and turns each into the type of its field.
"""

import glob
import json
import os
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from datetime import date
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Constraint
from yaml.error import MarkedYAMLError

from step_jepa.arguments.help import ASKS, CONFIG, PRINT_CONFIG, check_names, missing, page, unknown
from step_jepa.errors import UserError
from step_jepa.options import (
    default_of,
    facts,
    is_ours,
    is_required,
    kinds_of,
    members_of,
    options_of,
    without_secrets,
)

CONFIG_KEY = "config"
SHIPPED = Path(__file__).resolve().parents[1] / "shipped"  # recipes/ and experiments/
_TABLE = "table (lines such as `name: value` in a YAML file, JSON on the command line)"
YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def parse(command: str, types: list[Any], argv: list[str]) -> tuple[Any, ...]:
    """The dataclasses from the words of a command line, which override the file that `--config` names.

    Args:
        command: its name, for messages and --help.
        types: the dataclasses of its arguments.
        argv: the words after the command.

    Raises:
        UserError: for options that are unknown, missing or refused.
        SystemExit: after --help, --help-all or --print_config.
    """
    if help_asked := ASKS & set(argv):
        print(page(command, types, everything="--help-all" in help_asked))
        raise SystemExit(0)
    words = [word for word in argv if word.replace("-", "_") != PRINT_CONFIG.replace("-", "_")]
    if len(words) < len(argv):
        print(config_text(command, types, _given(command, types, words)), end="")
        raise SystemExit(0)
    return from_values(command, types, _given(command, types, argv))


def from_values(command: str, types: list[Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same dataclasses from plain values, such as a YAML file or Python code holds them.

    Args:
        command: its name, for messages.
        types: the dataclasses of its arguments.
        values: option -> value; `config` may name a YAML file, whose options the others override. None means None, and
            is refused where an option cannot be None. Under all of them lies what a dataclass says by a class method
            `defaults_beside(values) -> values`.

    Raises:
        UserError: for options that are unknown, missing or refused.
    """
    converted = _checked(command, types, values)
    return tuple(kind(**_of_kind(kind, converted)) for kind in types)


def _checked(command: str, types: list[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and those of the file that `config` names, each of the type of its option. Raises UserError."""
    values = _with_defaults(types, _with_config(types, _by_field_name(values)))
    options = {field.name: field for field, _ in options_of(types)}
    for name in values:
        if name not in options:
            raise unknown(command, f"--{name}", [f"--{known}" for known in options])
    _check_required(command, options.values(), values)
    hints = {field.name: hint for field, hint in options_of(types)}
    return {name: _converted(name, hints[name], value) for name, value in values.items()}


def config_text(command: str, types: list[Any], given: Mapping[str, Any]) -> str:
    """The options that a command line gives, and below them the defaults of our others, as a file for `--config`;
    secrets are not written. Raises UserError for what the command refuses."""
    from_values(command, types, given)
    values = _checked(command, types, given)
    others = [field for field, _ in options_of(types) if field.name not in values and is_ours(field)]
    defaults = {field.name: default_of(field) for field in others}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    parts = {"given": without_secrets(plain), "by default": defaults}
    texts = [f"# {title}\n{yaml.safe_dump(part, sort_keys=False)}" for title, part in parts.items() if part]
    return f"# step-jepa {command}\n" + "".join(texts)


def relative_to(folder: str | os.PathLike, types: Sequence[Any], values: Any) -> Any:
    """The same table of options, with paths that exist in `folder` as paths from here.

    Only options with `is_path`, and `config`, are looked at. What is not there stays as it is: it may be a path from
    the current folder, a hub id, or the name of something built in.

    Args:
        folder: where the file lies that the options stand in.
        types: the dataclasses that the options belong to.
        values: the table; anything else is returned untouched, to be refused where it is read.
    """
    if not isinstance(values, Mapping):
        return values
    paths = {CONFIG_KEY, *(field.name for field, _ in options_of(types) if facts(field).is_path)}
    return {name: _relative_path(folder, value) if name in paths else value for name, value in values.items()}


def from_file(path: str | os.PathLike, types: Sequence[Any] = ()) -> dict[str, Any]:
    """The options that a YAML file holds, as values; relative paths are read from the file's folder.

    Where no file lies at a relative path, the shipped one of that name is read, such as recipes/demo.yaml.

    A dataclass that holds tables of other commands' options may have a static method
    `nested_paths(folder, values) -> values`, which applies `relative_to` to them. Raises UserError."""
    path = _or_shipped(Path(path))
    try:
        with path.open(encoding="utf-8") as file:
            options = yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason}): give a YAML file of options") from error
    if not isinstance(options, dict):
        raise UserError(f"{path} is no table of options: write lines such as `lbd: 0.1`")
    options = _by_field_name(options)
    if CONFIG_KEY in options:
        raise UserError(f"{path} names another file of options: write them into one")
    folder = path.parent
    for kind in types:
        if hasattr(kind, "nested_paths"):
            options = kind.nested_paths(folder, options)
    return dict(relative_to(folder, types, options))


def overridden(types: Sequence[Any], values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with changes to them, but those that nothing reads any longer where that is changed.

    A dataclass may say which these are, by a class method `idle_beside(changes) -> names`. Raises UserError for a
    change that its option refuses."""
    hints = {field.name: hint for field, hint in options_of(types)}
    converted = {name: _converted(name, hints[name], value) for name, value in changes.items() if name in hints}
    idle: set[str] = set()
    for kind in types:
        if hasattr(kind, "idle_beside"):
            idle |= kind.idle_beside(converted)
    return {**{name: value for name, value in values.items() if name not in idle}, **changes}


def _or_shipped(path: Path) -> Path:
    """The file, or the shipped one that it names where it is not there, from whichever folder."""
    shipped = SHIPPED.joinpath(*(part for part in path.parts if part != ".."))
    return shipped if shipped.is_file() and not path.exists() else path


class _Parser(ArgumentParser):
    """Knows names, and how many words each takes. Neither types nor defaults: values are `from_values`' business."""

    def __init__(self, command: str, types: list[Any]) -> None:
        super().__init__(add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
        self.command = command
        self.names = [CONFIG]
        self.flags: set[str] = set()  # names that stand alone, or before a truth value
        self.add_argument(CONFIG, action="append")
        for field, hint in options_of(types):
            if f"--{field.name}" in self.names:  # of an objective of the user's own
                raise UserError(f"--{field.name} is an option of {command} already: give yours another name")
            self._add(field, kinds_of(hint))

    def _add(self, field: Field, kinds: set[Any]) -> None:
        names = _spellings(field.name)
        if bool in kinds:
            self.add_argument(*names, dest=field.name, nargs="?", const=True)
            self.flags |= set() if str in kinds else {*names}
        else:
            self.add_argument(*names, dest=field.name, nargs="+" if list in kinds else None)
        if bool in kinds and field.default is True:
            self.add_argument(*_spellings(f"no_{field.name}"), dest=field.name, action="store_false")
            self.names.append(f"--no_{field.name}")
        self.names.append(f"--{field.name}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (step-jepa {self.command} --help lists the options)")


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _given(command: str, types: list[Any], argv: list[str]) -> dict[str, Any]:
    """Option -> word, words, or a truth value, of the options that the command line has."""
    parser = _Parser(command, types)
    check_names(command, argv, parser.names)  # a misspelt option is the reason for the one that then is missing
    namespace, leftover = parser.parse_known_args(_written_out(argv, parser.flags))
    given = vars(namespace)
    if len(given.get(CONFIG_KEY, [])) > 1:
        raise UserError("--config is given twice: give one file, and other options on the command line")
    if leftover:
        field, hint = options_of(types)[0]
        if hint != list[str] or any(word.startswith("-") for word in leftover):
            parser.error(f"unknown: {' '.join(leftover)}")
        given[field.name] = given.get(field.name, []) + leftover
    return given | {CONFIG_KEY: given[CONFIG_KEY][0]} if CONFIG_KEY in given else given


def _written_out(argv: list[str], flags: set[str]) -> list[str]:
    """With a `--flag WORD` as `--flag=yes WORD` where the word is no truth value and so belongs to another option."""
    return [
        f"{word}=yes" if word in flags and after.lower() not in (*YES, *NO) else word
        for word, after in pairwise([*argv, ""])
    ]


# Values


class _Loader(yaml.SafeLoader):
    """Reads 2e-4 as the number that it is in JSON and YAML 1.2; PyYAML wants 2.0e-4. A name that a table has twice is
    refused, as YAML 1.2 wants it; PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names:
                raise MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _by_field_name(values: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {str(name).replace("-", "_"): value for name, value in values.items()}
    if len(by_name) < len(values):
        twice = next(name for name in by_name if name in values and name.replace("_", "-") in values)
        raise UserError(f"{twice} is given twice, with - and with _: leave one out")
    return by_name


def _with_config(types: list[Any], values: dict[str, Any]) -> dict[str, Any]:
    """With the options of the file that `config` names, where there is one, under the others."""
    others = {name: value for name, value in values.items() if name != CONFIG_KEY}
    path = values.get(CONFIG_KEY)
    return others if path is None else overridden(types, from_file(path, types), others)


def _with_defaults(types: list[Any], values: dict[str, Any]) -> dict[str, Any]:
    """With what a dataclass puts under them, by a class method `defaults_beside(values) -> values`."""
    for kind in types:
        if hasattr(kind, "defaults_beside"):
            values = overridden(types, kind.defaults_beside(values), values)
    return values


def _check_required(command: str, options: Iterable[Field], values: Mapping[str, Any]) -> None:
    left_out = [f"--{field.name}" for field in options if field.name not in values and is_required(field)]
    if left_out:
        raise missing(command, left_out)


def _of_kind(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _relative_path(folder: str | os.PathLike, value: Any) -> Any:
    if isinstance(value, list):
        return [_relative_path(folder, entry) for entry in value]
    return str(Path(folder, value)) if isinstance(value, str) and value and _is_there(Path(folder, value)) else value


def _is_there(path: Path) -> bool:
    """Also what a pattern matches, and a path that a split is asked of."""
    without_split = path.with_name(re.sub(r"(?<=.)\[.*\]$", "", path.name))
    return path.exists() or without_split.exists() or bool(glob.glob(str(path)))


def _converted(name: str, hint: Any, value: Any) -> Any:
    """A word or value as the type of its field. Raises UserError."""
    if value is None and NoneType in members_of(hint):
        return None
    value = _prepared(hint, value)
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].replace("Input should be", "give").replace("valid dictionary", _TABLE)
        shown = "null" if value is None else str(value)
        raise UserError(f"{name} = {shown[:100]}: {wanted}") from error


def _prepared(hint: Any, value: Any) -> Any:
    """What YAML and the command line have forms of their own for, in the form that pydantic reads."""
    kinds = kinds_of(hint)
    if isinstance(value, os.PathLike | date):
        return str(value)
    if isinstance(value, bool) and bool not in kinds:  # `save_strategy: no`
        return "yes" if value else "no"
    if isinstance(value, list) and len(value) == 1 and {str, list} <= kinds:  # `--report_to none`
        return value[0]
    if isinstance(value, str) and bool in kinds and value.lower() in (*YES, *NO):
        return value.lower() in YES
    if isinstance(value, str) and dict in kinds and str not in kinds:
        return _table(value)
    if list in kinds and str not in kinds:
        entries = value if isinstance(value, list) else [value]
        return [_prepared(_entry_hint(hint), entry) for entry in entries]
    return value


def _entry_hint(hint: Any) -> Any:
    """What a list holds, perhaps beside None."""
    return next(get_args(member)[0] for member in members_of(hint) if get_origin(member) is list)


def _table(text: str) -> Any:
    """JSON, as the command line has it; other text is left for the refusal."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@lru_cache
def _adapter(hint: Any) -> TypeAdapter:
    """Members of a union are tried from left to right, so that 1e-3 is a number to `float | str`, and auto a word. Of
    TrainingArguments' `SchedulerType | str` the enumeration counts."""
    members = [member for member in members_of(hint) if member is not NoneType]
    named = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    if named:
        hint = named[0]
    elif len(members) > 1:
        union = Union.__getitem__(tuple(members))
        hint = Annotated[union, Constraint(union_mode="left_to_right")]
    else:
        hint = members[0]
    return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True))
