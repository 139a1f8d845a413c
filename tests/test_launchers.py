"""Runs of two processes under the real launchers, as a user or a scheduler starts, signals and kills them. Slow."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import conversation
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
PASSED_ON = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
RUN = "--use_cpu --report_to none --disable_tqdm True --logging_steps 5 --gradient_accumulation_steps 2 "
RUN += "--per_device_train_batch_size 1 --learning_rate 1e-2 --dataloader_num_workers 1 --lora --lora_dropout 0.1 "
RUN += "--save_steps 20 --eval_steps 15 --eval_strategy steps --resume_from_checkpoint True"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twenty-one rows, so that the last step of an epoch is uneven; one in three has no pair."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    records = [
        conversation(*[f"So {a} + {b} = {a + b}." for b in range(1 + a % 3)], question=f"Is it {a}?") for a in range(21)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def start(launcher, model, rows, out: Path, steps: int, **environment):
    words = ["--model_name", model, "--train_file", rows, "--eval_file", rows, "--output_dir", str(out)]
    command = [sys.executable, "-m", *launcher, "-m", "step_jepa", "train", *words, *RUN.split()]
    log = open(f"{out}.log", "a")  # noqa: SIM115
    return subprocess.Popen(
        [*command, "--max_steps", str(steps)],
        env=os.environ | PASSED_ON | environment,
        stdout=log,
        stderr=log,
    )


def ranks_of(launcher) -> list[psutil.Process]:
    """Its two processes, once they are there."""
    found = []
    while len(found) < 2 and launcher.poll() is None:
        found = [child for child in psutil.Process(launcher.pid).children() if "step_jepa" in " ".join(child.cmdline())]
        time.sleep(0.05)
    return found


def wait_for(path: Path, launcher) -> None:
    while not path.exists() and launcher.poll() is None:
        time.sleep(0.02)


def exported(out: Path):
    return load_file(out / "model.safetensors")


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def size_of(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def test_twenty_signals_leave_the_same_weights(model_folder, rows, tmp_path):
    """At random moments from start to end, as the log grows, to the launcher or to one rank; started again."""
    steps, generator, reached = 60, random.Random(0), []
    assert start(TORCHRUN, model_folder, rows, tmp_path / "undisturbed", steps).wait() == 0
    whole, undisturbed = size_of(tmp_path / "undisturbed.log"), exported(tmp_path / "undisturbed")
    out = tmp_path / "out0"
    while len(reached) < 20:
        log = Path(f"{out}.log")
        moment = size_of(log) + generator.uniform(0, whole)
        launcher = start(TORCHRUN, model_folder, rows, out, steps)
        receivers = [launcher, *ranks_of(launcher)]
        while launcher.poll() is None and size_of(log) < moment:
            time.sleep(0.02)
        if launcher.poll() is None:
            time.sleep(generator.uniform(0, 0.3))
            generator.choice(receivers).send_signal(generator.choice([signal.SIGTERM, signal.SIGUSR1]))
            reached.append(max((int(path.name[11:]) for path in out.glob("checkpoint-*")), default=0))
            print(reached)
        if launcher.wait(100) == 0:
            assert equal(exported(out), undisturbed)
            out = tmp_path / f"out{len(reached)}"
    assert start(TORCHRUN, model_folder, rows, out, steps).wait() == 0
    assert equal(exported(out), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_accelerate_launch_passes_signals_on(model_folder, rows, tmp_path, number):
    out = tmp_path / "out"
    launcher = start(ACCELERATE, model_folder, rows, out, 5000)
    wait_for(out / "checkpoint-20" / "trainer_state.json", launcher)
    launcher.send_signal(number)
    assert launcher.wait(60) != 0
    said = Path(f"{out}.log").read_text()
    assert said.count("step-jepa: terminated at step ") == 1
    assert not (out / "adapter_model.safetensors").exists()


def test_a_killed_rank_ends_the_others_and_the_last_checkpoint_resumes(model_folder, rows, tmp_path):
    out = tmp_path / "out"
    launcher = start(TORCHRUN, model_folder, rows, out, 5000)
    wait_for(out / "checkpoint-20" / "trainer_state.json", launcher)
    one, other = ranks_of(launcher)
    other.kill()
    assert launcher.wait(60) != 0
    assert not one.is_running()
    said = Path(f"{out}.log").read_text()
    assert said.count("another rank is gone, killed or out of reach") == 1
    assert "start again with --resume_from_checkpoint True" in said
    last = max(int(path.name.partition("-")[2]) for path in out.glob("checkpoint-*"))
    assert start(TORCHRUN, model_folder, rows, out, last + 2).wait(100) == 0
