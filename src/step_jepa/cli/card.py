"""`step-jepa card`: the card of a model once more, with what evaluations of it found; and both to a hub."""

from dataclasses import dataclass
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.options import option
from step_jepa.run_files.names import CARD_FILE, RUN_FILE
from step_jepa.run_files.reading import read_json
from step_jepa.training.hub import make_repository, push_export
from step_jepa.training.model_card import write_card


@dataclass
class CardArguments:
    """Of which model, and what was found."""

    folders: list[str] = option(
        help="Of a model that `train` wrote; then those of evaluations whose figures its card shows.", is_path=True
    )
    hub_model_id: str | None = option(
        None, help="Repository on the hub to upload the model and its card to; nothing else goes there."
    )


def run(args: CardArguments) -> None:
    """Write README.md into the model's folder, and upload both where that is asked for. Raises UserError for a folder
    that `train` did not write, rather than replace a card that a person wrote, and where the hub refuses."""
    folder, *evaluations = map(Path, args.folders)
    if not (folder / RUN_FILE).exists():
        raise UserError(f"{folder} holds no {RUN_FILE}: give the folder of a model that `train` wrote")
    state = folder / TRAINER_STATE_NAME
    history = read_json(state, log_history=list)["log_history"] if state.exists() else []
    if not write_card(folder, history, evaluations):
        raise UserError(f"{folder / CARD_FILE} is not of step-jepa's making: move it away")
    print(folder / CARD_FILE)
    if args.hub_model_id:
        repository = make_repository(args.hub_model_id)
        push_export(str(folder), repository, message="Model and card")
        terminal.ends(f"model and card lie in {repository} on the hub")
    else:
        terminal.ends("", terminal.typed("card", {"folders": args.folders, "hub_model_id": "YOU/NAME"}))
