"""Options: dataclass fields that carry all facts about themselves, and the checks that follow from these facts.

A command's arguments are a dataclass whose fields are made by `option`. What the command line, YAML files, refusals,
`--help`, a resume and the documentation need to know of an option stands in its field, and nowhere else.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from math import isfinite
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from step_jepa.errors import UserError

SECRET = re.compile(r"^(token|use_auth_token|hub_token|proxies)$|password|secret|api_?key|credential", re.IGNORECASE)
MOST_SEED = 2**32 - 1  # numpy's generators take no larger one


@dataclass(frozen=True)
class Needs:
    """What must be chosen for an option to mean anything.

    words   how one chooses it, such as "--loss infonce"
    holds   whether a configuration does
    """

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Facts:
    """What is known of an option beside its type and default.

    group              heading that it stands under in --help
    least, more_than, most
                       bounds of a number; None is within all of them
    remedy             what to give instead, where the bounds do not say it well
    choices            the names that a registry holds, which may grow
    is_path            a relative one in a YAML file is read from that file's folder
    needs              without this, a value other than the default is refused
    of_jepa_term       means nothing in plain fine-tuning, and is refused there
    free_on_resume     a run may be resumed with another value
    standalone         the standalone implementation has it
    of_training        matters only while a run trains: held-out figures do not depend on it
    changes_views      a trained model's views can only be read with the run's own value
    """

    group: str = ""
    least: float | None = None
    more_than: float | None = None
    most: float | None = None
    remedy: str = ""
    choices: Iterable[str] | None = None
    is_path: bool = False
    needs: Needs | None = None
    of_jepa_term: bool = False
    free_on_resume: bool = False
    standalone: bool = False
    of_training: bool = False
    changes_views: bool = False


class Help(str):
    """The sentence for --help, with the facts. HfArgumentParser and TRL's parser hand a field's metadata to argparse,
    so the facts can stand nowhere else: a user's own parser of our dataclasses has to work."""

    facts: Facts

    def __new__(cls, text: str, facts: Facts) -> "Help":
        help = super().__new__(cls, text)
        help.facts = facts
        return help


def option(default: Any = MISSING, *, help: str, default_factory: Any = MISSING, **facts: Any) -> Any:
    """A dataclass field of a command's arguments.

    Args:
        default: its value where none is given; required without one.
        help: one sentence for --help.
        default_factory: makes the default, for lists and tables.
        **facts: fields of `Facts`.
    """
    metadata = {"help": Help(help, Facts(**facts))}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def option_fields(config: Any) -> list[Field[Any]]:
    """The fields of a dataclass, or of an instance of one, that `option` made."""
    return [each for each in fields(config) if is_ours(each)]


def facts(each: Field[Any]) -> Facts:
    """Those of a dataclass field; none are known of one that `option` did not make."""
    help = each.metadata.get("help")
    return help.facts if isinstance(help, Help) else Facts()


def is_ours(each: Field[Any]) -> bool:
    """Whether `option` made it."""
    return isinstance(each.metadata.get("help"), Help)


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """What no file of a run may hold is told by its name, in tables too."""
    return {
        name: "(not written)" if value and SECRET.search(name) else _masked(value) for name, value in values.items()
    }


def _masked(value: Any) -> Any:
    return without_secrets(value) if type(value) is dict else value


def default_of(each: Field[Any]) -> Any:
    """The value of a field where none is given; MISSING for one that is required."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def is_required(each: Field[Any]) -> bool:
    """Whether it must be given. Without an output_dir TrainingArguments would write into a folder of its own choice."""
    default = default_of(each)
    return default is MISSING or (each.name == "output_dir" and default is None)


def members_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type hint itself alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def kinds_of(hint: Any) -> set[Any]:
    """The same, without what they hold: `list[str] | None` is list and NoneType."""
    return {get_origin(member) or member for member in members_of(hint)}


def options_of(types: Sequence[Any]) -> list[tuple[Field[Any], Any]]:
    """The options of a command's dataclasses, each with its type hint."""
    options = []
    for kind in types:
        hints = get_type_hints(kind)
        options += [(field, hints[field.name]) for field in fields(kind) if field.init]
    return options


def changed(config: Any) -> list[Field[Any]]:
    """The options that have another value than their default."""
    return [each for each in option_fields(config) if getattr(config, each.name) != default_of(each)]


def check_bounds(config: Any) -> None:
    """Raises UserError, naming the option, for a number out of its bounds and a word that is not among its choices."""
    for each in option_fields(config):
        value, known = getattr(config, each.name), facts(each)
        if known.choices is not None and value not in known.choices:
            raise UserError(f"{each.name} = {value}: give one of {', '.join(known.choices)}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not _within(value, known):
            wanted = (known.remedy or _bounds(known)) if isfinite(value) else "a finite number"
            raise UserError(f"{each.name} = {value}: give {wanted}")


def check_needs(config: Any) -> None:
    """Raises UserError for an option that nothing reads, as what it needs is not chosen."""
    for each in changed(config):
        needs = facts(each).needs
        if needs is not None and not needs.holds(config):
            raise UserError(f"--{each.name} is read by {needs.words} alone: add that, or leave it out")


def _within(value: float, known: Facts) -> bool:
    above = known.least is None or value >= known.least
    beyond = known.more_than is None or value > known.more_than
    below = known.most is None or value <= known.most
    bounded = (known.least, known.more_than, known.most) != (None, None, None)
    return above and beyond and below and (isfinite(value) or not bounded)


def _bounds(known: Facts) -> str:
    if known.least == 0 and known.most == 1:
        return "a share between 0 and 1"
    if known.least is not None and known.most is not None:
        return f"{known.least} to {known.most}"
    if known.most is not None and known.least is None:
        return f"{known.most:g} or less"
    return f"more than {known.more_than:g}" if known.more_than is not None else f"{known.least:g} or more"
