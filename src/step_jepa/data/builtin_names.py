"""Names of models and data that are ours."""

from collections.abc import Collection, Iterable

from step_jepa.errors import UserError

BUILTIN = "builtin:"  # before a name: ours, whatever lies on disk


def builtin_name(name: str, known: Collection[str], *, on_disk: bool) -> str | None:
    """The one of ours that a name stands for: what lies on disk wins, unless `builtin:` precedes the name.

    Args:
        name: of a model or of data.
        known: names that are ours.
        on_disk: whether the name is that of something on disk.

    Returns:
        The name without `builtin:`; None where it stands for nothing of ours.

    Raises:
        UserError: `builtin:` precedes anything else.
    """
    if not name.startswith(BUILTIN):
        return name if name in known and not on_disk else None
    if name.removeprefix(BUILTIN) not in known:
        raise UserError(f"{name}: give one of {with_prefix(known)}")
    return name.removeprefix(BUILTIN)


def with_prefix(names: Iterable[str]) -> str:
    return " and ".join(f"{BUILTIN}{name}" for name in names)
