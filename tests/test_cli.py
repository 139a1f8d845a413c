"""The commands as a user types them, on files: what they print, what they refuse, what they leave alone."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from step_jepa import standalone
from step_jepa.arguments.parsing import SHIPPED, parse
from step_jepa.cli import COMMANDS, main
from step_jepa.data.example import IGNORED

ROOT = Path(__file__).parents[1]
QUICK = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--use_cpu", "--report_to", "none"]


@pytest.fixture
def train_file(records, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def code(*argv) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    return stop.value.code or 0


def train(model, data, out, *options) -> int:
    return code("train", "--train_file", data, "--model_name", model, "--output_dir", out, *QUICK, *options)


def state_of(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_help_names_every_command(capsys):
    assert code("--help") == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert code() == 0
    assert capsys.readouterr().out == out


def test_help_into_a_pipe_that_is_closed_is_no_fault():
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-m", "step_jepa", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert code(*command.split(), "--help") == 0
    assert f"step-jepa {command}" in capsys.readouterr().out


def test_inspect_steps_prints_one_json_list(model_folder, train_file, capsys):
    files = ["--model_name", model_folder, "--train_file", train_file]
    assert code("inspect", "steps", *files, "--limit", 2, "--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert [sorted(entry) for entry in out] == [["index", "input_ids", "labels", "steps", "text"]] * 2
    tokenizer = byte_tokenizer()
    for entry in out:
        for step in entry["steps"]:
            assert entry["text"][slice(*step["char"])].strip() == step["text"]
            assert tokenizer.decode(entry["input_ids"][slice(*step["tokens"])]).strip() == step["text"]
    assert out[0]["steps"][0]["text"] == "So 1 + 0 = 1."
    assert code("inspect", "steps", *files) == 0
    assert "step 0: S|o|" in capsys.readouterr().out


def test_train_by_both_approaches(model_folder, train_file, tmp_path, caplog):
    caplog.set_level("INFO")
    losses = []
    for approach in ("adapted", "standalone"):
        out = tmp_path / approach
        options = ["--approach", approach, "--step_jepa", "--lbd", "0.5", "--logging_steps", "1"]
        assert train(model_folder, train_file, out, *options, "--eval_file", train_file) == 0
        losses.append([entry["loss"] for entry in state_of(out) if "loss" in entry])
        assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight.shape[0] == 264
        assert load_file(out / "predictors.safetensors")["predictors"].shape == (1, 32)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 3
    assert caplog.text.count("1 with fewer than two steps") == 2  # adapted, training and held-out rows
    assert caplog.text.count("1 without a pair of steps") == 2  # standalone
    assert any("eval_cosine_unpaired" in entry for entry in state_of(tmp_path / "adapted"))


def test_standalone_with_lora_and_what_it_refuses(model_folder, train_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(model_folder, train_file, out, "--approach", "standalone", "--lora", "--keep_adapter") == 0
    assert (out / "adapter_config.json").exists()
    for options in (
        *(["--pairs", "all"], ["--loss", "infonce"], ["--objective", "llm_jepa"], ["--jepa_ratio", "0.5"]),
        *(["--control", "past_target"], ["--target", "context"], ["--lbd", "auto"], ["--train_all", "True"]),
    ):
        assert train(model_folder, train_file, tmp_path / "x", "--approach", "standalone", *options) == 2
        assert f"standalone has no {options[0]}" in capsys.readouterr().err


def test_recipes_and_overrides(train_file, model_folder, tmp_path):
    from step_jepa.adapted import StepJEPAConfig
    from step_jepa.train.arguments import TrainArguments

    for recipe in (SHIPPED / "recipes").glob("*.yaml"):
        needed = ["--train_file", train_file, "--model_name", model_folder, "--output_dir", str(tmp_path)]
        types = [TrainArguments, StepJEPAConfig]
        args, config = parse("train", types, ["--config", str(recipe), *needed, "--lbd", "0.7"])
        objective = "llm_jepa" if recipe.stem == "seed_llm_jepa" else "step_jepa"
        assert (args.model_name, config.lbd, config.objective) == (model_folder, 0.7, [objective])
        assert args.lora != (config.pretrain or recipe.stem == "seed_llm_jepa")  # which trains all weights
    quick = tmp_path / "quick.yaml"
    quick.write_text("lora: true\npairs: random\nlr_scheduler_kwargs: {a: 1}\nsave_strategy: no\n")
    args, config = parse("train", [TrainArguments, StepJEPAConfig], ["--config", str(quick), *needed])
    assert (args.lora, config.pairs, config.lr_scheduler_kwargs) == (True, "random", {"a": 1})
    assert config.save_strategy == "no"


def test_compare_agrees_and_names_what_differs(model_folder, train_file, capsys, monkeypatch):
    options = ["--model_name", model_folder, "--train_file", train_file, "--json"]
    for extra in ([], ["--predictors", "0"], ["--loss", "mse", "--predictors", "3"], ["--loss", "l2"]):
        assert code("compare", *options, *extra) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["agree"] is True
        assert result["n"] == 9
        assert abs(result["jepa_loss"]["standalone"] - result["jepa_loss"]["adapted"]) < 1e-5
        assert 0 < result["grad_max_rel_diff"] < 1e-3

    broken = {
        "label 0": ("encode", lambda *a: _with_labels(whole["encode"](*a))),
        "span of step 0": ("encode", lambda *a: _with_spans(whole["encode"](*a))),
        "example 0: the mask of its": ("second_rows", lambda *a: _seeing(whole["second_rows"](*a))),
        "a view": ("views", lambda *a: tuple(view * 1.01 for view in whole["views"](*a))),
        "the LM loss": ("language_model_pass", lambda *a: (whole["language_model_pass"](*a)[0] * 1.001, None)),
        "the JEPA loss": ("distances", lambda *a: whole["distances"](*a) + 0.001),
        "the gradient of": ("distances", lambda p, *a: whole["distances"](p.detach(), *a)),
    }
    whole = {name: getattr(standalone, name) for name, _ in broken.values()}
    for words, (name, other) in broken.items():
        with monkeypatch.context() as patch:
            patch.setattr(standalone, name, other)
            assert code("compare", *options) == 1
            said = capsys.readouterr()
            assert words in json.loads(said.out)["first_difference"]
            assert words in said.err


def _with_labels(example):
    example.labels[0] = 5
    return example


def _with_spans(example):
    example.spans[0] = (example.spans[0][0] + 1, example.spans[0][1])
    return example


def _seeing(rows):
    rows["sees"][:] = True
    return rows


def test_benchmark_measures_every_variant(model_folder, train_file, capsys):
    options = ["--model_name", model_folder, "--train_file", train_file, "--max_length", "200", "--batch_size", "2"]
    assert code("benchmark", *options, "--repeats", "1", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sft"].keys() == {"seconds", "peak_mb", "ratio_to_sft", "token_ratio"}
    for name in ("one_pass_first", "one_pass_all", "two_pass", "two_pass_padded"):
        assert result[name]["ratio_to_sft"] > 0
    tokens = {name: figures["token_ratio"] for name, figures in result.items() if "token_ratio" in figures}
    # rows of the example: first pair one predictor and the second step more
    assert 1.05 < tokens["one_pass_first"] < tokens["one_pass_all"] < 2
    assert tokens["sft"] == tokens["context_all_k0"] == tokens["stp"] == tokens["ssp"] == 1  # the trunk alone
    assert 1 < tokens["context_first"] < tokens["context_all"] < tokens["one_pass_first"]
    assert result["sft"]["peak_mb"] is None


def test_benchmark_two_passes_give_the_views_of_one(tokenizer, records, tmp_path):
    from test_one_pass import trainer_for

    from step_jepa.batches.collate import BranchCollator
    from step_jepa.benchmark.variants import padded, second_row

    trainer = trainer_for(tiny_model(), tokenizer, records, tmp_path, pairs="first")
    examples, forward = trainer.train_dataset.examples[:3], trainer.representation.forward
    one = forward(trainer.data_collator([trainer.train_dataset[index] for index in range(3)]))
    rows = [second_row(example, [264, 265]) for example in examples]
    two = forward(padded(BranchCollator(258)(rows), 150, 258))
    torch.testing.assert_close(two.views.predicted, one.views.predicted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two.views.target, one.views.target, rtol=1e-5, atol=1e-5)
    assert len(two.nll) == 0
    assert [len(row.input_ids) for row in rows] == [len(example.input_ids) + 2 for example in examples]
    assert all(set(row.labels) == {IGNORED} for row in rows)


def test_the_demo_runs_end_to_end(model_folder, tmp_path, capsys):
    if find_spec("reasoning_gym") is None:  # not to be imported: see sources.py
        pytest.skip("reasoning-gym is not installed")
    out = tmp_path / "demo"
    small = ["--train_problems", "6", "--test_problems", "3", "--max_new_tokens", "8", "--max_steps", "2"]
    assert code("demo", "--output_dir", out, "--model_name", model_folder, *small) == 0
    table = capsys.readouterr().out
    for words in ("held-out LM loss", "cosine, unpaired views", "accuracy", "seconds per training step"):
        assert words in table
    assert {path.name for path in out.iterdir()} == {
        *("train.jsonl", "test.jsonl", "before", "after", "model", "report.html")
    }


BAD = {
    "empty": ("", "holds no records"),
    "broken": ('{"messages": [', "not JSON"),
    "no_assistant": ('{"messages": [{"role": "user", "content": "a"}]}', "not the assistant's"),
    "unknown": ('{"text": "a"}', "format not recognised"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    "command", ["train", "inspect steps", "compare", "benchmark", "evaluate", "pairing", "surprise"]
)
def test_bad_files_are_refused_in_one_line(kind, command, model_folder, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    good = '{"question": "a", "answer": "b\\n#### 1"}\n' if kind != "empty" else ""
    path.write_text(good + BAD[kind][0] + "\n" if good else "")
    testing = command in ("evaluate", "pairing", "surprise")
    file = "--test_file" if testing else "--train_file"
    out = ["--output_dir", tmp_path / "out"] if testing or command == "train" else []
    assert code(*command.split(), "--model_name", model_folder, file, path, *out) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("step-jepa: ")
    assert BAD[kind][1] in error
    assert str(path) in error
    assert kind == "empty" or f"{path}:2" in error
    assert not (tmp_path / "out").exists()


def test_other_bad_input(model_folder, train_file, tmp_path, capsys):
    def refused(words, *argv):
        assert code(*argv) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("step-jepa: ")
        assert words in said

    full = tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("mine")
    model, data = ["--model_name", model_folder], ["--train_file", train_file]
    out = ["--output_dir", tmp_path / "out"]
    refused("no command 'fly'", "fly")
    refused("is not empty", "train", *model, *data, "--output_dir", full)
    assert [path.name for path in full.iterdir()] == ["kept.txt"]
    refused("--output_dir is required", "train", *model, *data)
    refused("predictors = -1: give 0 or more", "train", *model, *data, *out, "--predictors", "-1")
    refused("max_length = 3: raise it", "train", *model, *data, *out, "--max_length", "3")
    refused("no such folder", "train", "--model_name", tmp_path / "no-model", *data, *out)
    refused("cannot load the tokenizer", "train", "--model_name", tmp_path.name, *data, *out)
    (tmp_path / "no_model").mkdir()
    no_model = ("--model_name", str(tmp_path / "no_model"))
    refused("no_model holds no model, no config.json", "train", *no_model, *data, *out)
    refused("unknown: --lamda", "train", *model, *data, *out, "--lamda", "1")
    refused("unknown: --modle_name (did you mean --model_name?", "train", "--modle_name", model_folder, *data)
    refused("needs a CUDA device", "train", *model, *data, *out, "--load_in_4bit", "--lora", "--keep_adapter")
    refused("add --keep_adapter", "train", *model, *data, *out, "--load_in_4bit", "--lora")
    refused("add --lora", "train", *model, *data, *out, "--load_in_4bit")
    refused("random or sequential", "train", *model, *data, *out, "--train_sampling_strategy", "group_by_length")
    refused("eval", "train", *model, *data, *out, "--eval_strategy", "steps")
    refused("foo", "train", *model, *data, *out, "--model_init_kwargs", '{"foo": 1}')
    refused("holds no complete checkpoint", "train", *model, *data, *out, "--resume_from_checkpoint", "/nowhere")
    refused("config_overrides = x: give JSON", "train", *model, *data, *out, "--pretrain", "--config_overrides", "x")
    refused("give a number, or auto", "train", *model, *data, *out, "--lbd", "much")
    refused("objective = fly", "train", *model, *data, *out, "--objective", "step_jepa", "fly")
    refused("weights = -1.0", "train", *model, *data, *out, "--weights", "-1")
    refused("seed = -1: give 0 to 4294967295", "train", *model, *data, *out, "--seed", "-1")
    refused("size = 0: give 1 or more", "train", *model, *data, *out, "--per_device_train_batch_size", "0")
    refused("steps = 0: give 1 or more", "train", *model, *data, *out, "--gradient_accumulation_steps", "0")
    refused("learning_rate = -1.0: give 0 or more", "train", *model, *data, *out, "--learning_rate", "-1")
    refused("there is nothing to train", "train", *model, *data, *out, "--num_train_epochs", "0")
    refused("--gamma more than 0", "train", *model, *data, *out, "--lbd", "auto", "--gamma", "0")
    refused("--loss l2 is not read by stp", "train", *model, *data, *out, "--objective", "stp", "--loss", "l2")
    refused("--lora_r is read by --lora alone", "train", *model, *data, *out, "--lora_r", "4")
    heads = '{"num_attention_heads": 3}'
    refused("no model of", "train", *model, *data, *out, "--pretrain", "--config_overrides", heads)
    refused("is no run's folder", "pairing", *model, "--test_file", train_file, *out, "--views_like", model_folder)
    refused("cannot load", "pairing", *model, tmp_path.name, "--test_file", train_file, *out)
    refused("running means", "evaluate", *model, "--test_file", train_file, *out, "--loss", "centred_cosine")
    refused("2 weights for 1 objective:", "train", *model, *data, *out, "--weights", "1", "2")
    refused("--variants fly", "benchmark", *model, *data, "--variants", "fly")
    refused("batch_size = 0: give 1 or more", "benchmark", *model, *data, "--batch_size", "0")
    refused("lbd = 0.0: give more than 0", "compare", *model, *data, "--lbd", "0")
    refused("pool = 1", "pairing", *model, "--test_file", train_file, *out, "--pool", "1")
    refused("contradict", "train", *model, *data, *out, "--step_jepa", "--objective", "none")
    refused("lbd = nan", "train", *model, *data, *out, "--lbd", "nan")
    refused("limit = -1", "inspect", "steps", *model, *data, "--limit", "-1")
    refused("is not empty", "train", *model, *data, "--output-dir", full)
    (tmp_path / "file").write_text("mine")
    refused("Not a directory", "train", *model, *data, "--output_dir", tmp_path / "file" / "sub", *QUICK)
    refused("cannot read", "train", "--config", tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    refused("no table of options", "train", "--config", tmp_path / "list.yaml")
    bare = tmp_path / "bare"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    refused("no chat template", "inspect", "steps", "--model_name", bare, *data)
    flex = ["--model_init_kwargs", '{"attn_implementation": "flex_attention"}']
    refused("flex_attention", "train", *model, *data, *out, *flex)


def test_slow_tokenizers_are_refused(tokenizer, records, monkeypatch):
    from step_jepa.data.tokens import encode
    from step_jepa.errors import UserError

    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UserError, match="no character offsets"):
        encode(tokenizer, records[0]["messages"], records[0]["steps"])


def test_overwrite_leaves_nothing_of_the_run_before(model_folder, train_file, tmp_path):
    out = tmp_path / "out"
    assert train(model_folder, train_file, out, "--lora", "--keep_adapter", "--save_steps", "1") == 0
    assert (out / "checkpoint-3").exists()
    assert train(model_folder, train_file, out, "--objective", "none", "--save_strategy", "no", "--overwrite") == 0
    names = {path.name for path in out.iterdir()}
    assert not names & {"adapter_config.json", "adapter_model.safetensors", "predictors.safetensors", "checkpoint-3"}
    assert "model.safetensors" in names


def test_an_adapters_checkpoint_serves_as_a_model(model_folder, train_file, tmp_path):
    """What an earlier version wrote, with predictor rows in the vocabulary, is refused (tests/test_predictors.py)."""
    out = tmp_path / "out"
    assert train(model_folder, train_file, out, "--lora", "--save_steps", "3") == 0
    assert code("compare", "--model_name", out / "checkpoint-3", "--train_file", train_file) == 0


def test_compare_takes_what_is_not_a_number_for_a_difference(model_folder, train_file, capsys, monkeypatch):
    distances = standalone.distances
    monkeypatch.setattr(standalone, "distances", lambda *a: distances(*a) * float("nan"))
    assert code("compare", "--model_name", model_folder, "--train_file", train_file) == 1
    assert "the JEPA loss" in capsys.readouterr().err


def test_resuming_what_is_finished_or_incomplete(model_folder, train_file, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    assert train(model_folder, train_file, out, "--save_steps", "1") == 0
    again = ["--resume_from_checkpoint", "True"]
    weights, written = (out / "model.safetensors").read_bytes(), (out / "model.safetensors").stat().st_mtime_ns
    assert train(model_folder, train_file, out, *again) == 0
    assert "after all of its steps (3)" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    (out / "trainer_state.json").unlink()  # killed while it was exported: straight to the export
    (out / "model.safetensors").unlink()
    assert train(model_folder, train_file, out, *again) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    (out / "checkpoint-3" / "trainer_state.json").unlink()  # killed while it was saved: the one before is taken
    (out / "trainer_state.json").unlink()
    assert train(model_folder, train_file, out, *again) == 0
    assert "checkpoint-3/trainer_state.json is missing: no checkpoint to go on from" in caplog.text
    assert (out / "model.safetensors").read_bytes() == weights


def test_ctrl_c_while_training(model_folder, train_file, tmp_path, capsys, monkeypatch):
    from step_jepa import StepJEPARepresentationTrainer

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(StepJEPARepresentationTrainer, "compute_loss", interrupted)
    assert train(model_folder, train_file, tmp_path / "out") == 130
    assert "interrupted at step 0: there is no checkpoint" in capsys.readouterr().err


def test_rows_without_pairs_are_said_to_be_plain_fine_tuning(model_folder, tmp_path, caplog):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"question": "a", "answer": "#### 1"}) + "\n")
    assert train(model_folder, file, tmp_path / "out") == 0
    assert "no row has a pair" in caplog.text


def test_the_readmes_python_runs(model_folder, train_file, tmp_path):
    prepared, out = tmp_path / "prepared.jsonl", tmp_path / "out"
    assert code("prepare", "--input_file", train_file, "--output_file", prepared) == 0
    example = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    for theirs, ours in {
        "HuggingFaceTB/SmolLM2-135M-Instruct": model_folder,
        "train.jsonl": prepared,
        'output_dir="out"': f'output_dir="{out}", max_steps=2, use_cpu=True',
    }.items():
        assert theirs in example
        example = example.replace(theirs, str(ours))
    exec(compile(example, "README.md", "exec"), {})
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight.shape[0] == 264
