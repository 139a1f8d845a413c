"""`step-jepa train --estimate`: the memory that a run needs on each device, by part, before it starts."""

import tempfile
from typing import Any

import torch
from peft import PeftConfig
from rich.table import Table

from step_jepa import terminal
from step_jepa.estimation.parallelism import ParallelismName, parts
from step_jepa.estimation.profile import Profile, profile, trainer_without_numbers
from step_jepa.plurals import counted
from step_jepa.training.config import RepresentationConfig

MIB = 2**20


def estimate(
    model_name: str,
    train_file: str,
    config: RepresentationConfig,
    peft_config: PeftConfig | None,
    *,
    quantised: bool = False,
    engine: ParallelismName = "ddp",
    processes: int = 1,
) -> dict[str, Any]:
    """What a run needs. No weights are read or made.

    Args:
        model_name: hub id, folder, or built-in.
        train_file: its rows.
        config: of the run.
        peft_config: of an adapter.
        quantised: whether the model is loaded in 4 bits.
        engine: what trains on several devices.
        processes: how many there are, one a device.

    Returns:
        rows, tokens of the largest micro-batch; parts and their sum, `device`, in bytes on each device; `export`, bytes
        that the main process needs in its own memory to gather the export.

    Raises:
        UserError: as the run would, before it starts.
    """
    dtype = torch.bfloat16 if config.bf16 and engine != "ddp" else None  # which keep parameters in float32
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        trainer = trainer_without_numbers(model_name, train_file, config, peft_config, quantised=quantised, dtype=dtype)
        found = profile(trainer, wide=1 if dtype is None else 4 // dtype.itemsize)
    by_part = parts(found, engine, processes)
    return {
        "engine": engine,
        "processes": processes,
        "rows": found.rows,
        "tokens": found.tokens,
        "parts": by_part,
        "device": sum(by_part.values()),
        "export": _export(found, config, sharded=engine in ("fsdp2", "zero3") and processes > 1),
    }


def _export(profile: Profile, config: RepresentationConfig, *, sharded: bool) -> int:
    """What is gathered, or copied for an adapter to be merged into."""
    if profile.adapter and config.keep_adapter:
        return profile.trained * profile.wide_trained if sharded else 0
    return (profile.parameters + profile.predictors) * profile.wide if sharded or profile.adapter else 0


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        terminal.show_json(found)
        return
    table = Table(title="memory of each device", show_footer=True)
    table.add_column("part", "together, at most")
    table.add_column("MiB", f"{found['device'] / MIB:,.1f}", justify="right")
    for part, size in found["parts"].items():
        table.add_row(part, f"{size / MIB:,.1f}")
    terminal.show(table)
    rows = f"{counted(found['rows'], 'row')} of {found['tokens']:,} tokens"
    terminal.show(
        f"At the largest moment of a step on {rows}, the largest "
        "micro-batch of the first epoch. Not counted: the libraries themselves (on CUDA about 500 MiB) and what the "
        f"allocator holds unused. The export needs {found['export'] / MIB:,.1f} MiB of the main process's own memory."
    )
    of = f"{found['engine']} on {found['processes']}"
    terminal.result({}, f"Each device needs {found['device'] / MIB:,.1f} MiB ({of}).")
    terminal.ends("", "the same command without --estimate")
