"""The stages of an example, in order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from step_jepa.inspection import branches, mask, spans, steps, text, tokens, views
from step_jepa.inspection.specimen import Specimen


@dataclass(frozen=True)
class Stage:
    """How it is shown in a terminal, and described as JSON."""

    show: Callable[[Specimen], RenderableType]
    describe: Callable[[Specimen], Any]


STAGES = {
    "text": Stage(text.show, text.describe),
    "steps": Stage(steps.show, steps.describe),
    "tokens": Stage(tokens.show, tokens.describe),
    "spans": Stage(spans.show, spans.describe),
    "branches": Stage(branches.show, branches.describe),
    "mask": Stage(mask.show, mask.describe),
    "views": Stage(views.show, views.describe),
}
