"""What `datasets` and the hub raise, for users."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_jepa.data.builtin_names import BUILTIN
from step_jepa.data.generated import GENERATED
from step_jepa.errors import UserError


@contextmanager
def loader_errors(source: str, remedy: str = "") -> Iterator[None]:
    """What the hub, the network and loaders raise, all their own, becomes a UserError that names the source; and
    the remedy, where there is no such configuration."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = "no such file, and no hub data set could be loaded"
        if Path(source).is_dir():
            what = "no data set could be loaded"
        reason = " ".join(str(error).split()) or type(error).__name__
        if remedy and "BuilderConfig" in reason:
            reason += f"; {remedy}"
        if source in GENERATED:  # a folder has its name
            reason += f"; {BUILTIN}{source} is generated"
        raise UserError(f"{source}: {what}: {reason}") from error
