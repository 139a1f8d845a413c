"""A model's folder to the hub: the export and its card, and nothing of the data, the machine or the optimiser."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HTTPError
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import hf_api

from step_jepa.errors import UserError
from step_jepa.models.export import is_exported
from step_jepa.run_files.names import CARD_FILE, OPTIONS_FILE
from step_jepa.training.model_card import public

logger = logging.getLogger(__name__)

# What a tokenizer and a configuration may be written as, beside the files that `is_exported` knows
_BESIDE = (
    *("config.json", "generation_config.json", "tokenizer*", "*_tokens*.json", "special_tokens_map.json", "vocab.*"),
    *("merges.txt", "*.model", "*.tiktoken", "*.jinja", CARD_FILE),
)
_PATHS = {OPTIONS_FILE: ("chat_template",), "adapter_config.json": ("base_model_name_or_path",)}


class HubTrainer(Trainer):
    """A Trainer that uploads its export with the card, and nothing else."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and the trainer's state, and upload the export with its card, nothing else.

        Args:
            commit_message: of the one commit.
            blocking: it always returns when all is uploaded.
            token: instead of args.hub_token.
            revision: branch to commit to, instead of args.hub_revision.
            private: whether a repository that is new is private, instead of args.hub_private_repo.
            **kwargs: of `Trainer.create_model_card`, which is not called: the card is made from the run.

        Raises:
            UserError: where the hub refuses, or cannot be reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model()
        self.save_state()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return push_export(
            str(self.args.output_dir),
            str(self.hub_model_id),
            message=commit_message or "End of training",
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As a model that can be loaded, without what only a resume needs. The checkpoint may be deleted afterwards, so
        this waits; a hub that cannot be reached does not end the run."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        token, revision = self.args.hub_token, self.args.hub_revision
        try:
            push_export(checkpoint_folder, str(self.hub_model_id), message=message, token=token, revision=revision)
        except UserError as error:
            logger.warning("%s", error)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `Trainer` does it. Raises UserError where the hub refuses, or cannot be reached."""
        with hub_refusals():
            super().init_hf_repo(token, private)


def push_export(
    folder: str,
    repository: str,
    *,
    message: str,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Commit a model's files, and take away those of an earlier kind of export (merged, adapter) that it has not.

    Args:
        folder: of an export, or a checkpoint.
        repository: its id on the hub; it is there.
        message: of the commit.
        token: of the hub.
        revision: branch.

    Raises:
        UserError: where the hub refuses, or cannot be reached.
    """
    files = {file.relative_to(folder).as_posix(): file for file in exported_files(Path(folder))}
    with hub_refusals():
        there = hf_api().list_repo_files(repository, token=token, revision=revision)
        changes: list[CommitOperationAdd | CommitOperationDelete] = []
        changes += [CommitOperationAdd(name, _content(file)) for name, file in files.items()]
        changes += [CommitOperationDelete(name) for name in there if is_exported(Path(name)) and name not in files]
        commit: CommitInfo = hf_api().create_commit(
            repository, changes, commit_message=message, token=token, revision=revision
        )
    return commit


def make_repository(name: str) -> str:
    """A model's repository on the hub, made where it is not there; its whole id. Raises UserError."""
    with hub_refusals():
        return str(hf_api().create_repo(name, exist_ok=True).repo_id)


def exported_files(folder: Path) -> list[Path]:
    """What belongs to a model in a folder that may hold more: checkpoints, the run's settings, rows of its data."""
    named = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in named if _belongs(path.relative_to(folder))]


@contextmanager
def hub_refusals() -> Iterator[None]:
    """Around calls of the hub. Raises UserError in place of what it, or the way to it, refuses with."""
    try:
        yield
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the hub does not take the model ({reason}): log in with `hf auth login`, check hub_model_id,"
            " or leave out push_to_hub"
        ) from error


def _belongs(path: Path) -> bool:
    named = is_exported(path) or any(fnmatch(path.name, pattern) for pattern in _BESIDE)
    return path.parent in (Path(), Path("additional_chat_templates")) and named


def _content(file: Path) -> str | bytes:
    """Where it lies; of one that names folders of this machine its text, with the last part of each."""
    names = _PATHS.get(file.name, ())
    if not names:
        return str(file)
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    shortened = {name: public(values[name]) for name in names if values.get(name)}
    return json.dumps(values | shortened, indent=2).encode()
