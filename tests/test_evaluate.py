"""Evaluation: from the training's own prompt to its own end of turn, every example counted, nothing lost or mixed."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import load_file

from step_jepa.batches.collate import PlainCollator
from step_jepa.data.dataset import to_example
from step_jepa.data.sources import read_records
from step_jepa.errors import UserError
from step_jepa.evaluation import generation
from step_jepa.evaluation.evaluate import (
    EvaluateArguments,
    heldout,
    judge,
    run,
    run_options,
    save_views,
    summarise,
    written,
)
from step_jepa.evaluation.generation import Generation, generate
from step_jepa.rows.branches import trunk
from step_jepa.training.models import export, setup_model_and_tokenizer


def problem(a: int) -> dict:
    """Prompts of several lengths; two steps, and the answer."""
    turns = [("user", f"Is it {a}?" + " Well?" * (a % 3)), ("assistant", f"So {a}.\n\nYes.\n\n#### {a}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture(scope="module")
def solver(tmp_path_factory):
    """Six problems and a tiny model with two predictor rows that has learnt them by heart, exported."""
    tokenizer, folder = byte_tokenizer(), tmp_path_factory.mktemp("solver")
    (folder / "test.jsonl").write_text("".join(json.dumps(problem(a)) + "\n" for a in range(2, 8)))
    model, _ = setup_model_and_tokenizer(tiny_model(), processing_class=tokenizer, predictors=2)
    examples = [to_example(record, tokenizer, "") for record in read_records(str(folder / "test.jsonl"))]
    batch = PlainCollator(tokenizer.pad_token_id)([trunk(example) for example in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(**batch).loss
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    export(model, tokenizer, folder / "model")
    return SimpleNamespace(model=str(folder / "model"), test=str(folder / "test.jsonl"), tokenizer=tokenizer)


def arguments(solver, output_dir, **options) -> EvaluateArguments:
    defaults = {"model_name": solver.model, "test_file": solver.test, "batch_size": 4, "max_new_tokens": 40}
    return EvaluateArguments(output_dir=str(output_dir), **{**defaults, **options})


def results(folder):
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "summary.json").read_text())


def test_what_was_learnt_by_heart_is_solved(solver, tmp_path, capsys):
    run(arguments(solver, tmp_path))
    rows, summary = results(tmp_path)
    assert rows[1] == {
        "index": 1,
        "question": "Is it 3?",
        "answer": "3",
        "prediction": "So 3.\n\nYes.\n\n#### 3",
        "extracted": "3",
        "rule": "hashes",
        "correct": True,
        "truncated": False,
        "new_tokens": len("So 3") + len([".\n\n"]) + len("Yes") + len([".\n\n"]) + len("#### 3") + len(["<|end|>"]),
    }
    assert [row["index"] for row in rows] == list(range(6))
    counts = {name: summary[name] for name in ("n", "without_truth", "correct", "no_answer", "truncated", "left_out")}
    assert counts == {"n": 6, "without_truth": 0, "correct": 6, "no_answer": 0, "truncated": 0, "left_out": 0}
    assert summary["accuracy"] == 1.0
    assert summary["ci95"][1] == 1.0
    assert summary["lm_loss"] < 0.2
    assert summary["pairs"] == 6
    assert {"jepa_loss", "cosine_paired", "cosine_unpaired", "cut"} <= summary.keys()
    assert summary["settings"]["predictors"] == 2  # those in the folder, not the default
    assert summary["settings"]["trained_predictors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "predictions.jsonl",
        "summary.json",
        "views.safetensors",
    ]
    assert "100.0%" in capsys.readouterr().out


def test_the_heldout_figures_are_those_of_the_trained_rows(solver, tmp_path):
    run(arguments(solver, tmp_path))
    figures, views = heldout(solver.model, solver.test, predictors=2, batch_size=1)
    _, summary = results(tmp_path)
    assert {name: summary[name] for name in figures} == pytest.approx(figures, abs=1e-5)
    single = {**next(read_records(solver.test)), "steps": ["So 2.\n\nYes.\n\n#### 2"]}
    figures, none = heldout(solver.model, [single], predictors=2)
    assert figures["jepa_loss"] is None  # no pair, no figure
    saved = load_file(tmp_path / "views.safetensors")
    assert {name: value.dtype for name, value in saved.items()} == {
        **dict.fromkeys(("predicted", "target"), torch.float16),
        **dict.fromkeys(("problem", "step"), torch.int64),
    }
    assert saved["problem"].tolist() == [0, 1, 2, 3, 4, 5]
    assert saved["step"].tolist() == [1] * 6
    cosine = (saved["predicted"].float() * saved["target"].float()).sum(1)
    torch.testing.assert_close(cosine, F.cosine_similarity(views.predicted, views.target), rtol=0, atol=2e-3)
    save_views(tmp_path, none)
    assert not (tmp_path / "views.safetensors").exists()  # those of other results


def test_batching_changes_nothing(solver):
    records = list(read_records(solver.test))
    model = tiny_model(seed=3)  # never trained: nothing hides a wrong position or a padded prompt that is read

    def answers(**options):
        return sorted(generate(model, solver.tokenizer, records, max_new_tokens=12, **options), key=lambda x: x.index)

    alone = answers(batch_size=1)
    assert len({generation.prediction for generation in alone}) > 1
    assert answers(batch_size=4) == alone
    assert answers(batch_size=4, skip={0, 5}) == alone[1:5]


def test_the_model_reads_the_training_prefix_and_stops_at_the_training_end(solver, monkeypatch):
    records, read = list(read_records(solver.test)), []

    def write_on(model, tokenizer, prompts, config):
        read.append((prompts, config.eos_token_id))
        return [tokenizer.encode("a" * 5)] * len(prompts)

    monkeypatch.setattr(generation, "_write_on", write_on)
    model = tiny_model(eos_token_id=7)
    generations = list(generate(model, solver.tokenizer, records, batch_size=4))
    texts = [f"<|start|>user\n{record['question']}<|end|>\n<|start|>assistant\n" for record in records]
    expected = [solver.tokenizer.encode(texts[generation.index]) for generation in generations]
    assert [ids for prompts, _ in read for ids in prompts] == expected
    assert list(map(len, expected)) == sorted(map(len, solver.tokenizer(texts)["input_ids"]), reverse=True)
    assert read[0][1] == [7, solver.tokenizer.convert_tokens_to_ids("<|end|>")]
    assert generations[0] == Generation(generations[0].index, "aaaaa", True, 5)


def test_predictor_rows_are_never_written(solver):
    records = list(read_records(solver.test))
    plain, _ = setup_model_and_tokenizer(solver.model)
    model, _ = setup_model_and_tokenizer(solver.model, predictors=2)
    head = model.get_output_embeddings().weight.data
    head[-2:] = 100 * head[solver.tokenizer.convert_tokens_to_ids("S")]  # louder than what every answer begins with
    expected = list(generate(plain, solver.tokenizer, records, max_new_tokens=20))
    assert list(generate(model, solver.tokenizer, records, max_new_tokens=20)) == expected


def test_only_the_plain_greedy_choice(solver):
    """A generation_config that comes with the model neither samples nor penalises here, and is left as it was."""
    records = list(read_records(solver.test))
    model, _ = setup_model_and_tokenizer(solver.model)
    expected = list(generate(model, solver.tokenizer, records, max_new_tokens=20))
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    own = model.generation_config.to_dict()
    assert list(generate(model, solver.tokenizer, records, max_new_tokens=20)) == expected
    assert model.generation_config.to_dict() == own


def test_every_example_counts():
    def row(text, truth="5", truncated=False):
        return judge({"question": "?", "answer": truth}, Generation(0, text, truncated, 3))

    rows = [row("#### 5"), row("#### 6"), row("no idea"), row("5 5 5 5", truncated=True), row("#### 5", truth=None)]
    assert [r["correct"] for r in rows] == [True, False, False, True, None]
    summary = summarise(rows)
    assert {
        name: summary[name] for name in ("n", "correct", "accuracy", "without_truth", "no_answer", "truncated")
    } == {
        "n": 4,
        "correct": 2,
        "accuracy": 0.5,
        "without_truth": 1,
        "no_answer": 1,
        "truncated": 1,
    }
    assert row(" (dog).* ", truth="(dog).*")["correct"]  # an answer that is the whole text, and has no number


def test_an_interrupted_run_goes_on(solver, tmp_path, monkeypatch):
    run(arguments(solver, tmp_path / "whole"))
    write_on, calls = generation._write_on, []

    def interrupted(model, tokenizer, prompts, config):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_on(model, tokenizer, prompts, config)

    monkeypatch.setattr(generation, "_write_on", interrupted)
    folder = tmp_path / "resumed"
    with pytest.raises(UserError, match="interrupted after 4 of 6"):
        run(arguments(solver, folder))
    partial = folder / "predictions.partial.jsonl"
    partial.write_text(partial.read_text()[:-9])  # the process died while it wrote the fourth
    with pytest.raises(UserError, match=r"another max_new_tokens: .*--overwrite"):
        run(arguments(solver, folder, max_new_tokens=41))
    run(arguments(solver, folder, batch_size=2))
    assert calls == [4, 2, 2, 1]
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()


def test_the_loss_of_another_horizon_is_said_to_be_of_the_next_step(solver, tmp_path, capsys):
    far = tmp_path / "far"
    shutil.copytree(solver.model, far)
    for options, noted in ({"horizon": 1}, False), ({"horizon": 2}, True):
        (far / "step_jepa.json").write_text(json.dumps(options))
        run(arguments(solver, tmp_path / f"out{noted}", model_name=str(far), limit=1, max_new_tokens=1))
        row = next(line for line in capsys.readouterr().out.splitlines() if "jepa loss" in line)
        assert ("; of the next step)" in row) == noted


def test_what_lies_beside_a_model(tmp_path):
    assert run_options(str(tmp_path)) == {}
    assert written(str(tmp_path)) is None
    for name, seconds in {"model.safetensors": 100, "step_jepa.json": 200, "pairing.json": 300}.items():
        (tmp_path / name).write_text('{"control": "none"}')
        os.utime(tmp_path / name, (seconds, seconds))
    (tmp_path / "checkpoint-9").mkdir()
    assert written(str(tmp_path)) == 300
    assert written(str(tmp_path), besides="pairing.json") == 200
    assert written("some/hub-id") is None
    assert run_options(str(tmp_path)) == {"control": "none"}
    for broken in ("{", "7"):
        (tmp_path / "step_jepa.json").write_text(broken)
        with pytest.raises(UserError, match=r"step_jepa\.json is not the JSON"):
            run_options(str(tmp_path))


def test_nothing_is_written_over(solver, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--overwrite"):
        run(arguments(solver, folder))
    run(arguments(solver, folder, overwrite=True, limit=2))
    with pytest.raises(UserError, match=r"finished results.*--overwrite"):
        run(arguments(solver, folder))
    assert len(results(folder)[0]) == 2
    run(arguments(solver, folder, overwrite=True))
    assert len(results(folder)[0]) == 6
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_cannot_be_evaluated(solver, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (tmp_path / "open.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    for options, message in [
        ({"test_file": str(tmp_path / "empty.jsonl")}, "empty"),
        ({"test_file": str(tmp_path / "nowhere.jsonl")}, "nowhere"),
        ({"test_file": str(tmp_path / "open.jsonl")}, "no record has a known answer"),
        ({"model_name": str(tmp_path / "nothing")}, "nothing: no such folder"),
        ({"limit": 0}, "limit = 0: give 1 or more"),
        ({"predictors": -1}, "predictors = -1: give 0 or more"),
    ]:
        with pytest.raises(UserError, match=message):
            run(arguments(solver, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
