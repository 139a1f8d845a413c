"""Experiments: the plan by hand, runs in processes that die, what their differences say, and what they cost."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from peft import LoraConfig
from transformers import set_seed

from step_jepa.arguments.parsing import SHIPPED, parse
from step_jepa.cli import main
from step_jepa.errors import UserError
from step_jepa.experiments import ab, conclusions, cost, results, summary
from step_jepa.experiments.arguments import ExperimentArguments
from step_jepa.experiments.conditions import conditions_of
from step_jepa.experiments.contrasts import Comparison, Interaction, comparisons_of
from step_jepa.experiments.cost import Budget, Cost, OutOfTime, timed_costs
from step_jepa.experiments.data import prepare_data
from step_jepa.experiments.executor import execute_all
from step_jepa.experiments.picture import conditions_chart
from step_jepa.experiments.plan import Run, planned
from step_jepa.experiments.results import ComparisonResult, ConditionResult, ExperimentResults
from step_jepa.experiments.run import (
    IDENTITY_FILE,
    LOCK_FILE,
    LOG_FILE,
    RunResult,
    Seconds,
    _of_answers,
    execute,
    finished_result,
)
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.run_files.names import CELL_FILE, EXPERIMENT_FILE, RESULTS_FILE
from step_jepa.statistics import differences
from step_jepa.statistics.differences import ConditionSummary, Difference
from step_jepa.statistics.power import detectable
from step_jepa.statistics.significance import holm
from step_jepa.statistics.variance import Components

TINY = {
    "model_name": "chains",
    "pretrain": True,
    "config_overrides": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "learning_rate": 0.01,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 2,
    "save_strategy": "no",
}
EXPERIMENT = {
    "name": "tiny",
    "data": {
        "train": {"input_file": "chains", "max_examples": 24, "templates": "train"},
        "test": {"input_file": "chains", "max_examples": 6, "templates": "test"},
    },
    "recipe": TINY,
    "arms": {
        "sft": {"objective": "none"},
        "cosine": {"objective": "step_jepa", "pairs": "all", "controls": ["shuffled_pairs"]},
        "nothing": {"objective": "step_jepa", "lbd": 0},
    },
    "seeds": [3, 5],
    "primary": "cosine",
    "evaluate": {"batch_size": 6, "max_new_tokens": 8},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So that two runs at a time sum in the order in which one does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def code(*argv) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    return stopped.value.code


def config(folder: Path, **changes) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}, sort_keys=False))
    return path


def run_in(folder: Path, **changes) -> Run:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl", "test.jsonl"):
        (folder / "data" / name).write_text("{}\n")
    blank = Run("sft", 0, folder / "cell", folder / "data", {"objective": "none", "model_name": "m"}, {}, None)
    return replace(blank, **changes)


def cells_of(folder: Path) -> dict[str, dict]:
    """What the cells of an experiment hold, without what the clock says."""
    found = {str(path.parent.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob(CELL_FILE)}
    return {name: {key: value for key, value in each.items() if key != "seconds"} for name, each in found.items()}


# The plan


def test_arms_bring_their_controls_and_the_grid_multiplies_those_with_a_jepa_term():
    arms = {"sft": {"objective": "none"}, "cos": {"loss": "cosine", "controls": ["no_loss", "shuffled_pairs"]}}
    assert conditions_of(arms, {"lbd": [0.1, 1], "predictors": [2]}) == {
        "sft": {"objective": "none"},
        "cos lbd=0.1 predictors=2": {"loss": "cosine", "lbd": 0.1, "predictors": 2},
        "cos lbd=0.1 predictors=2.no_loss": {"loss": "cosine", "lbd": 0.1, "predictors": 2, "control": "no_loss"},
        "cos lbd=0.1 predictors=2.shuffled_pairs": {
            **{"loss": "cosine", "lbd": 0.1, "predictors": 2},
            "control": "shuffled_pairs",
        },
        "cos lbd=1 predictors=2": {"loss": "cosine", "lbd": 1, "predictors": 2},
        "cos lbd=1 predictors=2.no_loss": {"loss": "cosine", "lbd": 1, "predictors": 2, "control": "no_loss"},
        "cos lbd=1 predictors=2.shuffled_pairs": {
            **{"loss": "cosine", "lbd": 1, "predictors": 2},
            "control": "shuffled_pairs",
        },
    }


def test_plain_arms_do_not_take_what_a_recipe_says_of_a_jepa_term(tmp_path):
    (tmp_path / "recipe.yaml").write_text("pairs: all\nloss: mse\nobjective: step_jepa\nweight_decay: 0.1\n")
    for recipe in ({"config": str(tmp_path / "recipe.yaml")}, {"pairs": "all", "weight_decay": 0.1}):
        options = {**EXPERIMENT, "recipe": {**EXPERIMENT["recipe"], **recipe}}
        runs = planned(ExperimentArguments(output_dir=str(tmp_path), **options), tmp_path).runs
        by_condition = {run.condition: run.train for run in runs}
        assert by_condition["sft"]["weight_decay"] == 0.1
        assert "pairs" not in by_condition["sft"]
        assert by_condition["cosine"]["pairs"] == "all"


def test_an_arm_is_compared_with_the_baseline_and_with_its_own_controls():
    shuffled = {"control": "shuffled_pairs"}
    arms = {"sft": {}, "cos lbd=1": {}, "cos lbd=1.shuffled_pairs": shuffled, "cos lbd=1.5": {}, "own": shuffled}
    assert comparisons_of(arms, "sft") == [
        *(Comparison(arm, "sft") for arm in ("cos lbd=1", "cos lbd=1.shuffled_pairs", "cos lbd=1.5", "own")),
        Comparison("cos lbd=1", "cos lbd=1.shuffled_pairs"),
    ]


def test_an_interaction_can_be_primary_and_the_only_comparison(tmp_path):
    interaction = "(cosine - sft) - (nothing - cosine.shuffled_pairs)"
    arms = {**EXPERIMENT["arms"], "cosine": {"objective": "step_jepa", "pairs": "all"}}
    arms["cosine.shuffled_pairs"] = {"objective": "step_jepa", "pairs": "all"}
    values = {**EXPERIMENT, "arms": arms, "baseline": None, "primary": interaction, "comparisons": ["cosine - sft"]}
    plan = planned(ExperimentArguments(output_dir=str(tmp_path), **values), tmp_path)
    gain, other = Comparison("cosine", "sft"), Comparison("nothing", "cosine.shuffled_pairs")
    assert plan.primary == Interaction(gain, other)
    assert plan.comparisons == [gain, Interaction(gain, other)]
    assert str(plan.primary) == interaction
    scores = {name: {0: [1.0, place], 1: [0.0, place]} for place, name in enumerate(plan.primary.conditions)}
    assert plan.primary.difference(scores).difference == (0 - 1 - 2 + 3) / 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primary": "coisne"}, "primary is 'coisne', which is no arm: choose among sft, cosine"),
        ({"baseline": "plain"}, "baseline is 'plain', which is no arm"),
        ({"primary": "sft"}, "primary and baseline are both sft"),
        ({"arms": {}}, "an experiment needs arms and data"),
        ({"arms": {"sft": "none"}, "primary": "sft"}, "arms: sft is no table of options"),
        ({"arms": {**EXPERIMENT["arms"], "cosine": {"loss": "cosinus"}}}, "arm cosine: "),
        ({"evaluate": {"batch_size": 0}}, "arm sft: batch_size = 0"),
        ({"data": {"train": {"input_file": "chains"}}}, "data names train: give options of `prepare` for train and"),
        ({"seeds": [1, 1]}, "seeds = [1, 1]: give at least one, and each once"),
        ({"measures": ["acuracy"]}, "measures: there is no acuracy: choose among accuracy"),
        ({"grid": {"lbd": 0.1}}, "grid: lbd is no list of values: write `lbd: [0.1]`"),
        ({"arms": {**EXPERIMENT["arms"], "b": {"controls": "no_loss"}}}, "the controls of b are no list"),
        ({"arms": {**EXPERIMENT["arms"], "b": {"train_file": "f"}}}, "train_file follows from the experiment"),
        ({"evaluate": {"model_name": "m"}}, "model_name follows from the experiment"),
        (
            {"arms": {**EXPERIMENT["arms"], "a b": {"pairs": "all"}, "A_B": {"pairs": "all"}}},
            "arms: a b and another one would share",
        ),
        ({"data": {"train": "chains", "test": "chains"}}, "data: train needs options of `prepare` such as input_file"),
        ({"data": {name: {"input_file": "chains"} for name in ("train", "test")}}, "test problems are trained on too"),
        ({"comparisons": ["cosine - ssp"]}, "comparisons: 'cosine - ssp' is no `arm - arm`"),
        ({"comparisons": ["(cosine - sft) - (sft - ssp)"]}, "comparisons: 'sft - ssp' is no `arm - arm`"),
        ({"primary": "cosine - ssp"}, "comparisons: 'cosine - ssp' is no `arm - arm`"),
        ({"baseline": None}, "primary is cosine, without a baseline: write it as `arm - arm`"),
        ({"measures": ["regex"]}, "measures: there is no regex: choose among accuracy"),
        ({"evaluate": {"match": "exact", "also": ["rejex"]}}, "arm sft: also = rejex: give some of exact, starts_with"),
        ({"evaluate": {"also": ["regex"]}}, "--also is read by --match exact, or another one of whole texts, alone"),
        ({"smoke": True, "smoke_changes": {"seeds": 3}}, "seeds = 3: give a list"),
        ({"shard": "2/2"}, "--shard 2/2: give i/n"),
        ({"shard": "\u00b2/4"}, "--shard \u00b2/4: give i/n with i from 0 to n - 1"),
        ({"shard": "1/-2"}, "--shard 1/-2: give i/n"),
        ({"workers": 0}, "workers = 0"),
        ({"quick": True}, "--quick: this experiment has no quick_changes"),
        ({"quick": True, "quick_changes": {"seedz": [1]}}, "quick_changes has seedz"),
        ({"assumed": {"seeds": 1}}, "give numbers for seed, problem, residual"),
        (
            {"assumed": {"seed": 1e308}},
            "assumed = {'seed': 1e+308}: give numbers for seed, problem, residual, from 0 to 1",
        ),
        ({"assumed": {"seed": float("inf")}}, "assumed = {'seed': inf}: give numbers"),
        ({"assumed": {"problem": float("nan")}}, "assumed = {'problem': nan}: give numbers"),
        ({"assumed": {"residual": -0.2}}, "assumed = {'residual': -0.2}: give numbers"),
        ({"assumed": {"seed": 0, "residual": 0}}, "one of them 1e-12 or more"),
        ({"recipe": "recipes/lab.yaml"}, "recipe = recipes/lab.yaml: give a table"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_before_anything_is_written(tmp_path, capsys, changes, said):
    assert code("experiment", "--config", config(tmp_path, **changes), "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.rpartition("step-jepa: ")[2].count("\n") == 1  # perhaps behind a progress bar
    assert not (tmp_path / "out" / "cells").exists()


# Runs


def test_a_finished_run_stands_for_itself_alone(tmp_path):
    run = run_in(tmp_path)
    assert finished_result(run) is None
    run.folder.mkdir()
    (run.folder / IDENTITY_FILE).write_text(json.dumps(run.identity()))
    assert finished_result(run) is None
    result = RunResult("sft", 0, {"accuracy": [1.0]}, {}, {"lm_loss": None}, 4, 1e9, 70, Seconds(1, 2, 4), 1)
    result.write(run.folder / CELL_FILE)
    assert list(json.loads((run.folder / CELL_FILE).read_text()))[:3] == ["arm", "seed", "measures"]
    assert finished_result(run) == result
    with pytest.raises(UserError, match="was begun with another train: give another --output_dir"):
        finished_result(replace(run, train={"objective": "none", "model_name": "other"}))
    (tmp_path / "data" / "test.jsonl").write_text("{} \n")
    with pytest.raises(UserError, match="another data"):
        finished_result(run)


def test_a_result_of_another_version_is_refused_in_one_line(tmp_path):
    run = run_in(tmp_path)
    run.folder.mkdir()
    (run.folder / CELL_FILE).write_text('{"arm": "sft"}')
    with pytest.raises(UserError, match=rf"has no figures: remove {run.folder}, and the same"):
        finished_result(run)


@pytest.mark.parametrize("seconds", [{}, {"train": "a"}, 5])
def test_a_damaged_result_is_named(tmp_path, seconds):
    run = run_in(tmp_path)
    run.folder.mkdir()
    RunResult("sft", 0, {}, {}, {}, 4, 1e9, 70, Seconds(1, 2, 4), 1).write(run.folder / CELL_FILE)
    content = json.loads((run.folder / CELL_FILE).read_text())
    (run.folder / CELL_FILE).write_text(json.dumps({**content, "seconds": seconds}))
    with pytest.raises(UserError, match=rf"^{run.folder}/cell.json is damaged, its train is missing"):
        finished_result(run)


def test_a_recipe_is_what_it_says_and_not_where_it_lies(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name: chains\npretrain: true\nlearning_rate: 0.1\nseed: 7\n")
    options = {**EXPERIMENT, "recipe": {"config": str(recipe), "learning_rate": 0.2}}
    runs = planned(ExperimentArguments(output_dir=str(tmp_path), **options), tmp_path).runs
    assert runs[0].train == {"model_name": "chains", "pretrain": True, "learning_rate": 0.2, "objective": "none"}
    assert [run.seed for run in runs[:5]] == [3, 3, 3, 3, 5]


def test_data_that_lie_there_are_those_asked_for(tmp_path):
    source = tmp_path / "raw.jsonl"
    source.write_text(json.dumps({"question": "q", "answer": "1 + 1 = 2\n#### 2"}) + "\n")
    data = {"train": {"input_file": str(source)}, "test": {"input_file": "chains", "max_examples": 2}}
    prepare_data(data, tmp_path / "data")
    made = (tmp_path / "data" / "train.jsonl").read_text()
    prepare_data(data, tmp_path / "data")
    with pytest.raises(UserError, match="holds other data for test: give another --output_dir"):
        prepare_data({**data, "test": {"input_file": "chains", "max_examples": 3}}, tmp_path / "data")
    source.write_text(json.dumps({"question": "other", "answer": "1 + 1 = 2\n#### 2"}) + "\n")
    with pytest.raises(UserError, match="holds other data for train"):
        prepare_data(data, tmp_path / "data")
    assert (tmp_path / "data" / "train.jsonl").read_text() == made


def test_a_run_is_executed_by_one_process(tmp_path):
    run = run_in(tmp_path, train={**TINY, "objective": "none"})
    run.folder.mkdir()
    with FileLock(run.folder / LOCK_FILE), pytest.raises(UserError, match=r"another process runs .*: wait for it"):
        execute(run)
    assert not (run.folder / IDENTITY_FILE).exists()


def test_an_answer_with_any_line_break_of_unicode_is_one_row(tmp_path):
    rows = [{"correct": True, "prediction": "a\u2028b\u0085c"}, {"correct": None}, {"correct": False}]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert _of_answers(tmp_path / "predictions.jsonl") == {"accuracy": [1.0, 0.0]}


def test_a_run_that_fails_says_why_and_takes_no_other_with_it(tmp_path):
    nowhere = {"model_name": str(tmp_path / "nowhere"), "objective": "none"}
    refused = run_in(tmp_path / "a", condition="refused", train=nowhere)
    broken = run_in(tmp_path / "b", condition="broken", train={**TINY, "objective": "none"})
    for name in ("train.jsonl", "test.jsonl"):
        (refused.data_folder / name).unlink()  # the identity of a run is of its data: a mistake of ours
    started: list[Run] = []
    failures = {run.condition: failure for run, failure in execute_all([refused, broken], 1, 1, started.append)}
    assert started == [refused, broken]
    assert failures["refused"] == f"it failed; the last lines of {refused.folder / LOG_FILE} say why"
    assert "FileNotFoundError" in (refused.folder / LOG_FILE).read_text()
    assert failures["broken"].startswith(f"{broken.train_file}:1: ")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    assert code("experiment", "--config", config(folder), "--output_dir", folder / "out") == 0
    return folder / "out"


def test_every_run_is_there_and_the_tables_are_of_them(undisturbed):
    cells = cells_of(undisturbed)
    assert sorted(cells) == sorted(
        f"cells/{arm}/seed-{seed}" for arm in ("sft", "cosine", "cosine.shuffled_pairs", "nothing") for seed in (3, 5)
    )
    found = json.loads((undisturbed / RESULTS_FILE).read_text())
    scores = {
        arm: {seed: cells[f"cells/{arm}/seed-{seed}"]["measures"]["accuracy"] for seed in (3, 5)}
        for arm in ("sft", "cosine", "cosine.shuffled_pairs", "nothing")
    }
    assert all(len(values) == 6 for seeds in scores.values() for values in seeds.values())
    assert [(each["found"]["arm"], each["found"]["baseline"], each["primary"]) for each in found["comparisons"]] == [
        ("cosine", "sft", True),
        ("cosine.shuffled_pairs", "sft", False),
        ("nothing", "sft", False),
        ("cosine", "cosine.shuffled_pairs", False),
    ]
    by_hand = differences.difference(scores, "cosine", "sft")
    assert found["comparisons"][0]["found"]["difference"] == by_hand.difference
    rows = list(csv.DictReader((undisturbed / "results.csv").open()))
    assert len(rows) == 8
    assert {row["steps"] for row in rows} == {"4"}
    assert (undisturbed / "results.png").read_bytes().startswith(b"\x89PNG")
    text = (undisturbed / "results.md").read_text()
    assert "| cosine - sft (primary) |" in text
    assert "Sign flips over 2 seeds cannot reject at 5 %: p is at least 0.5." in text
    assert "Stated before the runs: 2 seeds and 6 problems can show no difference of accuracies." in text


def test_arms_of_one_seed_begin_alike_and_seeds_do_not(undisturbed):
    """A JEPA term of weight 0 is SFT to the last bit: the same weights at the start, the same order of rows."""
    cells = cells_of(undisturbed)
    sft, nothing, other = (cells[f"cells/{name}"] for name in ("sft/seed-3", "nothing/seed-3", "sft/seed-5"))
    assert nothing["figures"]["lm_loss"] == sft["figures"]["lm_loss"] != other["figures"]["lm_loss"]
    for name in ("tokens", "flops"):
        assert cells["cells/cosine/seed-3"][name] > sft[name] == nothing[name] > 0


def test_an_adapter_begins_the_same_with_predictors_as_without(model_folder):
    adapters = []
    for predictors in (None, 0, 2):
        set_seed(4)
        lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        model, _ = setup_model_and_tokenizer(model_folder, predictors=predictors, peft_config=lora, seed=4)
        adapters.append([value for name, value in model.named_parameters() if "lora_A" in name])
    assert adapters[0]
    for other in adapters[1:]:
        assert all(map(torch.equal, adapters[0], other))


def test_weights_go_and_curves_stay(undisturbed):
    assert not list(undisturbed.rglob("model.safetensors"))
    state = json.loads((undisturbed / "cells" / "sft" / "seed-3" / "model" / "trainer_state.json").read_text())
    assert sum("lm_loss" in entry for entry in state["log_history"]) == 2


def test_a_second_call_runs_nothing_and_other_options_are_refused(undisturbed, tmp_path, capsys):
    before = {path: path.stat().st_mtime for path in undisturbed.rglob(CELL_FILE)}
    assert code("experiment", "--config", config(tmp_path), "--output_dir", undisturbed) == 0
    assert {path: path.stat().st_mtime for path in undisturbed.rglob(CELL_FILE)} == before
    other = config(tmp_path, recipe={**TINY, "learning_rate": 0.02})
    assert code("experiment", "--config", other, "--output_dir", undisturbed) == 2
    assert "was begun with another train" in capsys.readouterr().err
    fewer = config(tmp_path, seeds=[3])
    assert code("experiment", "--config", fewer, "--output_dir", undisturbed) == 2
    assert "has results of seed 5, which this would replace" in capsys.readouterr().err


def test_shards_make_the_whole_between_them(undisturbed, tmp_path, caplog):
    out = tmp_path / "out"
    assert code("experiment", "--config", config(tmp_path), "--output_dir", out, "--shard", "1/2") == 0
    assert "not finished, and not in the tables: 4 of 8 cells" in caplog.text
    assert code("experiment", "--config", config(tmp_path), "--output_dir", out, "--shard", "0/2", "--workers", 2) == 0
    assert cells_of(out) == cells_of(undisturbed)


def test_killed_twice_and_started_again_it_comes_to_the_same(undisturbed, tmp_path):
    """SIGKILL while the first cell trains, and in the middle of the others."""
    command = [sys.executable, "-m", "step_jepa", "experiment", "--config", str(config(tmp_path))]
    command += ["--output_dir", str(tmp_path / "out")]
    for awaited in ("cells/sft/seed-3/identity.json", "cells/nothing/seed-3/identity.json"):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _wait(tmp_path / "out" / awaited)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(cells_of(tmp_path / "out")) < 8
    assert (
        subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
        == 0
    )
    assert cells_of(tmp_path / "out") == cells_of(undisturbed)


def _wait(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_views_are_measured_where_pairing_is_asked_for(tmp_path):
    changes = {
        "pairing": {"pool": 2, "pool_within": 2},
        "measures": ["centred_margin", "retrieval_across"],
        "arms": {name: EXPERIMENT["arms"][name] for name in ("sft", "nothing")},
        "primary": "nothing",
        "seeds": [3],
    }
    assert code("experiment", "--config", config(tmp_path, **changes), "--output_dir", tmp_path / "out") == 0
    scores = cells_of(tmp_path / "out")["cells/sft/seed-3"]["measures"]
    measured = json.loads((tmp_path / "out/cells/sft/seed-3/pairing/pairing.json").read_text())["models"]
    (figures,) = (each["measures"] for each in measured.values())
    for name in ("centred_margin", "retrieval_across"):
        assert sum(scores[name]) / 6 == pytest.approx(figures[name]["views"]["value"], rel=1e-9)
    said = (tmp_path / "out" / "results.md").read_text()
    assert "one seed does not tell what is due to the seed" in said
    assert "No difference is shown by 1 of 1 other comparison" in said
    tfidf = figures["retrieval_across"]["tfidf"]
    assert re.search(
        rf"\| free: tfidf \|  \| {tfidf['value']:.4f} \|  \|  \| \[[01].\d+, [01].\d+\] \(new problems\) \|", said
    )
    free = json.loads((tmp_path / "out" / "results.json").read_text())["free"]
    assert set(free["retrieval_across"]) == {"tfidf", "embedding", "numbers", "position"}
    assert set(free["centred_margin"]) == {"tfidf", "embedding"}


@pytest.mark.parametrize("name", ["data/train.jsonl", "results.md"])
def test_files_that_no_experiment_made_are_not_written_over(name, tmp_path, capsys):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert code("experiment", "--config", config(tmp_path), "--output_dir", tmp_path / "out") == 2
    assert f"{mine} is there, and no experiment made it: give another --output_dir" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def compared(
    condition: str, baseline: str, difference: float = 0.0, interval=None, holm=None, detectable=0.05, seeds_needed=40
) -> ComparisonResult:
    """With 3 seeds and 200 problems; what is not asked for is made up."""
    figures = Difference(
        condition=condition,
        baseline=baseline,
        seeds=(0, 1, 2),
        left_out=(),
        problems=200,
        difference=difference,
        by_seed=(difference,) * 3,
        new_problems=interval,
        p=None,
        same_problems=None,
        same_problems_p=None,
        sign_flip_p=None,
        bootstrap=None,
        components=None,
    )
    sentences = {"sentence": f"{condition}, holm {holm}.", "sign_flips": "sign flips."}
    return ComparisonResult("accuracy", False, figures, holm, detectable, seeds_needed, **sentences)


def with_accuracies(*accuracies: float) -> dict[str, ConditionResult]:
    conditions = {}
    for place, accuracy in enumerate(accuracies):
        summary = ConditionSummary(3, 200, accuracy, 0.01, None, None)
        conditions[f"arm {place}"] = ConditionResult({"accuracy": summary}, {}, 4, 70, 1e9, Seconds(1, 2, 4))
    return conditions


def test_answers_that_are_cut_off_are_named_where_nothing_is_solved():
    cut = {"truncated": 190.0, "longest_solution": 143.0}
    conditions = {name: replace(arm, figures=cut) for name, arm in with_accuracies(0.0, 0.0).items()}
    (said,) = conclusions.extremes(conditions)
    assert "up to 95% of an arm's answers are cut off: raise max_new_tokens (the longest solution of the" in said
    assert said.endswith("test file has 143 tokens).")


def test_a_budget_drops_seeds_at_the_measured_pace(tmp_path, monkeypatch):
    now = iter([0, 10, 20, 30, 40, 50, 60])
    monkeypatch.setattr("step_jepa.experiments.cost.time.monotonic", lambda: next(now))
    runs = [run_in(tmp_path, seed=seed, condition=name) for seed in (0, 1, 2) for name in "abc"]
    budget = Budget(deadline=62, conditions=3)
    # At 60 a third seed would end at 90.
    assert [budget.allows(run) for run in runs[:7]] == [True] * 6 + [False]


def test_a_run_of_a_seed_that_is_begun_ends_the_budget_by_less_than_itself(tmp_path, monkeypatch):
    now = iter([0, 50, 101])
    monkeypatch.setattr("step_jepa.experiments.cost.time.monotonic", lambda: next(now))
    budget = Budget(deadline=100, conditions=3)
    assert [budget.allows(run_in(tmp_path, condition=name)) for name in "abc"] == [True, True, False]


def results_of(comparisons: list[ComparisonResult], *accuracies: float) -> ExperimentResults:
    about = results.About("tiny", "2025-01-01", "step-jepa experiment", "a machine", [0, 1, 2], "Stated.", [])
    return ExperimentResults(about, ["accuracy"], with_accuracies(*accuracies), {}, comparisons)


def test_the_conclusions_are_the_primary_comparison_and_what_is_shown():
    primary = replace(compared("cosine", "sft", holm=0.9), primary=True)
    others = [compared("shown", "sft", holm=0.01), compared("b", "sft", holm=0.2), compared("c", "sft")]
    assert conclusions.conclusions(results_of([*others, primary])) == [
        "Primary. accuracy, cosine, holm 0.9. Sign flips.",
        "accuracy, shown, holm 0.01.",
        "No difference is shown by 2 of 3 other comparisons; see their intervals.",
    ]


def test_the_primary_comparison_stands_alone_and_holm_is_over_the_others():
    draw = np.random.default_rng(1)
    scores = {"a": draw.random((4, 20)), "b": 1 + draw.random((4, 20)), "c": draw.random((4, 20))}
    tables = {"accuracy": {arm: dict(enumerate(values)) for arm, values in scores.items()}}
    primary, *others = comparisons = [Comparison("b", "a"), Comparison("c", "a"), Comparison("c", "b")]
    found = summary._compared(tables, comparisons, ("accuracy", primary))
    assert found[0].holm is None
    assert found[0].shows_difference
    assert "after Holm" not in found[0].sentence
    adjusted = holm({each: each.difference(tables["accuracy"]).p for each in others})
    assert [each.holm for each in found[1:]] == list(adjusted.values())
    assert "after Holm over 2 comparisons" in found[1].sentence


def test_the_picture_has_each_arm_with_its_interval():
    found = results_of([], 0.25, 0.5)
    summary = replace(found.conditions["arm 1"].measures["accuracy"], new_problems=(0.375, 0.75))
    found.conditions["arm 1"].measures["accuracy"] = summary
    (axes,) = conditions_chart(found).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["arm 0", "arm 1"]
    drawn = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    assert drawn == [[(0.25, 0), (0.25, 0)], [(0.25, 0)], [(0.375, 1), (0.75, 1)], [(0.5, 1)]]


def test_results_are_read_as_they_were_written(undisturbed):
    content = json.loads((undisturbed / RESULTS_FILE).read_text())
    read = results.read_results(undisturbed)
    assert read.to_json() == {**content, "comparisons": read.to_json()["comparisons"]}
    assert json.loads(json.dumps(read.to_json())) == content
    keys = [
        "name",
        "date",
        "command",
        "machine",
        "seeds",
        "power",
        "missing",
        "closing",
        "measures",
        "arms",
        "free",
        "comparisons",
    ]
    assert list(content) == keys
    assert list(content["comparisons"][0]["found"])[:2] == ["arm", "baseline"]


def test_a_dry_run_prints_cells_and_cost_and_leaves_none(tmp_path, capsys):
    mine = tmp_path / "out" / "probe" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert code("experiment", "--config", config(tmp_path), "--output_dir", tmp_path / "out", "--dry_run") == 0
    said = capsys.readouterr()
    assert re.search(r"8 cells, about \d+:\d\d:\d\d with 1 at a time", said.out)
    assert "Stated before the runs" in said.err
    assert not list((tmp_path / "out").rglob(CELL_FILE))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "probe"]
    assert mine.read_text() == "mine"


def test_a_probe_that_fails_leaves_the_log_that_says_why(tmp_path):
    run = run_in(tmp_path, condition="refused", train={"model_name": "chains", "pretrain": True, "objective": "none"})
    for path in (run.train_file, run.test_file):
        path.write_text("no JSON\n")
    with pytest.raises(UserError, match=r"^refused: ") as refused:
        timed_costs([run], tmp_path, 1)
    (log,) = tmp_path.glob(f"probe-*/0/{LOG_FILE}")
    assert str(refused.value).removeprefix("refused: ") == log.read_text().splitlines()[-1]


def test_a_probe_ends_in_time_though_imports_do_not(tmp_path, monkeypatch):
    run, enough = run_in(tmp_path, condition="sft"), threading.Event()
    imports = threading.Thread(target=enough.wait)
    imports.start()
    monkeypatch.setattr(cost, "importing", lambda: imports)
    with pytest.raises(OutOfTime, match=r"no arm was timed, as Python was still importing after 1 s"):
        timed_costs([run], tmp_path, 1, deadline=time.monotonic() + 0.01)
    enough.set()
    assert not list(tmp_path.glob("probe-*"))


def test_a_budget_counts_from_the_start_of_the_command(tmp_path, monkeypatch):
    spans = []
    monkeypatch.setattr(ab, "_run_within", lambda args, span: spans.append(span) or 0)
    monkeypatch.setattr(ab, "command_began", lambda: 100.0)
    assert ab.run(ab.AbArguments("m", "train", "test", str(tmp_path), budget="2m")) == 0
    assert [span.end for span in spans] == [220.0]


# What it costs, and what it says


def test_the_power_stated_beforehand_is_that_of_the_variances_assumed(tmp_path, capsys):
    changes = {"assumed": {"seed": 0.0001, "problem": 0.0002, "residual": 0.01}}
    assert code("experiment", "--config", config(tmp_path, **changes), "--output_dir", tmp_path, "--dry_run") == 0
    alone, first = (detectable(Components(0.0001, 0.0002, 0.01), 2, 6, comparisons=number) for number in (1, 3))
    said = capsys.readouterr().err
    assert f"show a difference of {alone:.3g} with 80 % power at 5 %, as the first of 3 by Holm" in said
    assert f"one of {first:.3g}, if" in said


def test_a_budget_is_spent_on_seeds_and_where_it_is_short_on_fewer_answers_and_steps():
    costs = [Cost(start=5, step=step, steps=100, answer=0.5, answers=200) for step in (1, 2)]
    assert ab.fitted_extent(costs, 510 * 7.5) == (100, 200, 7)
    assert ab.fitted_extent(costs, 510 * 99) == (100, 200, 20)
    # 930 s for 3 seeds: 300 s each without the start, a third of it for answers of 1 s, the rest for steps of 3 s
    assert ab.fitted_extent(costs, 930) == (66, 100, 3)
    with pytest.raises(UserError, match=r"20 steps and 50 answers of 2 arms take 7m: raise --budget"):
        ab.fitted_extent(costs, 300)
    few = [replace(cost, steps=4, answers=10) for cost in costs]  # all that there is
    with pytest.raises(UserError, match=r"4 steps and 10 answers of 2 arms take 2m"):
        ab.fitted_extent(few, 60)


@pytest.mark.parametrize(("text", "wanted"), [("90m", 5400), ("2h", 7200), ("1.5 h", 5400), ("30s", 30), ("1d", 86400)])
def test_times(text, wanted):
    assert ab.seconds_of(text) == wanted


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "-2h"])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match="give a time such as 90m or 2h"):
        ab.seconds_of(text)


@pytest.mark.parametrize(
    ("to_sft", "to_shuffled", "said"),
    [
        (
            (0.02, (-0.01, 0.05), 0.4),
            (0.01, (-0.02, 0.04), 0.6),
            "That Step-JEPA changes the accuracy is not shown: +0.020 [-0.010, +0.050] against SFT, +0.010 "
            "[-0.020, +0.040] against shuffled pairs; with 3 seeds and 200 problems 0.050 could be seen, and a "
            "difference of +0.020 would take 40 seeds.",
        ),
        (
            (0.08, (0.05, 0.11), 0.01),
            (0.01, (-0.02, 0.04), 0.6),
            "Step-JEPA changes the accuracy, but that it is the pairing of steps is not shown: +0.080 [+0.050, +0.110] "
            "against SFT, +0.010 [-0.020, +0.040] against shuffled pairs.",
        ),
        (
            (-0.08, (-0.11, -0.05), 0.01),
            (-0.08, (-0.11, -0.05), 0.01),
            "Step-JEPA changes the accuracy, and the pairing of steps has a part in it: -0.080 [-0.110, -0.050] "
            "against SFT, -0.080 [-0.110, -0.050] against shuffled pairs.",
        ),
        (
            (0.0, (-0.05, 0.05), 1.0, 0.07, None),
            (0.0, None, None, None, None),
            "That Step-JEPA changes the accuracy is not shown: +0.000 [-0.050, +0.050] against SFT, +0.000 (no "
            "interval can be made) against shuffled pairs; with 3 seeds and 200 problems 0.070 could be seen.",
        ),
        (
            (0.0, None, None, None, None),
            (0.0, None, None, None, None),
            "That Step-JEPA changes the accuracy is not shown: +0.000 (no interval can be made) against SFT, +0.000 "
            "(no interval can be made) against shuffled pairs.",
        ),
    ],
)
def test_the_verdict(to_sft, to_shuffled, said):
    comparisons = [
        compared("step_jepa", "sft", *to_sft),
        compared("step_jepa", "step_jepa.shuffled_pairs", *to_shuffled),
        compared("step_jepa.shuffled_pairs", "sft"),
    ]
    assert ab.verdict(results_of(comparisons, 0.4, 0.5)) == said


def test_the_floor_and_the_ceiling_are_said():
    assert conclusions.extremes(with_accuracies(0.0, 0.019))[0].startswith("Every arm solves next to nothing")
    assert conclusions.extremes(with_accuracies(0.99, 1.0))[0].startswith("Every arm solves next to everything")
    assert conclusions.extremes(with_accuracies(0.0, 0.5)) == conclusions.extremes({}) == []


def test_reading_the_data_is_part_of_the_budget(tmp_path):
    data = {part: {"input_file": "chains", "templates": part, "max_examples": 5} for part in ("train", "test")}
    args = ab.AbArguments("chains", "chains", "chains", str(tmp_path), budget="3s")
    with pytest.raises(UserError, match="--budget 3s: imports and reading the data took more than a third of it"):
        ab._prepare_until(time.monotonic(), SimpleNamespace(data=data), args)
    assert not list((tmp_path / "data").glob("*.jsonl"))
    ab._prepare_until(time.monotonic() + 600, SimpleNamespace(data=data), args)
    assert len(list((tmp_path / "data").glob("*.jsonl"))) == 2


def test_ab_from_nothing_but_a_model_and_two_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ab, "MOST_SEEDS", 3)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        yaml.safe_dump({key: value for key, value in TINY.items() if key not in ("model_name", "max_steps")})
    )
    options = ["--model_name", "chains", "--recipe", recipe, "--output_dir", tmp_path / "out", "--max_new_tokens", 8]
    for name, count in (("train", 20), ("test", 6)):
        output = tmp_path / f"{name}.jsonl"
        of = ["--templates", name, "--max_examples", count]
        assert code("prepare", "--input_file", "chains", "--output_file", output, *of) == 0
        options += [f"--{name}_file", output]
    assert code("ab", *options, "--budget", "1s") == 2
    said = capsys.readouterr().err
    assert re.search(r"--budget 1s: (imports and reading|(no arm was|0 of 4 arms) timed.* in a third of it)", said)
    assert code("ab", *options, "--budget", "10m") == 0
    said = capsys.readouterr().out
    assert "Step-JEPA changes the accuracy" in said.splitlines()[-1]
    assert len(said.splitlines()) == len(ab.CONDITIONS) + 1
    closing = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())["closing"]
    assert closing[0].startswith("Chosen for 10m: 3 seeds, ")
    assert said.splitlines()[-1] == " ".join(closing)
    assert f"- {closing[1]}" in (tmp_path / "out" / "results.md").read_text()
    chosen = yaml.safe_load((tmp_path / "out" / EXPERIMENT_FILE).read_text())
    assert chosen["seeds"] == [0, 1, 2]
    assert chosen["evaluate"]["limit"] == 6
    assert code("ab", *options, "--budget", "40s") == 2
    assert "give another --output_dir" in capsys.readouterr().err


@pytest.mark.parametrize("shipped", sorted(SHIPPED.glob("experiments/*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_run_from_end_to_end(shipped, tmp_path):
    """Their smallest version; the whole one is refused by no command."""
    (whole,) = parse("experiment", [ExperimentArguments], ["--config", str(shipped), "--output_dir", str(tmp_path)])
    whole.recipe |= {"bf16": False}  # a GPU's, which this machine may lack
    plan = planned(whole, tmp_path)
    assert len(whole.seeds) >= (2 if "tuning" in shipped.stem else 5)
    assert plan.primary in plan.comparisons
    options = ["--config", str(shipped), "--output_dir", str(tmp_path / "out"), "--smoke"]
    (small,) = parse("experiment", [ExperimentArguments], options)
    assert code("experiment", *options) == 0
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert not found["missing"]
    assert len(cells_of(tmp_path / "out")) == len(planned(small, tmp_path / "out").runs) >= 8
