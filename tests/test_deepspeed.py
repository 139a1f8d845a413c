"""DeepSpeed, an extra: what two ranks train, save and export is what one process does."""

import json
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import sharded
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from sharded import SETTINGS, run, trainer_of
from test_sharding import HARD, SLOW, free_port, same_held_out, same_log, same_weights

from step_jepa import StepJEPAConfig
from step_jepa.arguments.parsing import SHIPPED
from step_jepa.errors import UserError
from step_jepa.training.sharding import check_sharding
from step_jepa.training.validation import validate

installed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed (an extra) is not installed")
SAVED = {"save_strategy": "steps", "save_steps": 2}
FULL = {**HARD, **SAVED, "tied": True, "chunks": True}
LORA = {**SLOW, **SAVED, "lora": True, "keep_adapter": True, "gradient_accumulation_steps": 2}
CASES = {2: {"full": FULL, "lora": LORA}, 3: {"full": FULL}}


def train(folder: Path, options: dict) -> None:
    """Train, evaluate, export, as `sharded.run` does."""
    options = dict(options)
    checkpoint = options.pop("resume", None)
    trainer = trainer_of(folder, None, options)
    trainer.train(resume_from_checkpoint=checkpoint)
    figures = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        log = [entry for entry in trainer.state.log_history if entry["step"] > 2 or not checkpoint]
        (folder / "figures.json").write_text(json.dumps([log, figures]))


def rank_of(rank: int, port: int, folder: str, stage: int) -> None:
    """A rank's process: every case, and then from its checkpoint on."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    os.environ |= {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "false", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
    SETTINGS.update(use_cpu=False, ddp_backend="gloo")  # else accelerate runs DDP, or every rank for itself
    import deepspeed

    # It would compile one for CPUs, which takes a minute.
    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
    sharded.ROWS //= 2  # of a rank
    try:
        for name, options in CASES[stage].items():
            train(Path(folder, name), options)
            checkpoint = str(Path(folder, name, "checkpoint-2"))
            train(Path(folder, f"{name} resumed"), {**options, "resume": checkpoint})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two ranks of a stage, started the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("two")

    def folder_of(stage: int) -> Path:
        if not (folder / str(stage)).exists():
            torch.multiprocessing.spawn(rank_of, (free_port(), str(folder / str(stage)), stage), nprocs=2)
        return folder / str(stage)

    return folder_of


@installed
@pytest.mark.parametrize(("stage", "name"), [(2, "full"), (2, "lora"), pytest.param(3, "full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("resumed", ["", " resumed"])
def test_two_ranks_are_one_process(stage, name, resumed, two, tmp_path):
    found, one, options = two(stage) / f"{name}{resumed}", tmp_path / "one", CASES[stage][name]
    run(one, None, options)
    same_log(found, one)
    if "regulariser" not in options:  # else it changes with the held-out batches
        same_held_out(found, one)
    same_weights(found, one)


def plugin(stage: int, kind: DistributedType = DistributedType.DEEPSPEED) -> SimpleNamespace:
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    return SimpleNamespace(distributed_type=kind, state=state)


def test_what_deepspeed_cannot_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    args = SimpleNamespace(
        fsdp=False, deepspeed=None, objectives=[("step_jepa", 1.0)], target_encoder="ema", control="none"
    )
    check_sharding(args, plugin(2), None)
    with pytest.raises(UserError, match=r"ZeRO-3 has no whole parameters .*: use ZeRO-2 or FSDP2"):
        check_sharding(args, plugin(3), None)
    with pytest.raises(UserError, match="DDP in place of DeepSpeed without a word: leave out --use_cpu"):
        check_sharding(args, plugin(2, DistributedType.MULTI_CPU), None)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    config = StepJEPAConfig(output_dir=str(tmp_path), lbd="auto", use_cpu=True)
    config.deepspeed = "zero2.json"
    with pytest.raises(UserError, match="which FSDP and DeepSpeed do not show: give --lbd a number"):
        validate(config, adapter=False, quantised=False)


@installed
@pytest.mark.parametrize("stage", [2, 3])
def test_recipes_are_what_accelerate_takes(stage, monkeypatch):
    recipe = SHIPPED / "recipes" / "accelerate" / f"deepspeed_zero{stage}.yaml"
    args = launch_command_parser().parse_args(["--config_file", str(recipe), "train.py"])
    args = _validate_launch_command(args)[0]
    args.deepspeed_fields_from_accelerate_config = ""  # as launch_command adds
    for variable, value in prepare_deepspeed_cmd_env(args)[1].items():
        monkeypatch.setenv(variable, value)
    plugin = DeepSpeedPlugin()
    assert (plugin.zero_stage, plugin.zero3_init_flag) == (stage, False)
    assert plugin.zero3_save_16bit_model == (stage == 3)
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"  # the run's own
    assert args.mixed_precision == "bf16"
