"""What the terminal shows of training: a short line for each log, and one bar. All figures are in the log_history of
trainer_state.json."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import logging as transformers_logging

from step_jepa import terminal
from step_jepa.plurals import counted

SHOWN = {"loss": "loss", "lm_loss": "lm", "jepa_loss": "jepa"}  # of what is logged
MARGIN = "centred_margin"
HELD_OUT = "held-out losses"


def shows_progress(trainer: Trainer) -> None:
    """Have the trainer show lines and bar of ours in place of those of transformers."""
    shown = [each for each in trainer.callback_handler.callbacks if _is_theirs(each)]
    for callback in shown:
        trainer.remove_callback(callback)
    if shown:
        trainer.add_callback(Progress())


@contextmanager
def closing_bars(trainer: Trainer) -> Iterator[None]:
    """Around training and evaluation: one that ends by an exception leaves no bar open, which would hide others."""
    try:
        yield
    except BaseException:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.close()
        raise


def _is_theirs(callback: TrainerCallback) -> bool:
    return type(callback) in (PrinterCallback, ProgressCallback) or "Notebook" in type(callback).__name__


class Progress(TrainerCallback):
    """A line for each log, with the last margin of held-out views that is known, and how long it still takes; a bar,
    which says so while held-out rows are read."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.held_out_bar: Any = None
        self.library_bars = False  # to be shown again
        self.margin: float | None = None
        self.read = 0  # batches of held-out rows
        self.began, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step
        if not args.disable_tqdm and state.is_world_process_zero:
            self.bar = terminal.bar(label="training", unit="step", total=state.max_steps)
            self.bar.update(state.global_step)
        self.library_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # of checkpoints

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        terminal.tick()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """No bar stays open, and those of transformers are as they were."""
        for bar in filter(None, (self.bar, self.held_out_bar)):
            bar.close()
        self.bar = self.held_out_bar = None
        if self.library_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        self.library_bars = False

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if args.disable_tqdm or not state.is_world_process_zero:
            return
        total = len(eval_dataloader) if has_length(eval_dataloader) else None
        if self.bar is None and self.held_out_bar is None:
            self.held_out_bar = terminal.bar(label=HELD_OUT, unit="batch", total=total)
        self.read += 1
        if self.bar is not None:
            self._say_beside(f"{HELD_OUT}, batch {self.read}" + (f"/{total}" if total else ""))
        else:
            self.held_out_bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._held_out_is_read()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self._held_out_is_read()

    def _held_out_is_read(self) -> None:
        self.read = 0
        if self.bar is not None:
            self._say_beside("")
        if self.held_out_bar is not None:
            self.held_out_bar.close()
        self.held_out_bar = None

    def _say_beside(self, words: str) -> None:
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(0)  # shows it, unless it has just been drawn

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name, value in logs.items():
            if name.endswith(MARGIN):
                self.margin = value
        figures = shown_figures(logs, self.margin)
        if figures and state.is_world_process_zero:
            terminal.note("  ".join([f"step {state.global_step}/{state.max_steps}", *figures, *self._time_left(state)]))

    def _time_left(self, state: Any) -> list[str]:
        """Nothing before the first step and after the last one."""
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if done < 1 or left < 1:
            return []
        return [f"eta {duration((time.monotonic() - self.began) / done * left)}"]


def shown_figures(logs: Mapping[str, Any], margin: float | None) -> list[str]:
    """Of a log of training or of held-out rows what its line shows; nothing of other logs."""
    prefix = "" if "loss" in logs else _held_out_prefix(logs)
    if prefix is None:
        return []
    title = [f"held out{_name(prefix)}"] if prefix else []
    parted = f"{prefix}jepa_loss" in logs
    names = [name for name in SHOWN if f"{prefix}{name}" in logs and (parted or name == "loss")]
    figures = [f"{SHOWN[name]} {number(logs[prefix + name])}" for name in names]
    return [*title, *figures, *([f"margin {number(margin, signed=True)}"] if parted and margin is not None else [])]


def _held_out_prefix(logs: Mapping[str, Any]) -> str | None:
    """Of the names of held-out figures, such as eval_; with several sets each has its own."""
    timed = (name.removesuffix("runtime") for name in logs if name.endswith("_runtime"))
    return next((prefix for prefix in timed if f"{prefix}samples_per_second" in logs and prefix != "train_"), None)


def _name(prefix: str) -> str:
    name = prefix.removeprefix("eval").strip("_")
    return f" ({name})" if name else ""


def outcome(state: TrainerState) -> dict[str, Any]:
    """Of a run that has ended: its steps, the seconds that they took, the last losses, and the last figures of held-out
    rows (of each set, by the prefix of its names)."""
    seconds, losses, held_out = 0.0, {}, {}
    for entry in state.log_history:
        seconds = entry.get("train_runtime", seconds)
        if "loss" in entry:
            losses = {name: entry[name] for name in SHOWN if name in entry}
        if (prefix := _held_out_prefix(entry)) is not None:
            held_out[prefix] = {name.removeprefix(prefix): value for name, value in entry.items() if name != "step"}
    return {"steps": state.global_step, "seconds": seconds, "losses": losses, "held_out": held_out}


def sentence(found: Mapping[str, Any]) -> str:
    """The same in words."""
    parts = [f"{counted(found['steps'], 'step')} in {duration(found['seconds'])}"]
    if found["losses"]:
        parts.append("  ".join(["last", *shown_figures(found["losses"], None)]))
    for prefix, figures in found["held_out"].items():
        parts.append("  ".join(shown_figures({prefix + name: value for name, value in figures.items()}, None)))
    return "; ".join(parts)


def number(value: float, *, signed: bool = False) -> str:
    """In two digits, or two decimals from 1 on: .86, .087, 5.55."""
    sign = "+" if signed else ""
    text = f"{value:{sign}.2f}" if abs(value) >= 1 else f"{value:{sign}#.2g}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def duration(seconds: float) -> str:
    """2:10, or 1:02:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
