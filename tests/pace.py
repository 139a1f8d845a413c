"""Seconds of training steps of this tree and of another, interleaved in one run: `make same-pace BASE=COMMIT`.

    PYTHONPATH=src python tests/pace.py OTHER/src RECORDS --batch_size 4 --repeats 3

Each build steps in a process of its own, one at a time; every second round goes the other way round. What is printed
are medians, and medians of the ratios within a round: to plain fine-tuning of the same build, and of this tree to the
other; with one thread of processor time, which other work on the machine hardly touches. Peaks are of the resident set,
above the loaded model; AdamW's two states are in all of them.

It uses nothing of the package but what users import. RECORDS is a file of records with `messages` and `steps`, or
LENGTHxSTEPS for made rows, such as 4096x50.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ARMS = {"plain": {"objective": ["none"]}, "first": {"pairs": "first"}, "all": {"pairs": "all"}}


def stepper(given: argparse.Namespace) -> None:
    """A process that trains one step of an arm whenever its name comes in, and answers with the seconds."""
    import torch

    from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer, setup_model_and_tokenizer

    torch.set_num_threads(given.threads)
    model, tokenizer = setup_model_and_tokenizer(given.model_name, predictors=1)
    layers = given.layers or model.config.num_hidden_layers
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:layers], layers
    records = made(tokenizer, given) if "x" in given.records else read(given)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loaded = psutil.Process().memory_info().rss
    arms: dict[str, Any] = {}
    for name in given.arms:
        config = StepJEPAConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=given.batch_size,
            max_length=None,
            report_to="none",
            use_cpu=True,
            activation_checkpointing=given.checkpointing,
            **ARMS[name],
        )
        trainer = StepJEPARepresentationTrainer(
            model, config, records, processing_class=tokenizer, optimizers=(optimizer, schedule)
        )
        trainer.current_gradient_accumulation_steps = 1
        arms[name] = trainer, iter(trainer.get_train_dataloader())
    if given.checkpointing:
        model.activation_checkpointing_enable()
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print("ready", flush=True)
    for line in sys.stdin:
        trainer, batches = arms[line.strip()]
        model.train()
        peak = [0]
        with watched(peak):
            start = clock()
            (batch,), items = trainer.get_batch_samples(batches, 1, model.device)
            trainer.training_step(model, batch, items)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad()
            took = clock() - start
        print(json.dumps([took, batch["input_ids"].numel(), (peak[0] - loaded) / 2**20]), flush=True)


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """Puts the largest resident set of the meantime, in bytes, into the list."""
    process, over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read(given: argparse.Namespace) -> list[dict[str, Any]]:
    """As many records as are stepped through."""
    lines = Path(given.records).read_text().splitlines()
    return [json.loads(line) for line in lines[: (given.repeats + 1) * given.batch_size]]


def made(tokenizer: Any, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of about so many tokens in so many steps."""
    length, count = map(int, given.records.split("x"))
    rng = random.Random(0)
    words = [" number", " apples", " is", " then", " we", " have", " and", " more", " 4", " of"]
    steps = ["So" + "".join(rng.choices(words, k=length // count - 4)) + "." for _ in range(count)]
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "\n\n".join(steps)}]
    return [{"messages": turns, "steps": steps}] * ((given.repeats + 1) * given.batch_size)


def start(source: Path, words: list[str]) -> subprocess.Popen[str]:
    """The process of a build."""
    process = subprocess.Popen(
        [sys.executable, __file__, *words, "--step"],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert answer(process) == "ready"
    return process


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that is an answer. Builds print other lines, too."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(("ready", "[")):
            return line.strip()
    sys.exit(f"a build ended with exit code {process.wait()}")


def step(process: subprocess.Popen[str], arm: str) -> list[float]:
    """Seconds, tokens and peak of one step."""
    assert process.stdin
    process.stdin.write(arm + "\n")
    process.stdin.flush()
    figures: list[float] = json.loads(answer(process))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("records")
    parser.add_argument("--model_name", default="smollm2")
    parser.add_argument("--layers", type=int, help="as many as the model has, if not given")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        stepper(given)
        return
    builds = {"other": given.other, "this": Path(__file__).parents[1] / "src"}
    processes = {name: start(source, sys.argv[1:]) for name, source in builds.items()}
    measured: dict[tuple[str, str], list[list[float]]] = {(name, arm): [] for name in builds for arm in given.arms}
    for repeat in range(-1, given.repeats):
        for name, arm in list(measured)[:: -1 if repeat % 2 else 1]:
            figures = step(processes[name], arm)
            if repeat >= 0:  # the one before is to warm up
                measured[name, arm].append(figures)
    for (name, arm), steps in measured.items():
        seconds, tokens, peaks = zip(*steps, strict=True)
        bases = {"plain": measured[name, "plain"], "other": measured["other", arm]}
        ratios = {base: median(a[0] / b[0] for a, b in zip(steps, of, strict=True)) for base, of in bases.items()}
        compared = "  ".join(f"x {base} {ratio:.3f}" for base, ratio in ratios.items())
        print(f"{name:5} {arm:5} {median(seconds):7.2f} s {sum(tokens):7} tokens {max(peaks):7.0f} MB  {compared}")


if __name__ == "__main__":
    main()
