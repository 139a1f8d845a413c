"""What --estimate finds without numbers is what a run with numbers holds."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.cli import main
from step_jepa.estimation.ledger import Ledger, Moment, make_fake
from step_jepa.estimation.parallelism import parts
from step_jepa.estimation.profile import Profile, profile, trainer_without_numbers
from step_jepa.train.arguments import TrainArguments, peft_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def linear():
    with torch.device("meta"):
        model = torch.nn.Linear(3, 4, bias=False)
    make_fake(model)
    return model


def test_bytes_of_each_moment():
    """Two rows of three numbers through 4 x 3 weights: 8 products, 8 squares, a sum; then gradients of both, 12 of the
    weights."""
    model, rows = linear(), torch.ones(2, 3)
    ledger = Ledger(model.parameters(), [*model.parameters(), rows])
    with ledger:
        model(rows).square().sum().backward()
    assert ledger.moments[:3] == [Moment(0, 32), Moment(0, 64), Moment(0, 68)]
    assert ledger.moments[-1].gradients == 4 * 12
    assert max(moment.others for moment in ledger.moments) < 200


def test_masks_of_real_numbers_pick_fake_ones():
    model, mask = linear(), torch.tensor([True, False, True, True])
    with Ledger([], []):
        assert model.weight[mask].shape == (3, 3)
        model.weight[mask].sum().backward()
    assert model.weight.grad.shape == (4, 3)


RUNS = {
    "full, one row": {"per_device_train_batch_size": 1},
    "full, all pairs": {"pairs": "all", "per_device_train_batch_size": 4},
    "eight rows, plain": {"objective": ["none"], "per_device_train_batch_size": 8},
    "lora": {"lora": True, "pairs": "all", "per_device_train_batch_size": 4},
    "checkpointing": {"pairs": "all", "per_device_train_batch_size": 8, "activation_checkpointing": True},
    "average": {"pairs": "all", "per_device_train_batch_size": 4, "target_encoder": "ema"},
    "by tokens": {"pairs": "all", "max_tokens_per_batch": 700},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    "dense, infonce": {
        "attention": "dense",
        "loss": "infonce",
        "predictor_head": "linear",
        "per_device_train_batch_size": 4,
    },
    "bfloat16": {"per_device_train_batch_size": 4, "bf16": True, "use_cpu": True},
    "random weights": {"pretrain": True, "config_overrides": {"num_hidden_layers": 3}},
    "balanced": {"per_device_train_batch_size": 4, "lbd": "auto"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_step_without_numbers_holds_what_one_with_numbers_does(options, model_folder, rows, tmp_path):
    options = dict(options)
    adapter = peft_config(TrainArguments(rows, model_folder, lora=options.pop("lora", False)))

    def config():
        return StepJEPAConfig(output_dir=str(tmp_path), report_to="none", **options)

    fake = profile(trainer_without_numbers(model_folder, rows, config(), adapter))
    real = profile(StepJEPARepresentationTrainer(model_folder, config(), rows, peft_config=adapter))
    assert replace(fake, moments=[]) == replace(real, moments=[])
    most = [max(map(sum, each.moments)) for each in (fake, real)]
    assert most[0] == pytest.approx(most[1], rel=0.1)


def test_engines_divide():
    """100 bytes of parameters, all trained, 200 of the optimiser; the largest moment of a step depends on who divides
    the gradients."""
    moments = [Moment(0, 90), Moment(40, 60), Moment(100, 0)]
    found = Profile(
        parameters=90, predictors=10, trained=100, layer=20, root=30, optimizer=200, target_encoder=0, moments=moments,
        rows=1, tokens=1, adapter=False, itemsize=4, wide=1,
    )  # fmt: skip
    assert sum(parts(found, "ddp", 1).values()) == 100 + 200 + 100
    assert sum(parts(found, "ddp", 2).values()) == 100 + 200 + 100 + 100  # and buckets
    sharded = parts(found, "fsdp2", 4)
    assert sharded["parameters"] + sharded["predictor tokens and head"] == 22 + 2
    assert (sharded["gradients"], sharded["activations"], sharded["optimiser"]) == (0, 90, 50)
    assert parts(found, "zero2", 4)["optimiser"] == (200 + 100) / 4
    half = replace(found, itemsize=2, wide=2)
    assert [parts(half, name, 1)["parameters"] for name in ("ddp", "zero3", "fsdp2")] == [90, 90, 180]
    assert parts(half, "fsdp2", 4)["optimiser"] == 2 * 200 / 4
    assert parts(replace(half, adapter=True), "fsdp2", 4)["optimiser"] == 200 / 4


def estimated(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["train", *words])
    return end.value.code, capsys.readouterr()


def test_the_command(model_folder, rows, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--model_name", model_folder, "--train_file", rows, "--output_dir", str(folder), "--estimate"]
    code, out = estimated(capsys, *words, "--json", "--processes", "2", "--engine", "fsdp2")
    found = json.loads(out.out)
    assert code == 0
    assert not folder.exists()
    assert found["device"] == sum(found["parts"].values())
    layer = 2 * (32 * 32 + 32 * 16) + 3 * 32 * 48 + 2 * 32
    assert found["export"] == 4 * (2 * 264 * 32 + 2 * layer + 32 + 32 + 8)  # norm, predictor token, two buffers
    code, out = estimated(capsys, *words)
    assert "activations" in out.out
    assert code == 0


def test_quantised_weights_take_half_a_byte(model_folder, rows, tmp_path):
    layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    config = StepJEPAConfig(output_dir=str(tmp_path), keep_adapter=True)
    adapter = peft_config(TrainArguments(rows, model_folder, lora=True))
    whole = profile(trainer_without_numbers(model_folder, rows, config, adapter))
    packed = profile(trainer_without_numbers(model_folder, rows, config, adapter, quantised=True))
    assert whole.trained == packed.trained
    assert whole.parameters - packed.parameters == pytest.approx(layers * 3.484 - 2 * 48 * 32, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--processes", "2"], "--estimate"),
        (["--estimate", "--approach", "standalone"], "adapted"),
        (["--estimate", "--load_in_4bit"], "--lora"),
    ],
)
def test_what_cannot_be_estimated_is_refused(words, reason, model_folder, rows, tmp_path, capsys):
    common = ["--model_name", model_folder, "--train_file", rows, "--output_dir", str(tmp_path / "run")]
    code, out = estimated(capsys, *common, *words)
    assert code == 2
    assert reason in out.err


MEASURED = """
import json, sys
from pathlib import Path
import psutil
from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer

model, rows, options = json.loads(sys.argv[1])
config = StepJEPAConfig(report_to="none", use_cpu=True, save_strategy="no", max_steps=3, **options)
before = psutil.Process().memory_info().rss
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
StepJEPARepresentationTrainer(model, config, rows).train()
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full, all pairs", "checkpointing", "average"])
def test_a_process_takes_what_was_estimated(name, tokenizer, rows, tmp_path, capsys):
    """19 M parameters, so that the libraries' own ups and downs weigh little."""
    width = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "head_dim": 128}
    tiny_model(**width).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {**RUNS[name], "output_dir": str(tmp_path / "run")}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value).lower())]
    code, out = estimated(
        capsys, "--model_name", str(tmp_path), "--train_file", rows, "--max_steps", "3", "--estimate", "--json", *words
    )
    assert code == 0
    task = json.dumps([str(tmp_path), rows, options])
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, task], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(out.out)["device"] == pytest.approx(int(done.stdout.splitlines()[-1]), rel=0.15)
