"""`step-jepa pairing` on real input, and what a run leaves beside its model for those who measure it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from safetensors.torch import load_file

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.cli import main
from step_jepa.data.reading import read_records
from step_jepa.errors import UserError
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.pairing.command import PairingArguments, held_out_pairs, read_views, run
from step_jepa.training.saved_options import view_options

QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture(scope="module")
def test_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "test.jsonl"
    rows = [
        conversation(*[f"So {a} + {b} = {a + b}" for b in range(2 + a % 3)], f"#### {a}", question=f"Is it {a}?")
        for a in range(1, 13)
    ]
    path.write_text("".join(json.dumps({**row, "answer": "1"}) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, test_file, model_folder):
    """A short run with a predictor head, a centred loss, and steps read where their content ends."""
    folder = str(tmp_path_factory.mktemp("runs") / "out")
    options = {"max_steps": 3, "read": "content", "loss": "centred_cosine", "predictor_head": "linear", "pairs": "all"}
    config = StepJEPAConfig(output_dir=folder, lbd=1.0, learning_rate=1e-2, **QUIET, **options)
    trainer = StepJEPARepresentationTrainer(model_folder, config, test_file)
    trainer.train()
    trainer.save_model()
    return folder


def test_pairing_measures_every_pair(run_folder, model_folder, test_file, tmp_path, capsys):
    options = ["--test_file", test_file, "--output_dir", str(tmp_path), "--base_model", model_folder, "--pool", "8"]
    with pytest.raises(SystemExit) as stopped:
        main(["pairing", "--model_name", run_folder, *options])
    assert stopped.value.code == 0
    result = json.loads((tmp_path / "pairing.json").read_text())["models"][run_folder]
    assert result["pairs"] == sum(1 + a % 3 for a in range(1, 13))  # all but those whose target is the answer
    assert result["problems"] == 12
    assert not result["enough"]
    assert {"views", "views_to_base", "tfidf", "numbers"} <= result["measures"]["retrieval_across"].keys()
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 5 + 1
    assert "| retrieval across |" in (tmp_path / "pairing.md").read_text()
    assert "fewer than 1000 pairs" in first
    written = (tmp_path / "pairing.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["pairing", "--model_name", run_folder, *options])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert said.out == first
    assert "it was finished before, by the same command; --overwrite makes it anew\n" in said.err
    assert (tmp_path / "pairing.json").read_bytes() == written
    with pytest.raises(SystemExit):
        main(["pairing", "--model_name", run_folder, *options, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(written)["models"]
    with pytest.raises(SystemExit) as stopped:
        main(["pairing", "--model_name", run_folder, *options, "--seed", "43"])
    assert stopped.value.code == 2
    assert (
        "holds results of other settings (seed): give another --output_dir, or --overwrite" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as stopped:  # another model beside it: what is there is not measured again
        main(["pairing", "--model_name", run_folder, model_folder, *options])
    assert stopped.value.code == 0
    both = json.loads((tmp_path / "pairing.json").read_text())["models"]
    assert both[run_folder] == result
    assert both[model_folder]["pairs"] == result["pairs"]
    assert both[model_folder]["measures"]["raw_cosine_paired"]["views"]["value"] is not None


def pairing(output_dir, test_file, *models, **options):
    """pairing.json's models."""
    run(PairingArguments(list(map(str, models)), test_file, str(output_dir), pool=8, **options))
    return json.loads(Path(output_dir, "pairing.json").read_text())["models"]


def copied(folder, to, **options):
    """A model folder, and what its run would have left beside it."""
    shutil.copytree(folder, to)
    (to / "step_jepa.json").write_text(json.dumps(options))
    return str(to)


def test_the_base_reads_as_each_model_does(run_folder, model_folder, test_file, tmp_path):
    mean = copied(model_folder, tmp_path / "mean", pooling="mean")
    again = copied(model_folder, tmp_path / "again", pooling="mean")
    both = pairing(tmp_path / "all", test_file, run_folder, mean, again, base_model=model_folder)
    alone = pairing(tmp_path / "one", test_file, mean, base_model=model_folder)
    assert both[mean] == alone[mean]
    cosines = both[mean]["measures"]["raw_cosine_paired"]
    assert cosines["views_to_base"] == pytest.approx(cosines["views"])  # the model is its own base
    assert both[again]["measures"] == both[mean]["measures"]


def test_equal_readings_of_the_base_are_one(model_folder, test_file, tmp_path, monkeypatch):
    read = []

    def counting(args, model, *rest, **options):
        read.append(model)
        return read_views(args, model, *rest, **options)

    monkeypatch.setattr("step_jepa.pairing.command.read_views", counting)
    others = [copied(model_folder, tmp_path / name, pooling="mean") for name in ("a", "b")]
    pairing(tmp_path / "out", test_file, *others, base_model=model_folder)
    assert sorted(read) == sorted([model_folder, *others])


def test_an_export_can_be_a_base(run_folder, model_folder, test_file, tmp_path):
    """One with trained predictor rows and a predictor head of its own."""
    found = pairing(tmp_path / "out", test_file, model_folder, run_folder, base_model=run_folder)
    own = found[run_folder]["measures"]["raw_cosine_paired"]
    assert own["views_to_base"] == pytest.approx(own["views"])
    assert "views_to_base" in found[model_folder]["measures"]["raw_cosine_paired"]


def test_what_run_it_is_stands_beside_the_figures(run_folder, model_folder, test_file, tmp_path, capsys):
    options = json.loads(Path(run_folder, "step_jepa.json").read_text())
    far = copied(model_folder, tmp_path / "far", **{**options, "predictor_head": "identity", "horizon": 2})
    found = pairing(tmp_path / "out", test_file, run_folder, model_folder, far)
    assert found[run_folder]["run"] == options
    assert options["objective"] == ["step_jepa"]
    assert found[model_folder]["run"] == {}
    assert found[far]["run"]["horizon"] == 2
    first, base, last = (line for line in capsys.readouterr().out.splitlines() if "LM loss" in line)
    assert first.endswith("; objective step_jepa, control none")
    assert base.endswith("; no step_jepa.json says how it was trained")
    assert last.endswith("control none; trained to predict 2 steps ahead, measured on the next")


def test_a_control_run_is_measured_with_and_without_its_options(model_folder, test_file, tmp_path, capsys):
    folder = str(tmp_path / "run")
    config = StepJEPAConfig(output_dir=folder, max_steps=1, control="shuffled_pairs", **QUIET)
    trainer = StepJEPARepresentationTrainer(model_folder, config, test_file)
    trainer.train()
    trainer.save_model()
    found = pairing(tmp_path / "with", test_file, folder)[folder]
    assert found["run"]["control"] == "shuffled_pairs"
    assert "control shuffled_pairs" in capsys.readouterr().out
    Path(folder, "step_jepa.json").unlink()
    bare = pairing(tmp_path / "without", test_file, folder)[folder]
    assert bare["run"] == {}
    assert bare["measures"] == found["measures"]


def test_a_model_that_was_trained_anew_is_measured_again(model_folder, test_file, tmp_path):
    model, out = copied(model_folder, tmp_path / "model"), tmp_path / "out"
    first = pairing(out, test_file, model, model_folder)
    (out / ".pairing.json.999999999.tmp").write_text("of a process that was killed")
    assert pairing(out, test_file, model, model_folder) == first
    assert sorted(path.name for path in out.iterdir()) == ["pairing.json", "pairing.md"]
    tiny_model(seed=5).save_pretrained(model)
    os.utime(Path(model, "model.safetensors"), (2e9, 2e9))
    again = pairing(out, test_file, model, model_folder)
    assert again[model]["model_written"] == 2e9
    assert again[model]["lm_loss"] != first[model]["lm_loss"]
    assert again[model_folder] == first[model_folder]
    assert pairing(out, test_file, model, model_folder) == again


def test_results_in_the_models_own_folder_are_not_the_model(model_folder, test_file, tmp_path, capsys):
    model = copied(model_folder, tmp_path / "model")
    pairing(model, test_file, model)
    assert "finished before" not in capsys.readouterr().err
    pairing(model, test_file, model)
    assert "finished before" in capsys.readouterr().err


def test_other_records_or_another_base_are_other_settings(model_folder, test_file, tmp_path):
    base, rows = copied(model_folder, tmp_path / "base"), tmp_path / "test.jsonl"
    shutil.copy(test_file, rows)
    pairing(tmp_path / "out", str(rows), model_folder, base_model=base)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"other settings \(records\)"):
        pairing(tmp_path / "out", str(rows), model_folder, base, base_model=base)
    shutil.copy(test_file, rows)
    os.utime(Path(base, "model.safetensors"), (2e9, 2e9))
    with pytest.raises(UserError, match=r"other settings \(base_written\)"):
        pairing(tmp_path / "out", str(rows), model_folder, base, base_model=base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit = 0: give 1 or more"),
        ({"pool": 1}, "pool = 1: give 2 or more"),
        ({"predictors": -1}, "predictors = -1: give 0 or more"),
        ({"seed": -1}, "seed = -1: give 0 to 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296: give 0 to 4294967295"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        PairingArguments(["model"], "test.jsonl", "out", **options)


def test_views_are_read_as_the_run_read_them(run_folder, model_folder, test_file, tmp_path):
    assert view_options(run_folder)["read"] == "content"
    records = list(read_records(test_file))
    args = PairingArguments([run_folder], test_file, str(tmp_path))
    reading = view_options(run_folder)
    own = read_views(args, run_folder, records, **reading)
    heldout = held_out_pairs(
        own, read_views(args, model_folder, records, **{**reading, "predictor_head": "identity"}), records
    )
    model, _ = setup_model_and_tokenizer(run_folder, predictors=1)
    base, _ = setup_model_and_tokenizer(model_folder)
    head = load_file(f"{run_folder}/jepa.safetensors")["head.weight"]
    assert not torch.equal(head, torch.eye(32))
    tokenizer = byte_tokenizer()
    place = 4
    problem, step = heldout.problem[place], heldout.step[place]
    text = tokenizer.apply_chat_template(records[problem]["messages"], tokenize=False)
    start = text.index(records[problem]["steps"][step])
    ids = tokenizer(text[:start])["input_ids"]
    own = tokenizer(records[problem]["steps"][step])["input_ids"]
    with torch.no_grad():
        past = model(torch.tensor([[*ids, 264]]), output_hidden_states=True).hidden_states[-1][0, -1]
        alone, by_base = (
            each(torch.tensor([own]), output_hidden_states=True).hidden_states[-1][0, -1] for each in (model, base)
        )
    torch.testing.assert_close(torch.tensor(heldout.predicted[place]), head @ past, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(heldout.target[place]), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(heldout.base_target[place]), by_base, rtol=1e-4, atol=1e-5)
    assert heldout.length[place] == len(tokenizer(records[problem]["steps"][step] + "\n\n")["input_ids"])
    embedding = base.get_input_embeddings().weight
    torch.testing.assert_close(torch.tensor(heldout.embedded_prefix[place]), embedding[ids].mean(0).detach())


def test_running_means_and_head_go_on_from_an_export(run_folder, test_file, tmp_path):
    saved = load_file(f"{run_folder}/jepa.safetensors")
    assert saved["means.step_jepa_target.weight"] > 0
    options = {"loss": "centred_cosine", "predictor_head": "linear", "pairs": "all"}
    config = StepJEPAConfig(output_dir=str(tmp_path), **QUIET, **options)
    trainer = StepJEPARepresentationTrainer(run_folder, config, test_file)
    assert all(torch.equal(value, saved[name]) for name, value in trainer.jepa.state.state_dict().items())
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model_name", run_folder, "--train_file", test_file, "--output_dir", str(tmp_path / "new")])
    assert stopped.value.code == 2  # a trained head would be dropped without a word


def test_random_weights_from_a_configuration(model_folder, test_file, tmp_path):
    def model(overrides, folder=model_folder):
        options = {"pretrain": True, "config_overrides": overrides, **QUIET}
        config = StepJEPAConfig(output_dir=str(tmp_path), **options)
        return StepJEPARepresentationTrainer(folder, config, test_file).model

    first, again, other = model({}), model({}), model({"num_hidden_layers": 3})
    trained, _ = setup_model_and_tokenizer(model_folder)
    assert first.config.num_hidden_layers == 2
    assert other.config.num_hidden_layers == 3
    weights = [each.model.layers[0].mlp.up_proj.weight for each in (first, again, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    bare = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(bare)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    small = model({"model_type": "qwen3", **shape, "num_key_value_heads": 1}, str(bare))
    assert type(small).__name__ == "Qwen3ForCausalLM"
    assert small.config.vocab_size == 260  # as many as tokens
    with pytest.raises(ValueError, match="no field layers"):
        model({"layers": 3})
    with pytest.raises(ValueError, match=r"no model of .*model_type"):
        model({}, str(bare))


def test_plain_needs_no_chat_template_and_is_exported(test_file, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    config = StepJEPAConfig(output_dir=str(tmp_path), plain=True, max_steps=1, objective="llm_jepa", **QUIET)
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, test_file, processing_class=tokenizer)
    row = trainer.train_dataset[0]
    assert tokenizer.decode(row.input_ids[: row.branch.count(0)]) == "Is it 1?\nSo 1 + 0 = 1\n\nSo 1 + 1 = 2\n\n" + (
        "So 1 + 2 = 3\n\n#### 1<|end|>"
    )
    branches = [
        "".join(tokenizer.decode([x]) for x, b in zip(row.input_ids, row.branch, strict=True) if b == n and x < 264)
        for n in (1, 2)
    ]
    assert branches == ["Is it 1?", "So 1 + 0 = 1\n\nSo 1 + 1 = 2\n\nSo 1 + 2 = 3\n\n#### 1"]
    trainer.train()
    trainer.save_model()
    _, exported = setup_model_and_tokenizer(str(tmp_path))
    assert exported.chat_template == trainer.processing_class.chat_template
