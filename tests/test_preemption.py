"""A signal in any phase of a run, on one process and on two; the job scripts that send it and start again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import tiny_model
from test_cli import code, train, train_file  # noqa: F401
from test_trainer import QUIET, STEPS
from transformers import TrainerCallback

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments.parsing import SHIPPED
from step_jepa.batches.even_ranks import BlankFilled
from step_jepa.errors import Terminated, UserError
from step_jepa.process import forked, ranks
from step_jepa.process.signals import ending_at_once, from_parent_alone
from step_jepa.train import command as train_module
from step_jepa.train.command import train as train_and_stop
from step_jepa.training.checkpoints import fault_of
from step_jepa.training.preemption import preemptible

ROOT = Path(__file__).parents[1]
SLURM = SHIPPED / "recipes" / "slurm"
RESUME = ["--resume_from_checkpoint", "True"]


class _SignalAt(TrainerCallback):
    """Sends itself a signal at an event of a step."""

    def __init__(self, event: str, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def a_trainer(tokenizer, records, folder, *callbacks, dropout=0.1, **options):
    settings = {**QUIET, **STEPS, "num_train_epochs": 2, "max_steps": -1, "eval_strategy": "epoch", **options}
    settings |= {"train_sampling_strategy": "random", "save_strategy": "epoch"}
    config = StepJEPAConfig(output_dir=str(folder), **settings)
    model = tiny_model(attention_dropout=dropout)
    return StepJEPARepresentationTrainer(
        model, config, records, records[:3], processing_class=tokenizer, callbacks=list(callbacks)
    )


def train_until_signal(trainer, resume=None):
    with preemptible() as preemption:
        return train_and_stop(trainer, resume, preemption)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.fixture(scope="module")
def undisturbed(tokenizer, records, tmp_path_factory):
    trainer = a_trainer(tokenizer, records, tmp_path_factory.mktemp("undisturbed"))
    assert train_until_signal(trainer)
    return trainer


@pytest.mark.parametrize(
    ("event", "step", "number", "saved"),
    [
        ("on_step_begin", 1, signal.SIGTERM, 2),
        ("on_step_begin", 4, signal.SIGUSR1, 5),  # the last of an epoch: evaluated first
        ("on_evaluate", 5, signal.SIGTERM, 6),
        ("on_save", 5, signal.SIGUSR1, 6),
    ],
)
def test_a_signal_ends_training_with_a_checkpoint_that_goes_on_as_undisturbed(
    undisturbed, tokenizer, records, tmp_path, event, step, number, saved
):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    terminated = pytest.raises(Terminated, match=rf"terminated at step {saved}: .* goes on from .*checkpoint-{saved}$")
    with terminated as stopped:
        train_until_signal(a_trainer(tokenizer, records, tmp_path, _SignalAt(event, step, number)))
    assert stopped.value.exit_code == 143
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))
    checkpoint = tmp_path / f"checkpoint-{saved}"
    assert fault_of(checkpoint) is None
    assert not (tmp_path / "model.safetensors").exists()
    resumed = a_trainer(tokenizer, records, tmp_path)
    assert train_until_signal(resumed, str(checkpoint))
    assert torch.equal(weights(resumed), weights(undisturbed))
    evaluated = [entry["eval_loss"] for entry in undisturbed.state.log_history if "eval_loss" in entry]
    assert [entry["eval_loss"] for entry in resumed.state.log_history if "eval_loss" in entry] == evaluated


def test_a_signal_in_the_last_step_leaves_a_checkpoint_and_the_export_to_be_made(tokenizer, records, tmp_path):
    trainer = a_trainer(tokenizer, records, tmp_path, _SignalAt("on_step_begin", 9))
    assert train_until_signal(trainer)
    assert fault_of(tmp_path / "checkpoint-10") is None


def test_enable_jit_checkpoint_is_the_same_from_python(tokenizer, records, tmp_path):
    trainer = a_trainer(tokenizer, records, tmp_path, _SignalAt("on_step_begin", 1), enable_jit_checkpoint=True)
    with pytest.raises(Terminated, match="terminated at step 2"):
        trainer.train()
    assert fault_of(tmp_path / "checkpoint-2") is None


def test_a_signal_before_training_ends_at_once(model_folder, train_file, tmp_path, capsys, monkeypatch):  # noqa: F811
    def tokenising(*_):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)

    monkeypatch.setattr(train_module, "adapted_trainer", tokenising)
    assert train(model_folder, train_file, tmp_path / "out") == 143
    assert "step-jepa: terminated before the first step: the same command starts again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_command_starts_and_starts_again(model_folder, train_file, tmp_path, capsys, caplog):  # noqa: F811
    caplog.set_level("INFO")
    out = tmp_path / "out"
    out.mkdir()
    (out / "log.txt").write_text("mine")
    assert train(model_folder, train_file, out, "--save_steps", "2", *RESUME) == 0
    assert f"{out} holds no checkpoint yet: training starts from the beginning" in caplog.text
    assert train(model_folder, train_file, out, "--save_steps", "2", *RESUME) == 0
    assert "holds the model after all of its steps (3)" in capsys.readouterr().err
    for checkpoint in out.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    assert train(model_folder, train_file, out, "--save_steps", "2", *RESUME) == 2
    assert "holds no complete checkpoint to resume from, but checkpoint-" in capsys.readouterr().err
    assert (out / "log.txt").exists()


# Processes beside it


def _serve(ready):
    time.sleep(0.2)  # as a worker of a loader is set up
    from_parent_alone()
    ready.set()
    time.sleep(60)


def test_a_process_that_serves_a_run_is_ended_by_the_run_alone():
    context = forked.shielded_fork()
    ready = context.Event()
    process = context.Process(target=_serve, args=(ready,))
    process.start()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for _ in range(2):  # before it has said that it is ready, and after that
        for name in ("-TERM", "-USR1"):  # from another process, as a scheduler sends them
            subprocess.run(["kill", name, str(process.pid)], check=True)
        assert ready.wait(10)
    process.join(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def test_a_process_that_hangs_in_the_fork_is_made_again(monkeypatch):
    fork, made = os.fork, []

    def first_hangs():
        made.append(fork())
        if made == [0]:
            signal.pause()
        return made[-1]

    monkeypatch.setattr(os, "fork", first_hangs)
    monkeypatch.setattr(forked, "PATIENCE", 1.0)
    process = forked.shielded_fork().Process(target=time.sleep, args=(0,))
    process.start()
    process.join(10)
    assert process.exitcode == 0
    assert len(made) == 2
    assert not psutil.pid_exists(made[0])


def test_signals_do_not_reach_the_workers_that_read_rows(tokenizer, records, tmp_path):
    loader = a_trainer(tokenizer, records, tmp_path, dataloader_num_workers=1).get_train_dataloader()
    others = set(psutil.Process().children())
    rows = iter(loader)
    next(rows)
    (worker,) = set(psutil.Process().children()) - others
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(rows)) == len(loader) - 1
    assert not psutil.pid_exists(worker.pid)


def test_other_commands_end_at_once():
    terminated = pytest.raises(Terminated, match="terminated: the same command goes on")
    with terminated, ending_at_once("the same command goes on"):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_the_first_rank_that_fails_says_why(monkeypatch, capsys, tmp_path):
    """Of two, in the place of the store that they share a counter."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    store = SimpleNamespace(add=lambda *_: asked.append(1) or len(asked))
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: store)
    monkeypatch.setattr(ranks, "end", sys.exit)

    def said(error, status):
        ranks.speaks.cache_clear()
        monkeypatch.setattr("step_jepa.cli.dispatch._dispatch", lambda *_, **__: (_ for _ in ()).throw(error))
        assert code("train") == status
        return capsys.readouterr().err

    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:26404")
    for error, status, words in [
        (UserError("x is wrong"), 2, "step-jepa: rank 1: x is wrong\n"),
        (Terminated("terminated at step 2"), 143, "step-jepa: terminated at step 2\n"),
        (lost, 3, "step-jepa: rank 1: another rank is gone, killed or out of reach ([gloo/"),
    ]:
        asked.clear()
        assert said(error, status).startswith(words)
        assert said(error, status) == ""
    asked.clear()
    shown = said(KeyError("a"), 1)
    assert "Traceback" in shown
    assert shown.endswith("step-jepa: rank 1: KeyError: 'a'\n")
    ranks.speaks.cache_clear()


# Two ranks


def test_blank_rows_fill_the_last_step():
    class Batches:
        batch_size, drop_last, sampler = 2, False, range(9)

        def __len__(self):
            return 5

        def __iter__(self):
            yield from [[0, 1], [2, 3], [4, 5], [6, 7], [8]]

    filled = BlankFilled(Batches(), 2)
    assert list(filled) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, None], [None, None]]
    assert len(filled) == 6
    assert list(BlankFilled(Batches(), 5))[-1] == [8, None]


TWO_RANKS = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
import torch
import torch.distributed as dist
from conftest import byte_tokenizer
from test_preemption import _SignalAt, a_trainer, train_until_signal, weights
from step_jepa.errors import Terminated
records, out = json.load(open({records!r})), {out!r}
def make(*callbacks, **options):
    return a_trainer(byte_tokenizer(), records, out, *callbacks, per_device_train_batch_size=2, use_cpu=True,
        dataloader_num_workers=1, **options)
logs = []
for options in {options!r}:
    trainer = make(**options)
    train_until_signal(trainer)
    logs.append(trainer.state.log_history)
undisturbed = make()
train_until_signal(undisturbed)
rank, stopped = dist.get_rank(), []
for step in 1, 3:
    trainer = make(*[_SignalAt("on_step_begin", step, signal.SIGUSR1)] * (rank == 1))
    try:
        train_until_signal(trainer, stopped[-1] if stopped else None)
    except Terminated as error:
        stopped.append(str(error).rpartition(" ")[2])
resumed = make()
train_until_signal(resumed, stopped[-1])
found = [None, None]
dist.all_gather_object(found, (stopped, torch.equal(weights(resumed), weights(undisturbed))))
if rank == 0:
    print(json.dumps([found, logs]))
sys.stdout.flush()
os._exit(0)  # gloo now and then aborts a process that ends the usual way
"""


UNEVEN = [
    {"dropout": 0.0, "lbd": 1.0},
    {"dropout": 0.0, "lbd": 1.0, "loss": "infonce", "regulariser": "vicreg", "learning_rate": 1e-3},
    {"dropout": 0.0, "lbd": 1.0, "gamma": 0.0, "loss": "centred_cosine", "predictor_head": "linear"},
    {"dropout": 0.0, "objective": ["none"], "padding": True},
]


def two_ranks(script: Path, *words, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run([*launcher, str(script), *words], capture_output=True, text=True, timeout=200, **options)


def test_two_ranks_stop_at_one_step_and_go_on_as_undisturbed(tokenizer, records, tmp_path):
    """A signal to one of them; nine rows, so that the last step is uneven, and one row without a pair."""
    (tmp_path / "records.json").write_text(json.dumps(records))
    script, out = tmp_path / "run.py", str(tmp_path / "out")
    places = {"tests": str(ROOT / "tests"), "records": str(tmp_path / "records.json"), "out": out}
    script.write_text(TWO_RANKS.format(**places, options=UNEVEN))
    ended = two_ranks(script)
    assert ended.returncode == 0, ended.stderr
    found, logs = json.loads(ended.stdout.splitlines()[-1])
    assert found == [[[f"{out}/checkpoint-2", f"{out}/checkpoint-4"], True]] * 2
    for options, log in zip(UNEVEN, logs, strict=True):
        one = a_trainer(tokenizer, records, tmp_path / "one", per_device_train_batch_size=4, **options)
        train_until_signal(one)
        for name in ("loss", "lm_loss", "jepa_loss", "pairs", "grad_norm"):
            expected = [entry[name] for entry in one.state.log_history if name in entry]
            assert [entry[name] for entry in log if name in entry] == pytest.approx(expected, rel=1e-5), (options, name)


# Job scripts

SRUN = """#!/bin/bash
echo "$@" >> srun.log
trap 'sleep 0.3; echo signalled >> srun.log; exit 143' USR1
for _ in $(seq 50); do sleep 0.1; [ -e go ] && exit "$(cat go)"; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> scontrol.log; fi
"""
SCRIPTS = {
    "train": (["data.jsonl", "base", "out", "--lora"], "requeue 7"),
    "experiment": (["lab.yaml", "out"], "requeue 6_3"),
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    for name, value in {**job, **array, "PATH": f"{tmp_path}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("number", "status"), [(None, 0), (None, 2), (signal.SIGUSR1, 143), (signal.SIGTERM, 1)])
def test_a_job_is_queued_again_after_a_signal_alone(slurm, name, number, status):
    words, requeue = SCRIPTS[name]
    script = subprocess.Popen(
        ["bash", str(SLURM / f"{name}.sbatch"), *words],
        cwd=slurm,
    )
    while not (slurm / "srun.log").exists():
        time.sleep(0.02)
    if number:
        time.sleep(0.2)  # until `srun` has set its trap
        script.send_signal(number)
    if number != signal.SIGUSR1:
        (slurm / "go").write_text(str(status))
    assert script.wait(10) == status
    queued = (slurm / "scontrol.log").read_text().strip() if (slurm / "scontrol.log").exists() else None
    assert queued == (requeue if number else None)
    assert ("signalled" in (slurm / "srun.log").read_text()) == (number == signal.SIGUSR1)


def test_what_a_job_runs(slurm):
    (slurm / "go").write_text("0")
    (slurm / "out").mkdir()
    lock = slurm / "out" / ".step-jepa.lock"
    lock.write_text("1\nnode9")
    for name, (words, _) in SCRIPTS.items():
        subprocess.run(
            ["bash", str(SLURM / f"{name}.sbatch"), *words],
            cwd=slurm,
            check=True,
        )
    assert lock.exists()
    environment = os.environ | {"SLURM_RESTART_COUNT": "1"}
    words = SCRIPTS["train"][0]
    restart = ["bash", str(SLURM / "train.sbatch"), *words]
    subprocess.run(restart, cwd=slurm, check=True, env=environment)
    assert not lock.exists()
    started, shard, restarted = (slurm / "srun.log").read_text().splitlines()
    assert started == (
        "--kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 7-0 --rdzv-endpoint "
        "node1:29500 -m step_jepa train --train_file data.jsonl --model_name base --output_dir out "
        "--resume_from_checkpoint True --lora"
    )
    assert restarted == started.replace("7-0", "7-1")
    assert shard == "step-jepa experiment --config lab.yaml --output_dir out --shard 3/8"
