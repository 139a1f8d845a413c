"""What a signal means to a run: before training it ends at once; while it trains, with a checkpoint at the end of the
step, which all ranks agree on; afterwards the export is finished."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from step_jepa.errors import Terminated, UserError
from step_jepa.process.signals import SignalReceived, from_parent_alone, handled_by


class Preemption(TrainerCallback):
    """Ends training with a checkpoint and Terminated, after a signal to any rank. To be called before other callbacks,
    which look at what is to be saved.

    transformers' own (`enable_jit_checkpoint`) lets each rank save at a step of its own, knows SIGTERM only, and goes
    on to the export.
    """

    def __init__(self) -> None:
        self._received = False  # by this rank
        self._agreed = False  # by all, before the end of the step
        self._training = False
        self._leaving = False  # once the checkpoint is written

    def receive(self) -> None:
        """A signal came. Raises SignalReceived where there is nothing to save."""
        self._received = True
        if not self._training:
            raise SignalReceived

    @property
    def came_too_early(self) -> bool:
        """Whether a signal came before training."""
        return self._received and not self._training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Here the gradient's norm is waited for anyway: the device idles no longer than the ranks take to agree.
        self._agreed = _any_rank(self._received, args.device)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._agreed and state.global_step >= state.max_steps:
            control.should_save = True  # should the export be cut short
        elif self._agreed and not _ends_epoch(state):
            self._leave(args, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._agreed and state.global_step < state.max_steps:  # behind the epoch's evaluation
            self._leave(args, control)

    def _leave(self, args: Any, control: Any) -> None:
        args.save_only_model = False  # it is to be gone on from
        control.should_save = self._leaving = True

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._leaving:
            _wait_for_other_ranks()
            checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            raise Terminated(
                f"terminated at step {state.global_step}: --resume_from_checkpoint True goes on from {checkpoint}"
            )


def _ends_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()


def _any_rank(value: bool, device: torch.device) -> bool:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return value
    received = torch.tensor(int(value), device=device)
    dist.all_reduce(received, dist.ReduceOp.MAX)
    return bool(received)


def _wait_for_other_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def preemptible() -> Iterator[Preemption]:
    """SIGTERM and SIGUSR1 are handled by what is given, a callback for the trainer. Raises Terminated."""
    preemption = Preemption()
    try:
        with handled_by(preemption.receive):
            yield preemption
    except UserError:
        raise
    except BaseException:  # the signal, or what it broke, as processes that helped have it too
        if preemption.came_too_early:
            raise Terminated("terminated before the first step: the same command starts again") from None
        raise


class PreemptibleTrainer(Trainer):
    """A Trainer whose checkpoints and processes stand signals to all processes of a job. With `enable_jit_checkpoint`
    it handles them itself while it trains, and `train` raises Terminated."""

    def __init__(self, *, args: TrainingArguments, **kwargs: Any) -> None:
        self._preemptible = args.enable_jit_checkpoint
        args.enable_jit_checkpoint = False  # transformers' own
        super().__init__(args=args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with preemptible() if self._preemptible else nullcontext() as preemption:
            if preemption is not None:
                self.callback_handler.callbacks.insert(0, preemption)
            return super().train(*args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = super()._get_dataloader(*args, **kwargs)
        _shield_workers(getattr(loader, "base_dataloader", loader))  # which accelerate wraps
        return loader

    def _save_rng_state(self, output_dir: str) -> None:
        """All ranks have written theirs before the trainer's state, which says that the checkpoint is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


def _shield_workers(loader: DataLoader[Any]) -> None:
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
    if loader.num_workers and loader.multiprocessing_context is None and get_start_method() == "fork":
        from step_jepa.process.forked import shielded_fork  # which Windows cannot import

        loader.multiprocessing_context = shielded_fork()


def _start_worker(start: Any, worker: int) -> None:
    from_parent_alone()
    if start is not None:
        start(worker)
