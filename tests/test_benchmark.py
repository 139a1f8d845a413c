"""`benchmark` against TRL, on made rows of a length, and what it draws."""

import json
import sys
from itertools import pairwise

import pytest
from test_cli import code

from step_jepa.benchmark.rows import of_length
from step_jepa.benchmark.steps import Bench

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
RANDOM = ["--model_name", "builtin:chains", "--config_overrides", json.dumps(TINY)]
QUICK = ["--batch_size", "2", "--repeats", "2"]


@pytest.fixture
def rows(tmp_path, records):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("length", [16, 64, 121, 200, 1000])
def test_made_rows_have_their_length_and_steps(tokenizer, length):
    examples = of_length(tokenizer, length, 3, seed=1)
    assert examples == of_length(tokenizer, length, 3, seed=1)
    assert examples[0] != examples[1]
    for example in examples:
        borders = [start for start, _ in example.steps] + [length]
        assert len(example.input_ids) == len(example.labels) == length
        assert example.steps == list(pairwise(borders))
        assert len(example.steps) >= 2
        assert all(0 < stop - start <= 120 for start, stop in example.steps)
        assert [label >= 0 for label in example.labels] == [place >= borders[0] for place in range(length)]
        assert not set(example.input_ids) & {258, 259}  # the special tokens
    assert length < 1000 or len(examples[0].steps) >= 9


def test_against_trl(model_folder, rows, capsys):
    pytest.importorskip("trl")
    options = ["--model_name", model_folder, "--train_file", rows, *QUICK, "--json"]
    assert code("benchmark", *options, "--against", "trl", "--memory", "no") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["trl", "trl_defaults", "sft", "one_pass_first", "one_pass_all"]
    for figures in result.values():
        assert figures.keys() == {"seconds", "ratio_to_trl", "tokens", "padded_tokens", "token_ratio", "peak_mb"}
        assert figures["seconds"] > 0
        assert figures["tokens"] <= figures["padded_tokens"]
        assert figures["peak_mb"] is None
    assert result["trl"]["ratio_to_trl"] == 1
    # The same tokens of the same rows.
    assert result["trl"]["tokens"] == result["trl_defaults"]["tokens"] == result["sft"]["tokens"]
    assert result["sft"]["tokens"] < result["one_pass_first"]["tokens"] < result["one_pass_all"]["tokens"]
    assert result["sft"]["token_ratio"] == result["sft"]["tokens"] / result["trl"]["padded_tokens"]


def test_trl_without_its_defaults(model_folder, rows, capsys):
    pytest.importorskip("trl")
    options = ["--model_name", model_folder, "--train_file", rows, *QUICK, "--memory", "no", "--trl_defaults", "no"]
    assert code("benchmark", *options, "--against", "trl", "--variants", "one_pass_all") == 0
    table = capsys.readouterr().out
    assert "x trl" in table
    assert "one_pass_all" in table
    assert "trl_defaults" not in table


def test_the_arms_take_the_same_loss_of_the_same_tokens(model_folder, rows):
    """Like for like: TRL's step and ours without a JEPA term start from the same loss."""
    pytest.importorskip("trl")
    from step_jepa.benchmark.arguments import BenchmarkArguments

    losses = {}
    with Bench(BenchmarkArguments(model_name=model_folder, train_file=str(rows), batch_size=2)) as bench:
        for name in ("sft", "trl"):
            arm = bench.arm(name, bench.examples(None, 2))
            batches, items = arm.trainer.get_batch_samples(arm.batches, 1, bench.device)
            losses[name] = float(arm.trainer.training_step(bench.model, batches[0], items))
    assert losses["trl"] == pytest.approx(losses["sft"], rel=1e-5)


def test_lengths_are_measured_and_drawn(tmp_path, capsys):
    """Random weights, a tokenizer without a model, memory in processes of their own."""
    picture = tmp_path / "made" / "lengths.svg"
    options = [*RANDOM, *QUICK, "--lengths", "64,32", "--variants", "one_pass_all", "--output", picture]
    assert code("benchmark", *options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["32", "64"]
    for length, figures in result.items():
        assert list(figures) == ["sft", "one_pass_all"]
        assert figures["sft"]["tokens"] == figures["sft"]["padded_tokens"] == 4 * int(length)
        assert all(each["peak_mb"] > 0 for each in figures.values())
    drawn = picture.read_text()
    assert "Step-JEPA, all pairs" in drawn
    assert "peak memory" in drawn
    assert code("benchmark", *options) == 2
    assert "is there already" in capsys.readouterr().err
    assert code("benchmark", *options, "--overwrite", "--memory", "no") == 0
    assert "training steps on the same rows of 32 tokens each" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(model_folder, rows, monkeypatch, capsys):
    def refused(words, *options):
        assert code("benchmark", "--model_name", model_folder, *options) == 2
        assert words in capsys.readouterr().err

    data = ("--train_file", rows)
    refused("give one")
    refused("give one", *data, "--lengths", "64")
    refused("--lengths 64,x: give numbers of 16 or more", "--lengths", "64,x")
    refused("--lengths 8: give numbers of 16 or more", "--lengths", "8")
    refused("add --lengths", *data, "--output", "a.png")
    refused("pictures are written as .png or .svg", "--lengths", "64", "--output", "a.pdf")
    refused("give some of them", "--lengths", "64", "--variants", "stp")
    monkeypatch.setitem(sys.modules, "trl", None)
    refused("pip install trl", *data, "--against", "trl")


def test_a_failing_process_says_why(model_folder, rows, monkeypatch):
    from step_jepa.benchmark import memory
    from step_jepa.benchmark.arguments import BenchmarkArguments
    from step_jepa.errors import UserError

    args = BenchmarkArguments(model_name=model_folder, train_file=str(rows), batch_size=2)
    args.model_name = "/nowhere"
    with pytest.raises(UserError, match=r"peak memory of sft was not measured .*no such folder.*--memory no"):
        memory.peak_mb(args, "sft", None)
