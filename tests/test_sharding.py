"""FSDP2: what several ranks train, save and export is what one process does."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import SHARED
from safetensors.torch import load_file
from sharded import run, start
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForCausalLM

from step_jepa import StepJEPAConfig
from step_jepa.arguments.parsing import SHIPPED
from step_jepa.errors import UserError
from step_jepa.training.sharding import DEEPSPEED, check_saved_sharding, check_sharding
from step_jepa.training.validation import validate

HARD = {"loss": "infonce", "regulariser": "vicreg", "predictor_head": "linear", "predictors": 3}
SLOW = {"target_encoder": "ema", "ema_decay": 0.9}
SAVED = {"save_strategy": "steps", "save_steps": 2}
SHARDS = {**SAVED, "form": "SHARDED_STATE_DICT"}
CHECKPOINTED = {"fsdp_config": {"activation_checkpointing": True}}
CASES = {
    "full tied": {**HARD, **SAVED, "tied": True, "chunks": True},
    "lora": {**HARD, **SLOW, **SHARDS, "lora": True, "keep_adapter": True},
    "full ema": {**SLOW, **SHARDS, **CHECKPOINTED, "vocabulary": 263, "chunks": True},
}
BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
MORE = {
    "full": {**SHARDS, **BEST, "objective": ["step_jepa", "stp"], "jepa_ratio": 0.6},
    "lora tied": {
        **{**SAVED, **BEST, "lora": True, "tied": True, "predictor_head": "linear"},
        **{"activation_checkpointing": True, "loss": "centred_cosine"},
    },
    "frozen": {**SAVED, "lora": True, "control": "frozen_target", "padding": True},
    "accumulated": {**SLOW, **SHARDS, "tied": True, "gradient_accumulation_steps": 2, "predictor_head": "linear"},
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def resumed(folder: Path, cases: dict, checkpoint: int = 2) -> dict:
    """Each case gone on with from what it saved in a folder."""
    at = {name: str(folder / name / f"checkpoint-{checkpoint}") for name in cases}
    return {f"{name} resumed": {**options, "resume": at[name]} for name, options in cases.items()}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process, which makes a case's folder the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("one")

    def folder_of(name: str) -> Path:
        name = name.removesuffix(" resumed")
        if not (folder / name).exists():
            run(folder / name, None, (CASES | MORE)[name])
        return folder / name

    return folder_of


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two ranks."""
    folder = tmp_path_factory.mktemp("two")
    bf16 = {"bf16": {**CASES["full tied"], "bf16": True}}
    start(2, free_port(), folder, CASES | bf16 | resumed(folder, {"full ema": CASES["full ema"]}))
    return folder


@pytest.fixture(scope="module")
def more(two, tmp_path_factory):
    """The other cases on two ranks, all on four, and what both saved gone on with on four and on one."""
    folder = tmp_path_factory.mktemp("more")
    start(2, free_port(), two, MORE)
    start(4, free_port(), folder / "four", CASES | MORE | resumed(two, CASES | MORE))
    start(1, free_port(), folder / "1", resumed(two, CASES | MORE))
    return folder


def figures(folder: Path):
    return json.loads((folder / "figures.json").read_text())


def logged(folder: Path, name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in figures(folder)[0] if name in entry}


def same_log(folder: Path, one: Path, names=("loss", "lm_loss", "jepa_loss", "pairs", "grad_norm")) -> None:
    for name in names:
        expected, found = (
            {entry["step"]: entry[name] for entry in figures(each)[0] if name in entry} for each in (one, folder)
        )
        steps = list(found) if folder.name.endswith("resumed") else list(expected)
        assert found == pytest.approx({step: expected[step] for step in steps}, rel=1e-5, abs=1e-6), name
        assert len(found) >= 2


def same_held_out(folder: Path, one: Path) -> None:
    expected, found = figures(one)[1], figures(folder)[1]
    for name in ("eval_lm_loss", "eval_jepa_loss", "eval_pairs", "eval_cosine_unpaired"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def same_weights(folder: Path, one: Path) -> None:
    """Within a thousandth of the way that they went."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    assert {"predictors.safetensors"} < set(files)
    for file in files:
        start, expected, found = (load_file(each / file) for each in (one / "start", one, folder))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            apart, moved = (found[name] - value).norm(), (value - start[name]).norm()
            assert apart <= 1e-3 * moved, (file, name)


def check(folder: Path, name: str, one) -> None:
    same_log(folder / name, one(name))
    if "regulariser" not in (CASES | MORE)[name.removesuffix(" resumed")]:  # else it changes with the held-out batches
        same_held_out(folder / name, one(name))
    same_weights(folder / name, one(name))


@pytest.mark.parametrize("name", [*CASES, "full ema resumed"])
def test_two_ranks_are_one_process(one, two, name):
    check(two, name, one)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MORE])
def test_two_ranks_are_one_process_in_all_else(one, two, more, name):
    check(two, name, one)


def test_bf16_is_near(one, two):
    expected, found = (logged(each, "loss") for each in (one("full tied"), two / "bf16"))
    assert found == pytest.approx(expected, rel=0.05)
    assert found != pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_four_ranks_are_one_process(one, more, name):
    check(more / "four", name, one)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*resumed(Path(), CASES | MORE)])
@pytest.mark.parametrize("ranks", ["four", "1"])
def test_another_number_of_ranks_goes_on(one, more, ranks, name):
    check(more / ranks, name, one)


@pytest.mark.parametrize("name", ["full tied", pytest.param("lora tied", marks=pytest.mark.slow)])
def test_the_export_is_a_model_of_one_process(one, two, request, name):
    if name in MORE:
        request.getfixturevalue("more")
    ids = torch.arange(5, 25)[None]
    models = (AutoModelForCausalLM.from_pretrained(each) for each in (one(name), two / name))
    expected, found = (model(ids).logits for model in models)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_rank_takes_half_the_memory(tmp_path):
    pytest.importorskip("gguf")
    file = SHARED / "gsm8k" / "train.jsonl"
    if not file.exists():
        pytest.skip("GSM8K is not at hand")
    start(2, free_port(), tmp_path, {"smollm2": {"model": "smollm2", "file": f"{file}[:2]", "learning_rate": 1e-4}})
    whole = 4 * 4 * 134_515_008  # parameters, gradients and two moments in float32
    for rank in (0, 1):
        figures = json.loads((tmp_path / "smollm2" / f"memory-{rank}.json").read_text())
        assert figures["losses"][2] < figures["losses"][0]
        assert figures["held"] <= 0.505 * whole
        assert figures["peak"] <= 0.65 * whole


# What is said instead


def test_a_cpu_is_told_that_it_does_not_shard():
    args, model = SimpleNamespace(fsdp=True, deepspeed=None, device=torch.device("cpu")), torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"not on cpu here .accelerate would run DDP .*: leave out --fsdp"):
        check_sharding(args, SimpleNamespace(distributed_type=DistributedType.MULTI_CPU), model)
    with pytest.raises(UserError, match="FSDP1 is not served: give fsdp_version: 2"):
        check_sharding(args, SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False), model)
    sharding = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True, mixed_precision="no")
    check_sharding(args, sharding, model)
    model.bias.data = model.bias.data.bfloat16()
    with pytest.raises(UserError, match="of one dtype, not of bfloat16 and float32: add --bf16 True"):
        check_sharding(args, sharding, model)


def test_gradients_of_single_losses_are_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = StepJEPAConfig(output_dir=str(tmp_path), lbd="auto", use_cpu=True)
    with pytest.raises(UserError, match=r"--lbd auto .* FSDP .*: give --lbd a number"):
        validate(config, adapter=False, quantised=False)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "True")
    with pytest.raises(UserError, match=r"fsdp_cpu_ram_efficient_loading .*: set it to false"):
        validate(config, adapter=False, quantised=False)


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_lora"])
def test_recipes_are_what_accelerate_takes(name, monkeypatch):
    recipe = SHIPPED / "recipes" / "accelerate" / f"{name}.yaml"
    args = launch_command_parser().parse_args(["--config_file", str(recipe), "train.py"])
    args = _validate_launch_command(args)[0]
    for variable, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    form = "FULL_STATE_DICT" if name == "fsdp2_lora" else "SHARDED_STATE_DICT"
    assert (plugin.fsdp_version, plugin.state_dict_type.name) == (2, form)
    assert plugin.reshard_after_forward
    assert plugin.activation_checkpointing
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert args.mixed_precision == "bf16"
    validate(StepJEPAConfig(output_dir="x", use_cpu=True), adapter=False, quantised=False)


def test_checkpoints_that_were_sharded_otherwise_are_not_gone_on_with(tmp_path):
    def refused(now: str | None, words: str) -> None:
        with pytest.raises(UserError, match=words):
            check_saved_sharding(str(tmp_path), now)

    check_saved_sharding(str(tmp_path), None)
    refused("FULL_STATE_DICT", "was saved without FSDP or DeepSpeed, and this run is under FSDP, with .* FULL_STATE_DI")
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    check_saved_sharding(str(tmp_path), "SHARDED_STATE_DICT")
    refused(None, "was saved under FSDP, with .* SHARDED_STATE_DICT, and this run is without FSDP or DeepSpeed: start")
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    check_saved_sharding(str(tmp_path), DEEPSPEED)
    refused(None, "was saved under DeepSpeed, and this run is without")
