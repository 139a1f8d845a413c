"""The closing figures of runs and their page, to the trackers that have their curves and settings."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers.integrations import (
    TensorBoardCallback,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from step_jepa.errors import UserError
from step_jepa.reporting.runs import Evaluation, Run
from step_jepa.training.model_card import figures_of_evaluation, figures_of_training
from step_jepa.training.tracked import Place

Tracker = Literal["tensorboard", "trackio", "wandb"]
PAGE = "report"
TABLE = "closing"


class Row(NamedTuple):
    """A line of the closing table; low and high are the ends of the 95 % interval, where it is known."""

    of: str
    figure: str
    data: str
    value: float
    low: float | None
    high: float | None


class Added(NamedTuple):
    """What a run gets: what run.json says of it, the closing table, and the page. `folder` is its own."""

    folder: Path
    settings: dict[str, Any]
    table: list[Row]
    page: Path


def check_tracked(runs: Sequence[Run], trackers: Sequence[Tracker]) -> None:
    """Raises UserError where a tracker has none of the runs, or is not installed."""
    for tracker in trackers:
        if not any(tracker in _places(run) for run in runs):
            raise UserError(f"{tracker} has none of these runs: train with --report_to {tracker}, or leave it out here")
        if tracker == "tensorboard":
            _check_events(runs)
        if not _INSTALLED[tracker]():
            raise UserError(f"{tracker} is not installed: pip install {tracker}")


def publish(
    runs: Sequence[Run], evaluations: Sequence[Evaluation], page: Path, trackers: Sequence[Tracker]
) -> list[str]:
    """Add table and page to each run in each of the trackers that has it; where they went, a line each."""
    evaluated: list[Row] = []
    for each in evaluations:
        evaluated += _rows(each.folder.name, figures_of_evaluation(each.summary))
    said = []
    for run in runs:
        trained = figures_of_training(run.state["log_history"], run.settings.get("eval_file"))
        table = [*_rows("training", trained), *evaluated]
        added = Added(run.folder, run.settings, table, page)
        for tracker in trackers:
            if tracker in _places(run):
                said.append(f"{run.name}: {_SEND[tracker](_places(run)[tracker], added)}")
    return said


def _places(run: Run) -> dict[str, Place]:
    places: dict[str, Place] = run.settings.get("tracked") or {}
    return places


def _check_events(runs: Sequence[Run]) -> None:
    for run in runs:
        place = _places(run).get("tensorboard")
        if place and not (run.folder / place["folder"]).is_dir():
            raise UserError(f"{run.folder / place['folder']}, the folder of {run.name}'s events, is not there")


def _rows(source: str, figures: Sequence[Any]) -> list[Row]:
    return [
        Row(source, figure.name, figure.data, figure.value, *(figure.interval or (None, None))) for figure in figures
    ]


def _to_wandb(place: Place, added: Added) -> str:
    import wandb

    wandb.init(project=place["project"], id=place["id"], resume="allow")
    return f"{_log(wandb, added)} of wandb's run {place['id']}"


def _to_trackio(place: Place, added: Added) -> str:
    import trackio

    trackio.init(project=place["project"], name=place["name"], resume="allow")
    return f"{_log(trackio, added)} of trackio's run {place['name']}"


def _log(library: Any, added: Added) -> str:
    """What both libraries have by the same names, for the run that has begun."""
    scalars = {f"{TABLE}/{row.of}/{row.figure}": row.value for row in added.table}
    table = library.Table(columns=list(Row._fields), data=[list(row) for row in added.table])
    library.config.update({"run": added.settings}, allow_val_change=True)
    library.log({TABLE: table, **scalars})
    library.log_artifact(str(added.page), name=PAGE, type=PAGE)
    library.finish()
    return f"table {TABLE!r} and artefact {PAGE!r}"


def _to_tensorboard(place: Place, added: Added) -> str:
    """It shows no pages: this one lies beside the run's events."""
    lines = [Row._fields, ["---"] * len(Row._fields), *(map(str, row) for row in added.table)]
    events = added.folder / place["folder"]
    kept = shutil.copy(added.page, events / f"{PAGE}.html")
    # Of torch, or tensorboardX. Without a suffix, a writer of the same second would write over the run's file.
    with TensorBoardCallback()._SummaryWriter(str(events), filename_suffix=f".{TABLE}") as writer:
        writer.add_text("run", json.dumps(added.settings, indent=2))
        writer.add_text(TABLE, "\n".join(f"| {' | '.join(line)} |" for line in lines))
        writer.add_text(PAGE, str(kept))
    return f"text {TABLE!r} in {events}, and the page beside it"


_INSTALLED: dict[Tracker, Callable[[], bool]] = {
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "wandb": is_wandb_available,
}
_SEND: dict[Tracker, Callable[[Place, Added], str]] = {
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
}
