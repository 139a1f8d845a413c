"""A loss, an objective with an option, a record format, a check, a metric: each from one file outside the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import conversation

from step_jepa.errors import UserError
from step_jepa.losses import LossSpec, register_loss

LOSS = """
import numpy as np
from step_jepa import LossSpec, register_loss

def huber(predicted, target):
    away = (predicted - target).abs()
    return (away.square() / 2).where(away < 1, away - 0.5).mean(-1)

def reference(p, t):
    away = np.abs(p - t)
    return np.mean(np.where(away < 1, away**2 / 2, away - 0.5), axis=1)

register_loss(LossSpec("huber", huber, reference))
"""
OBJECTIVE = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from step_jepa import Objective, option, register_objective
from step_jepa.rows.branches import Pair, last

@register_objective("ends")
@dataclass
class Ends(Objective):
    \"\"\"The state some tokens before the end of the answer predicts the last one.\"\"\"

    before: int = option(3, help="How many tokens before the end.", group="Views", least=1)
    loss: ClassVar[str] = "mse"

    def pairs_of(self, row, example, sampling):
        end = example.steps[-1][1] - 1
        yield Pair(last(range(end - self.before + 1)), last(range(end + 1)))
"""
METRIC = """
from step_jepa import Metric, register_metric

def longest(seen):
    return seen.output.nll.max(), 1

register_metric(Metric("hardest_token", longest))
"""
FORMAT = """
from step_jepa.data.records import RecordFormat, cut_into_steps, make_record, question_turns, register_format

def read(raw, args):
    return make_record(question_turns(raw, args, "task"), cut_into_steps(raw["worked"], args), str(raw["result"]))

register_format(RecordFormat("tasks", frozenset({"task", "worked"}), read))
"""
CHECK = """
from step_jepa.verification.checks import CheckResult, register_check

@register_check("rows are polite", remedy="say please")
def polite(context):
    return CheckResult(True, f"{len(context.examples)} rows")
"""


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    steps = [[f"So {a} + {b} = {a + b}." for b in range(1, 4)] for a in range(6)]
    file.write_text("".join(json.dumps(conversation(*each)) + "\n" for each in steps))
    return str(file)


def step_jepa(folder, module, *words):
    """A command in a process of its own, with one module imported: registries stay as they are here."""
    (folder / "mine.py").write_text(module)
    command = [sys.executable, "-m", "step_jepa", words[0], "--import", str(folder / "mine.py"), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder, module, rows, model_folder, *words):
    quiet = ["--max_steps", "2", "--logging_steps", "1", "--report_to", "none", "--use_cpu", "--save_strategy", "no"]
    files = ["--model_name", model_folder, "--train_file", rows, "--output_dir", str(folder / "out")]
    step_jepa(folder, module, "train", *files, *quiet, *words)
    return json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"][0]


def test_a_loss(tmp_path, rows, model_folder):
    assert train(tmp_path, LOSS, rows, model_folder, "--loss", "huber")["jepa_loss"] > 0
    verified = step_jepa(tmp_path, LOSS, "verify", "--model_name", model_folder, "--train_file", rows, "--json")
    losses = next(each for each in json.loads(verified)["checks"] if each["check"] == "losses")
    assert losses["passed"]
    assert losses["figure"].startswith("9 formulas")


def test_a_loss_without_a_reference_formula_is_refused():
    with pytest.raises(UserError, match="give its formula in float64"):
        register_loss(LossSpec("mine", distance=lambda p, t: p, reference=None))
    with pytest.raises(UserError, match="loss cosine is there already"):
        register_loss(LossSpec("cosine", distance=lambda p, t: p, reference=lambda p, t: p))


def test_an_objective_with_an_option(tmp_path, rows, model_folder):
    log = train(tmp_path, OBJECTIVE, rows, model_folder, "--objective", "ends", "--before", "5")
    assert log["jepa_loss"] > 0
    assert json.loads((tmp_path / "out" / "step_jepa.json").read_text())["before"] == 5
    assert "How many tokens before the end." in step_jepa(tmp_path, OBJECTIVE, "train", "--help")
    test = tmp_path / "test.jsonl"
    records = [json.loads(line) for line in Path(rows).read_text().splitlines()]
    test.write_text("".join(json.dumps({**record, "answer": "1"}) + "\n" for record in records))
    files = ["--model_name", tmp_path / "out", "--test_file", test, "--output_dir", tmp_path / "scores"]
    step_jepa(tmp_path, OBJECTIVE, "evaluate", *files, "--max_new_tokens", "1")
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert (summary["settings"]["objective"], summary["pairs"]) == (["ends"], 6)
    assert summary["jepa_loss"] == pytest.approx(log["jepa_loss"], rel=0.5)


def test_a_metric(tmp_path, rows, model_folder):
    log = train(tmp_path, METRIC, rows, model_folder)
    assert log["hardest_token"] > log["lm_loss"]


def test_a_record_format(tmp_path):
    raw, output = tmp_path / "tasks.jsonl", tmp_path / "out.jsonl"
    raw.write_text(json.dumps({"task": "2 + 2?", "worked": "Two and two\nare 4.", "result": 4}))
    step_jepa(tmp_path, FORMAT, "prepare", "--input_file", raw, "--output_file", output)
    record = json.loads(output.read_text())
    assert record["steps"] == ["Two and two", "are 4."]
    assert record["answer"] == "4"


def test_a_check(tmp_path, rows, model_folder):
    verified = step_jepa(tmp_path, CHECK, "verify", "--model_name", model_folder, "--train_file", rows, "--json")
    assert json.loads(verified)["checks"][-1] == {
        "check": "rows are polite",
        "passed": True,
        "figure": "6 rows",
        "remedy": None,
    }
