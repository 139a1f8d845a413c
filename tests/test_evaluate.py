"""Evaluation: from the training's own prompt to its own end of turn, every example counted, nothing lost or mixed."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import load_file

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments.parsing import SHIPPED
from step_jepa.batches.collate import PlainCollator
from step_jepa.data.dataset import to_example
from step_jepa.data.reading import read_records
from step_jepa.errors import UserError
from step_jepa.evaluation import engines
from step_jepa.evaluation.answers import extract, is_correct
from step_jepa.evaluation.engines import GumbelNoise, transformers_engine
from step_jepa.evaluation.evaluate import EvaluateArguments, longest_solution, run
from step_jepa.evaluation.figures import model_figures, save_views
from step_jepa.evaluation.generation import Generation, Prompt, SamplingParameters, generate, prompts_and_stops
from step_jepa.evaluation.judging import judge, majority_vote, summarise
from step_jepa.models.export import export
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.rows.branches import trunk
from step_jepa.run_files.identity import last_modified
from step_jepa.run_files.names import NOT_OF_THE_MODEL
from step_jepa.run_files.reading import run_options
from step_jepa.run_files.writing import write_whole
from step_jepa.training.saved_options import heldout_options


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
        "over_generated": False,
        "truncated": False,
        "new_tokens": len("So 3") + len([".\n\n"]) + len("Yes") + len([".\n\n"]) + len("#### 3") + len(["<|end|>"]),
    }
    assert [row["index"] for row in rows] == list(range(6))
    zeros = dict.fromkeys(("without_truth", "no_answer", "truncated", "over_generated", "left_out"), 0)
    assert {name: summary[name] for name in zeros} == zeros
    assert (summary["n"], summary["correct"], summary["accuracy"], summary["sample_accuracy"]) == (6, 6, 1.0, 1.0)
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
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 + 1
    assert f"solves 6 of 6 problems of {solver.test}: accuracy 100.0% (95 % interval 61.0% to 100.0%)." in printed[-1]


def test_problems_without_a_solution_are_answered(solver, tmp_path, capsys):
    """From the same prompts; figures are those of the others, and none where there is no other."""
    file = tmp_path / "problems.jsonl"
    problems = [{"messages": problem(a)["messages"][:1], "answer": a} for a in (2, 3, 4)]
    for others, known in (([], None), ([problem(5)], 1)):
        file.write_text("".join(json.dumps(each) + "\n" for each in problems + others))
        run(arguments(solver, tmp_path / "out", test_file=str(file), overwrite=True))
        rows, summary = results(tmp_path / "out")
        assert [row["answer"] for row in rows] == ["2", "3", "4", "5"][: len(rows)]
        assert (summary["n"], summary["accuracy"], summary["pairs"]) == (len(rows), 1.0, known)
        assert (summary["lm_loss"] is None) == (known is None)
        assert (tmp_path / "out" / "views.safetensors").exists() == bool(known)
    with pytest.raises(UserError, match=r"problems\.jsonl:1: no solution to learn"):
        next(read_records(str(file)))


def test_the_heldout_figures_are_those_of_the_trained_rows(solver, tmp_path):
    run(arguments(solver, tmp_path))
    options = heldout_options(solver.model, predictors=2)
    held_out = model_figures(solver.model, solver.test, options, batch_size=1)
    figures, views = held_out.figures, held_out.views
    _, summary = results(tmp_path)
    assert {name: summary[name] for name in figures} == pytest.approx(figures, abs=1e-5)
    single = {**next(read_records(solver.test)), "steps": ["So 2.\n\nYes.\n\n#### 2"]}
    without_pair = model_figures(solver.model, [single], options)
    assert without_pair.figures["jepa_loss"] is None  # no pair, no figure
    saved = load_file(tmp_path / "views.safetensors")
    assert {name: value.dtype for name, value in saved.items()} == {
        **dict.fromkeys(("predicted", "target"), torch.float16),
        **dict.fromkeys(("problem", "step"), torch.int64),
    }
    assert saved["problem"].tolist() == [0, 1, 2, 3, 4, 5]
    assert saved["step"].tolist() == [1] * 6
    cosine = (saved["predicted"].float() * saved["target"].float()).sum(1)
    torch.testing.assert_close(cosine, F.cosine_similarity(views.predicted, views.target), rtol=0, atol=2e-3)
    save_views(tmp_path, without_pair.views)
    assert not (tmp_path / "views.safetensors").exists()  # those of other results


def answers(model, tokenizer, records, *, samples=1, skip=(), batch_size=16, **sampling) -> list[Generation]:
    """By the model itself, in the order of records and samples."""
    prompts, stops = prompts_and_stops(model.generation_config, tokenizer, records, samples=samples)
    kept = [prompt for prompt in prompts if (prompt.index, prompt.sample) not in skip]
    parameters = SamplingParameters(stops, **{"max_new_tokens": 20, **sampling})
    engine = transformers_engine(model, tokenizer, parameters)
    found = generate(engine, tokenizer, kept, parameters, batch_size=batch_size)
    return sorted(found, key=lambda generation: (generation.index, generation.sample))


def test_batching_changes_nothing(solver):
    records = list(read_records(solver.test))
    model = tiny_model(seed=3)  # never trained: nothing hides a wrong position or a padded prompt that is read
    alone = answers(model, solver.tokenizer, records, batch_size=1)
    assert len({generation.prediction for generation in alone}) > 1
    assert answers(model, solver.tokenizer, records, batch_size=4) == alone
    assert answers(model, solver.tokenizer, records, batch_size=4, skip={(0, 0), (5, 0)}) == alone[1:5]


@torch.no_grad()
def gap(model, prompt, one, other) -> float:
    """Difference of the two logits where two continuations of a prompt part, in one pass over what they share."""
    shared = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    logits = model(torch.tensor([prompt + one[:shared]])).logits[0, -1]
    return float((logits[one[shared]] - logits[other[shared]]).abs())


def written_at(batch_size, model, tokenizer, records, **sampling) -> dict[int, list[int]]:
    """The tokens of each record's answer, up to the one that ends it."""
    prompts, stops = prompts_and_stops(model.generation_config, tokenizer, records)
    engine, found = transformers_engine(model, tokenizer, SamplingParameters(stops, **sampling)), {}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        for prompt, ids in zip(batch, engine(batch), strict=True):
            end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
            found[prompt.index] = ids[: end + 1]
    return found


def test_what_differs_between_batch_sizes_is_a_tie(solver):
    records = list(read_records(solver.test)) * 4
    model = tiny_model(seed=3, tie_word_embeddings=False)
    head = model.lm_head.weight.data
    head[1::2] = head[::2] * (1 + 1e-6 * torch.randn_like(head[::2]))  # every two tokens are all but tied
    prompts, _ = prompts_and_stops(model.generation_config, solver.tokenizer, records)
    one, many = (written_at(size, model, solver.tokenizer, records, max_new_tokens=20) for size in (1, 16))
    differing = [index for index in one if one[index] != many[index]]
    assert all(gap(model, prompts[index].input_ids, one[index], many[index]) < 1e-4 for index in differing)
    even, odd = one[0][:3] + [20], one[0][:3] + [21]
    assert (
        gap(model, prompts[0].input_ids, even, odd) < 1e-4 < gap(model, prompts[0].input_ids, even, one[0][:3] + [30])
    )


@pytest.mark.slow
def test_smollm2_solves_as_many_at_any_batch_size(tmp_path):
    pytest.importorskip("gguf")
    sums = [(a, b) for a in range(2, 6) for b in range(1, 7)]
    turns = [
        (
            f"Ann has {a} apples and gets {b} more. How many apples does she have now?",
            f"{a} + {b} = {a + b}\n#### {a + b}",
        )
        for a, b in sums
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in turns))
    records = list(read_records(str(tmp_path / "sums.jsonl")))
    model, tokenizer = setup_model_and_tokenizer("smollm2")
    prompts, _ = prompts_and_stops(model.generation_config, tokenizer, records)
    one, many = (written_at(size, model, tokenizer, records, max_new_tokens=80) for size in (1, 16))
    differing = [index for index in one if one[index] != many[index]]
    assert all(gap(model, prompts[index].input_ids, one[index], many[index]) < 1e-4 for index in differing)
    right = [
        sum(
            is_correct(extract(tokenizer.decode(ids[index]))[0], record["answer"])
            for index, record in enumerate(records)
        )
        for ids in (one, many)
    ]
    assert right[0] == right[1] > 0


def test_gumbel_noise_draws_from_the_softmax():
    logits, temperature, n = torch.tensor([2.0, 1.0, 0.0, -torch.inf]), 0.7, 20_000
    noisy = GumbelNoise(range(n), temperature)(torch.zeros(n, 1), logits.expand(n, -1))
    counts = torch.bincount(noisy.argmax(1), minlength=4)
    expected = torch.softmax(logits / temperature, 0)
    assert counts[3] == 0
    assert (counts / n).tolist() == pytest.approx(expected.tolist(), abs=0.012)  # three standard deviations


def test_what_is_drawn_depends_on_nothing_but_problem_sample_and_seed(solver):
    records = list(read_records(solver.test))
    model, options = tiny_model(seed=3), {"samples": 3, "temperature": 0.7}
    alone = answers(model, solver.tokenizer, records, batch_size=1, **options)
    assert len({generation.prediction for generation in alone[:3]}) == 3
    assert answers(model, solver.tokenizer, records, batch_size=16, **options) == alone
    assert answers(model, solver.tokenizer, records, batch_size=5, skip={(0, 0), (4, 2)}, **options) == [
        each for each in alone if (each.index, each.sample) not in {(0, 0), (4, 2)}
    ]
    backwards = answers(model, solver.tokenizer, records[::-1], **options)
    said = {(5 - each.index, each.sample): each.prediction for each in backwards}
    assert said == {(each.index, each.sample): each.prediction for each in alone}
    assert answers(model, solver.tokenizer, records, seed=43, **options) != alone


def test_the_model_reads_the_training_prefix_and_stops_at_the_training_end(solver):
    records = list(read_records(solver.test))
    prompts, stops = prompts_and_stops(
        tiny_model(eos_token_id=7).generation_config, solver.tokenizer, records, samples=2
    )
    texts = [f"<|start|>user\n{record['question']}<|end|>\n<|start|>assistant\n" for record in records]
    ids = [solver.tokenizer.encode(text) for text in texts]
    assert prompts == [Prompt(index, sample, ids[index]) for index in range(6) for sample in range(2)]
    assert stops == [7, solver.tokenizer.convert_tokens_to_ids("<|end|>")]
    read, written = [], solver.tokenizer.encode("aaaaa")

    def engine(batch):
        read.append([len(prompt.input_ids) for prompt in batch])
        return [[*written, 7, 9] if prompt.sample else written for prompt in batch]

    found = list(generate(engine, solver.tokenizer, prompts, SamplingParameters(stops), batch_size=4))
    lengths = sorted((len(ids[prompt.index]) for prompt in prompts), reverse=True)
    assert read == [lengths[:4], lengths[4:8], lengths[8:]]
    assert Generation(0, 0, "aaaaa", True, 5) in found
    assert Generation(0, 1, "aaaaa", False, 6) in found


def test_predictor_tokens_do_not_change_what_is_written(solver):
    records = list(read_records(solver.test))
    plain, _ = setup_model_and_tokenizer(solver.model)
    model, _ = setup_model_and_tokenizer(solver.model, predictors=2)
    assert answers(model, solver.tokenizer, records) == answers(plain, solver.tokenizer, records)
    prompts, stops = prompts_and_stops(model.generation_config, solver.tokenizer, records)
    drawn = transformers_engine(model, solver.tokenizer, SamplingParameters(stops, 20, temperature=5.0))(prompts)
    assert max(token for ids in drawn for token in ids) < 264


def test_only_the_plain_greedy_choice(solver):
    """A generation_config that comes with the model neither samples nor penalises here, and is left as it was."""
    records = list(read_records(solver.test))
    model, _ = setup_model_and_tokenizer(solver.model)
    expected = answers(model, solver.tokenizer, records)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    own = model.generation_config.to_dict()
    assert answers(model, solver.tokenizer, records) == expected
    assert model.generation_config.to_dict() == own


def judged(*texts, truth="5", match="math", truncated=False) -> dict:
    record = {"question": "?", "answer": truth, "messages": [{"role": "assistant", "content": " (dog).* "}]}
    return judge(record, [Generation(0, k, text, truncated, 3) for k, text in enumerate(texts)], match)


def test_letters_are_judged_and_vote():
    row = judged("7.\nAnswer is A", "The answer is B", "Answer: (a)", truth="A")
    assert (row["extracted"], row["rule"], row["correct"], row["votes"]) == ("A", "stated", True, 2)


def test_every_example_counts():
    rows = [
        *(judged("#### 5"), judged("#### 6"), judged("no idea"), judged("5 5 5 5", truncated=True)),
        *(judged("#### 5", truth=None), judged("#### 5\n#### 5"), judged("#### 5\n#### 5", truncated=True)),
        judged("\\boxed{5}\n\\boxed{5}"),
    ]
    assert [row["correct"] for row in rows] == [True, False, False, True, None, True, True, True]
    assert {name: value for name, value in summarise(rows).items() if name != "ci95"} == {
        "n": 7,
        "by": {},
        "errors": {},
        "without_truth": 1,
        "correct": 5,
        "accuracy": 5 / 7,
        "sample_accuracy": 5 / 7,
        "no_answer": 1,
        "truncated": 2,
        "over_generated": 3,
    }
    assert judged(" (dog).* ", truth="(dog).*")["correct"]  # an answer that is the whole text, and has no number


@pytest.mark.parametrize(
    ("text", "exact", "starts_with", "over_generated"),
    [
        ("(dog).*", True, True, False),
        (" (dog).*\n", True, True, False),
        ("(dog).*(dog).*", False, True, True),
        ("The answer is (dog).*", False, False, False),
        ("(dog)", False, False, False),
        ("", False, False, False),
    ],
)
def test_text_against_text(text, exact, starts_with, over_generated):
    for match, right in {"exact": exact, "starts_with": starts_with}.items():
        for truth in (None, "(dog).*"):  # without an answer the truth is all that the assistant says
            row = judged(text, truth=truth, match=match)
            assert (row["correct"], row["over_generated"]) == (right, over_generated)
            assert (row["answer"], row["rule"]) == ("(dog).*", "text" if text else "none")


def test_the_majority():
    for answers, expected in [
        (["5", "6", "5.0"], [0, 2]),
        (["6", "5", r"\frac{10}{2}", "6", "10/2"], [1, 2, 4]),
        (["6", "5", "5", "6"], [0, 3]),  # a tie: the first that was drawn
        ([None, None, "5"], [2]),
        ([None, None], [0]),
        (["Paris"], [0]),
    ]:
        assert majority_vote(answers, is_correct) == expected
    row = judged("#### 6", "no idea", "#### 5", "It is 5.0")
    assert {name: row[name] for name in ("prediction", "extracted", "correct", "votes")} == {
        "prediction": "#### 5",
        "extracted": "5",
        "correct": True,
        "votes": 2,
    }
    assert [sample["correct"] for sample in row["samples"]] == [False, False, True, True]
    summary = summarise([row, judged("#### 6", "#### 6", "#### 5", "#### 6")])
    assert (summary["accuracy"], summary["sample_accuracy"]) == (0.5, 3 / 8)
    assert judged("(a)", "3", "3.0", truth="3", match="exact")["votes"] == 1


def test_samples_on_files(solver, tmp_path, capsys, monkeypatch):
    options = {"samples": 3, "temperature": 1.5}
    run(arguments(solver, tmp_path / "whole", **options))
    assert "accuracy of single samples" in capsys.readouterr().out
    rows, summary = results(tmp_path / "whole")
    assert [len(row["samples"]) for row in rows] == [3] * 6
    drawn = [sample for row in rows for sample in row["samples"]]
    assert summary["sample_accuracy"] == pytest.approx(sum(sample["correct"] for sample in drawn) / 18)
    assert 0 < summary["sample_accuracy"] < 1
    assert all(row["prediction"] in [sample["prediction"] for sample in row["samples"]] for row in rows)
    write, calls = engines.new_tokens, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(engines, "new_tokens", interrupted)
    with pytest.raises(UserError, match="interrupted after 9 of 12"):
        run(arguments(solver, tmp_path / "more", batch_size=3, samples=2, temperature=1.5))
    run(arguments(solver, tmp_path / "more", batch_size=1, **options))  # more samples go on from fewer
    assert len(calls) == 4 + 18 - 9
    assert results(tmp_path / "more")[0] == rows


def test_regular_expressions_on_files(solver, tmp_path):
    turns = [("user", "lines with a dog"), ("assistant", "So")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "nl_rx.jsonl").write_text(json.dumps(record) + "\n")
    file = {"test_file": str(tmp_path / "nl_rx.jsonl"), "max_new_tokens": 4}
    with pytest.raises(UserError, match="no record has a known answer"):
        run(arguments(solver, tmp_path / "none", **file))
    for match, accuracy in {"starts_with": 1.0, "exact": 0.0}.items():
        run(arguments(solver, tmp_path / match, match=match, **file))
        rows, summary = results(tmp_path / match)
        assert (rows[0]["answer"], rows[0]["prediction"][:3]) == ("So", "So ")
        assert (summary["accuracy"], summary["over_generated"], summary["truncated"]) == (accuracy, 1, 1)


class FakeModel:
    """What of vLLM's LLM is used. It writes one token and the first stop; where the prompt is odd it is cut off."""

    calls: list = []

    def __init__(self, **options):
        self.calls.append(options)

    def generate(self, prompts, params, *, use_tqdm):
        self.calls.append((prompts, params))
        ids = [
            [53] if len(prompt["prompt_token_ids"]) % 2 else [53, each.stop_token_ids[0]]
            for prompt, each in zip(prompts, params, strict=True)
        ]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(each))]) for each in ids]


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeModel, SimpleNamespace
    monkeypatch.setattr(FakeModel, "calls", [])
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_is_asked_for_the_same(solver, tmp_path, vllm):
    home = tmp_path / "model"
    shutil.copytree(solver.model, home)
    (home / "generation_config.json").write_text('{"eos_token_id": [7, 258]}')
    run(arguments(solver, tmp_path / "greedy", model_name=str(home), engine="vllm"))
    made, *batches = FakeModel.calls
    assert made == {"model": str(home), "dtype": "float32", "seed": 42}
    records = list(read_records(solver.test))
    model, _ = setup_model_and_tokenizer(str(home))
    prompts, stops = prompts_and_stops(model.generation_config, solver.tokenizer, records)
    assert stops == [7, 258]
    order = sorted(prompts, key=lambda prompt: -len(prompt.input_ids))
    assert [prompt for prompts, _ in batches for prompt in prompts] == [
        {"prompt_token_ids": prompt.input_ids} for prompt in order
    ]
    assert [len(prompts) for prompts, _ in batches] == [4, 2]
    limits = {"max_tokens": 40, "stop_token_ids": stops}
    assert [vars(each) for _, params in batches for each in params] == [{**limits, "temperature": 0.0}] * 6
    rows, summary = results(tmp_path / "greedy")
    decoded = solver.tokenizer.decode([53])
    assert {(row["prediction"], row["truncated"], row["new_tokens"]) for row in rows} <= {
        (decoded, False, 2),
        (decoded, True, 1),
    }
    assert summary["pairs"] == 6  # the held-out figures are the model's own

    FakeModel.calls.clear()
    run(arguments(solver, tmp_path / "drawn", engine="vllm", samples=2))
    params = [each for _, params in FakeModel.calls[1:] for each in params]
    assert {each.temperature for each in params} == {0.7}
    assert len({each.seed for each in params}) == 12
    prompts, _ = prompts_and_stops(model.generation_config, solver.tokenizer, records, samples=2)
    assert {prompt.seed(42) for prompt in prompts} == {each.seed for each in params}


def test_without_vllm(solver, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"--engine vllm needs the package vllm .*pip install vllm"):
        run(arguments(solver, tmp_path / "out", engine="vllm"))
    assert not (tmp_path / "out").exists()


def test_vllm_reads_no_adapter(solver, tmp_path, vllm):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is an adapter: .*--keep_adapter"):
        run(arguments(solver, tmp_path / "out", model_name=str(tmp_path), engine="vllm"))


def test_a_killed_run_goes_on(solver, tmp_path):
    problems = [problem(a) for a in range(2, 8)] * 20
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems))
    options = {"model_name": solver.model, "test_file": tmp_path / "test.jsonl", "max_new_tokens": 40, "batch_size": 1}
    command = [sys.executable, "-m", "step_jepa", "evaluate", "--output_dir", str(tmp_path / "killed")]
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    partial = tmp_path / "killed" / "predictions.partial.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (partial.exists() and partial.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = partial.read_text().count("\n") - 1
    assert 3 <= done < 120
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"there before: {done} of 120 answers" in again.stderr
    run(arguments(solver, tmp_path / "whole", test_file=str(tmp_path / "test.jsonl"), batch_size=16))
    killed, whole = results(tmp_path / "killed"), results(tmp_path / "whole")
    assert killed[0] == whole[0]
    assert killed[1]["accuracy"] == whole[1]["accuracy"] == 1.0


def test_an_interrupted_run_goes_on(solver, tmp_path, monkeypatch):
    run(arguments(solver, tmp_path / "whole"))
    write, calls, kept = engines.new_tokens, [], []
    folder = tmp_path / "resumed"
    partial = folder / "predictions.partial.jsonl"

    def interrupted(model, padded, *others):
        calls.append(len(padded["input_ids"]))
        if len(calls) == 2:
            kept.append(partial.read_text().count("\n"))
            raise KeyboardInterrupt
        return write(model, padded, *others)

    monkeypatch.setattr(engines, "new_tokens", interrupted)
    with pytest.raises(UserError, match="interrupted after 4 of 6"):
        run(arguments(solver, folder))
    assert kept == [5]  # what it was begun with, and four answers, before anything was closed
    partial.write_text(partial.read_text()[:-9])  # the process died while it wrote the fourth
    with pytest.raises(UserError, match=r"another max_new_tokens: .*--overwrite"):
        run(arguments(solver, folder, max_new_tokens=41))
    with pytest.raises(UserError, match=r"another sampling: .*--overwrite"):
        run(arguments(solver, folder, samples=2))
    run(arguments(solver, folder, batch_size=2))
    assert calls == [4, 2, 2, 1]
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()


def jepa_loss_row(capsys):
    return next(line for line in capsys.readouterr().out.splitlines() if "jepa loss" in line)


def test_the_loss_of_another_horizon_is_said_to_be_so(solver, tmp_path, capsys):
    far = tmp_path / "far"
    shutil.copytree(solver.model, far)
    for horizon in (1, 2):
        run_of = {"lbd": 0.1, "objective": ["step_jepa"], "horizon": horizon}
        (far / "step_jepa.json").write_text(json.dumps(run_of))
        run(arguments(solver, tmp_path / f"out{horizon}", model_name=str(far), limit=1, max_new_tokens=1))
        assert (", 2 steps ahead)" in jepa_loss_row(capsys)) == (horizon == 2)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": ["llm_jepa"], "predictors": 2, "front_pred": True},
        {"objective": ["ssp"], "read": "content"},
        {"objective": ["step_jepa", "stp"], "weights": [1.0, 0.5], "pairs": "all", "loss": "centred_cosine"},
        {"pairs": "all", "target": "context", "pooling": "mean", "predictors": 3},
    ],
)
def test_held_out_figures_are_those_of_the_runs_own_objective(options, records, tokenizer, tmp_path, capsys):
    """What training says of the held-out rows at its end is what evaluate says of the export."""
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "diagnostics_steps": 0}
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), lbd=0.5, max_steps=2, **quiet, **options)
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, records[:6], processing_class=tokenizer)
    trainer.train()
    trained = trainer.evaluate()
    trainer.save_model()
    test = tmp_path / "test.jsonl"
    rows = [{**record, "answer": "1"} for record in records[:6]]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"model_name": str(tmp_path / "out"), "test_file": str(test), "max_new_tokens": 1}
    run(EvaluateArguments(output_dir=str(tmp_path / "own"), **names))
    _, summary = results(tmp_path / "own")
    for name in ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired", "pairs"):
        assert summary[name] == pytest.approx(trained[f"eval_{name}"], rel=1e-5), name
    assert summary["settings"]["objective"] == config.objective
    assert f"({' + '.join(config.objective)}, {config.loss}, pairs {config.pairs})" in jepa_loss_row(capsys)
    run(EvaluateArguments(output_dir=str(tmp_path / "asked"), objective=["step_jepa"], **names))
    _, asked = results(tmp_path / "asked")
    assert asked["jepa_loss"] != pytest.approx(trained["eval_jepa_loss"], rel=1e-3)
    assert "(step_jepa, cosine, pairs all)" in jepa_loss_row(capsys)


@pytest.mark.parametrize(
    ("saved", "asked", "kept"),
    [
        ({"loss": "infonce", "temperature": 0.1, "negatives": "same"}, {"loss": "cosine"}, {"temperature": 0.07}),
        ({"read": "content", "horizon": 2}, {"objective": ["llm_jepa"]}, {"read": "separator", "horizon": 1}),
        ({"predictor_head": "linear"}, {"objective": ["none"]}, {"predictor_head": "identity"}),
        ({"loss": "infonce", "temperature": 0.1}, {"pairs": "all"}, {"temperature": 0.1, "loss": "infonce"}),
    ],
)
def test_what_is_asked_for_drops_what_the_run_had_for_something_else(tmp_path, saved, asked, kept):
    (tmp_path / "step_jepa.json").write_text(json.dumps({"lbd": 0.1, "objective": ["step_jepa"], **saved}))
    options = heldout_options(tmp_path, **asked)
    assert {name: getattr(options, name) for name in kept} == kept


def test_a_contrastive_loss_without_negatives_is_no_figure(solver, tmp_path):
    infonce = tmp_path / "infonce"
    shutil.copytree(solver.model, infonce)
    run_of = {"lbd": 0.1, "objective": ["step_jepa"], "pairs": "first", "loss": "infonce", "negatives": "same"}
    (infonce / "step_jepa.json").write_text(json.dumps(run_of))
    run(arguments(solver, tmp_path / "out", model_name=str(infonce), max_new_tokens=1))
    _, summary = results(tmp_path / "out")
    assert summary["jepa_loss"] is None
    assert summary["pairs"] == 6


def test_what_lies_beside_a_model(tmp_path):
    assert run_options(str(tmp_path)) == {}
    assert last_modified(str(tmp_path)) is None
    for seconds, name in enumerate(["model.safetensors", "step_jepa.json", *NOT_OF_THE_MODEL]):
        (tmp_path / name).write_text('{"control": "none"}')
        os.utime(tmp_path / name, (seconds, seconds))
    (tmp_path / "checkpoint-9").mkdir()
    assert last_modified(str(tmp_path)) == 1
    assert last_modified("some/hub-id") is None
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
    with pytest.raises(UserError, match=r"finished results of another limit, records: .*--overwrite"):
        run(arguments(solver, folder))
    assert len(results(folder)[0]) == 2
    run(arguments(solver, folder, overwrite=True))
    assert len(results(folder)[0]) == 6
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_finished_call_is_not_made_again(solver, tmp_path, capsys, monkeypatch):
    folder, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(solver.model, model)
    options = {"limit": 1, "model_name": str(model)}
    run(arguments(solver, folder, **options))
    first = capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "predictions.partial.jsonl").touch()  # the call was killed just before it took that away
    with monkeypatch.context() as patch:
        patch.setattr("step_jepa.evaluation.evaluate.setup_model_and_tokenizer", None)  # nothing is loaded
        run(arguments(solver, folder, **options))
    said = capsys.readouterr()
    assert said.out == first
    assert "they were finished before, by the same command; --overwrite makes them anew\n" in said.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    run(arguments(solver, folder, json=True, **options))
    assert json.loads(capsys.readouterr().out) == json.loads(files["summary.json"])
    with pytest.raises(UserError, match=r"finished results of another max_new_tokens: .*--overwrite"):
        run(arguments(solver, folder, max_new_tokens=1, **options))
    os.utime(model / "model.safetensors", (2e9, 2e9))
    with pytest.raises(UserError, match=r"finished results of another model_written: .*--overwrite"):
        run(arguments(solver, folder, **options))
    run(arguments(solver, folder, overwrite=True, **options))
    assert results(folder)[1]["settings"]["model_written"] == 2e9


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"match": "starts_with", "also": ["exact"]}),
        ({"samples": 2}, {"samples": 2, "select": ["likelihood", "vote"]}),
    ],
)
def test_answers_that_are_there_are_judged_anew(solver, tmp_path, capsys, monkeypatch, first, then):
    folder = tmp_path / "out"
    run(arguments(solver, folder, **first))
    before, _ = results(folder)
    with monkeypatch.context() as patch:
        patch.setattr("step_jepa.evaluation.answering.transformers_engine", lambda *_: None)  # nothing is written
        run(arguments(solver, folder, **then))
    assert "there before: " in capsys.readouterr().err
    after, summary = results(folder)
    run(arguments(solver, tmp_path / "alone", **then))
    alone, of_alone = results(tmp_path / "alone")
    assert after == alone
    assert before != after
    assert {**summary, "seconds": 0, "settings": 0} == {**of_alone, "seconds": 0, "settings": 0}


def test_answers_that_are_there_are_not_left_out(solver, tmp_path):
    run(arguments(solver, tmp_path / "out", samples=3))
    with pytest.raises(UserError, match=r"out holds 3 answers to a problem: give --samples 3, or --overwrite"):
        run(arguments(solver, tmp_path / "out", samples=2))
    assert {len(row["samples"]) for row in results(tmp_path / "out")[0]} == {3}


@pytest.mark.parametrize("damaged", ["", "7\n", '{"model_name"\n', '{"model_name": "m"}\n{"index": 0}\n'])
def test_a_damaged_file_of_answers_is_named(solver, tmp_path, damaged):
    (tmp_path / "predictions.partial.jsonl").write_text(damaged)
    with pytest.raises(UserError, match=r"predictions\.partial\.jsonl is not what .*--overwrite"):
        run(arguments(solver, tmp_path))


def test_what_killed_writes_left_is_taken_away(solver, tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / f".predictions.partial.jsonl.{process.pid}.tmp").write_text("{")
    run(arguments(solver, folder, limit=1))  # what was left of the very first write is no reason to refuse
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    kept = [
        f".summary.json.{os.getppid()}.tmp",
        ".summary.json.old.tmp",
        f".summary.json.{10**20}.tmp",
        f".pairing.json.{process.pid}.tmp",
    ]
    for name in (*kept, f".summary.json.{process.pid}.tmp"):
        (folder / name).touch()
    write_whole(folder / "summary.json", "{}")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == sorted(kept)


def test_the_longest_solution_is_no_question(tokenizer):
    asked = {"messages": [{"role": "user", "content": "How many are there?"}]}
    solved = {"messages": [*asked["messages"], {"role": "assistant", "content": "ab"}]}
    assert longest_solution(tokenizer, [asked, solved]) == 2
    assert longest_solution(tokenizer, [asked]) == 0


def test_weights_that_are_not_finite_are_named(solver, tmp_path):
    model, tokenizer = setup_model_and_tokenizer(solver.model)
    model.get_input_embeddings().weight.data[7, 0] = torch.nan
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "diverged")
    with pytest.raises(UserError, match=r"diverged' are not finite \(model\.embed_tokens\.weight\)"):
        run(arguments(solver, tmp_path / "out", model_name=str(tmp_path / "diverged")))
    assert not (tmp_path / "out").exists()


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
        ({"samples": 0}, "samples = 0: give 1 or more"),
        ({"max_length": 0}, "max_length = 0: give 1 or more"),
        ({"seed": -1}, "seed = -1: give 0 to 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296: give 0 to 4294967295"),
        ({"temperature": 0.0, "samples": 3}, "temperature = 0.0: give more than 0"),
        ({"temperature": float("inf"), "samples": 3}, "temperature = inf: give a finite number"),
        ({"temperature": 0.3}, "--temperature is read by --samples above 1 alone"),
    ]:
        with pytest.raises(UserError, match=message):
            run(arguments(solver, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def lm_eval_task():
    path = SHIPPED / "recipes" / "lm_eval" / "step_jepa_task.py"
    spec = importlib.util.spec_from_file_location("step_jepa_task", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lm_eval_is_given_the_same_prompts_and_the_same_judge(solver, lm_eval_task):
    docs = lm_eval_task.load(pretrained=solver.model, test_file=solver.test, dtype="float32")["test"]
    model, _ = setup_model_and_tokenizer(solver.model)
    prompts, _ = prompts_and_stops(model.generation_config, solver.tokenizer, list(read_records(solver.test)))
    assert [solver.tokenizer.encode(doc["prompt"]) for doc in docs] == [prompt.input_ids for prompt in prompts]
    assert [doc["answer"] for doc in docs] == ["2", "3", "4", "5", "6", "7"]
    assert lm_eval_task.judged(docs[1], ["So.\n#### 3"]) == {"accuracy": 1.0}
    assert lm_eval_task.judged(docs[1], ["So.\n#### 4"]) == {"accuracy": 0.0}
