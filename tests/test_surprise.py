"""Latent surprise of steps: what is measured, and what it tells of right and wrong answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import conversation
from sklearn.metrics import roc_auc_score
from test_pairing import QUIET

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.cli import main
from step_jepa.data.chains import first_error, problems, solved
from step_jepa.data.conversion import to_reading
from step_jepa.data.first_errors import NO_ERROR, read_with_first_error
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading_options import ReadArguments, ReadingOptions
from step_jepa.errors import UserError
from step_jepa.run_files.identity import records_digest
from step_jepa.run_files.reading import run_options
from step_jepa.run_files.writing import json_lines
from step_jepa.statistics.bootstrap import auc_shares, resampled_auc, resampled_sums, with_interval
from step_jepa.surprise.answers import Judged, beyond_free, right_against_wrong
from step_jepa.surprise.given import given_answers
from step_jepa.surprise.localisation import chance, labelled, localisation
from step_jepa.surprise.measure import load, measure
from step_jepa.surprise.measures import Measures, measures
from step_jepa.surprise.planted import foreign_step, wrong_value
from step_jepa.surprise.regression import out_of_fold
from step_jepa.surprise.scores import StepScores, of_answers
from step_jepa.training.representation import Representation
from step_jepa.training.saved_options import heldout_options

RECORDS = [
    conversation(*[f"So {a} + {b} = {a + b}" for b in range(2 + a % 3)], f"#### {a}", question=f"Is it {a}?")
    for a in range(1, 8)
]
QUESTION = "a = 3\nb = a + 2\nc = b * a"
RIGHT = ["b = 3 + 2 = 5", "c = 5 * 3 = 15", "#### 15"]


@pytest.fixture(scope="module", params=["cosine", "centred_cosine", "infonce"])
def run_folder(request, tmp_path_factory, model_folder):
    folder = str(tmp_path_factory.mktemp("run"))
    options = {"max_steps": 2, "pairs": "all", "loss": request.param, "lbd": 1.0, "learning_rate": 1e-2}
    trainer = StepJEPARepresentationTrainer(
        model_folder, StepJEPAConfig(output_dir=folder, **QUIET, **options), RECORDS
    )
    trainer.train()
    trainer.save_model()
    return folder


def training_distances(folder, records, loss):
    """By (example, step), what the criterion of training makes of the rows of training."""
    representation = Representation.load(folder, heldout_options(folder, loss=loss), seed=1)
    examples = representation.prepare(records).examples
    rows = PlannedRows(examples, representation.training_planner(examples))
    output = representation.forward(representation.collator([rows[place] for place in range(len(rows))]))
    distances = representation.jepa.distances(output.views, 0)
    places = zip(output.views.problem.tolist(), output.views.step.tolist(), strict=True)
    return dict(zip(places, distances.tolist(), strict=True))


def test_surprise_is_the_distance_that_training_takes(run_folder):
    steps = measure(load(run_folder), RECORDS, batch_size=3)
    loss = "centred_cosine" if run_options(run_folder)["loss"] == "centred_cosine" else "cosine"
    name = {"cosine": "surprise", "centred_cosine": "centred_surprise"}[loss]
    measured = dict(zip(zip(steps.answer.tolist(), steps.step.tolist(), strict=True), steps.scores[name], strict=True))
    expected = training_distances(run_folder, RECORDS, loss)
    assert len(expected) == sum(1 + a % 3 for a in range(1, 8))
    assert {place for place, value in measured.items() if np.isfinite(value)} == expected.keys()
    for place, distance in expected.items():
        assert measured[place] == pytest.approx(distance, abs=1e-6)


def test_without_trained_predictors_the_last_token_predicts(model_folder):
    """Likelihood, entropy and persistence are those of plain transformers on the trunk."""
    representation, record = load(model_folder), RECORDS[1]
    steps = measure(representation, [record])
    (example,) = representation.prepare([record]).examples
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        out = representation.model(input_ids=ids, output_hidden_states=True)
    shares, states = out.logits[0].log_softmax(-1), out.hidden_states[-1][0]
    for step, (start, stop) in enumerate(example.steps):
        before = shares[start - 1 : stop - 1]
        nll = -before[range(stop - start), ids[0, start:stop]]
        entropy = -(before.exp() * before).sum(-1)
        assert steps.scores["nll"][step] == pytest.approx(nll.mean().item(), abs=1e-5)
        assert steps.scores["nll_max"][step] == pytest.approx(nll.max().item(), abs=1e-5)
        assert steps.scores["entropy"][step] == pytest.approx(entropy.mean().item(), abs=1e-5)
        assert (steps.scores["length"][step], steps.scores["index"][step]) == (stop - start, step)
        if step:
            moved = 1 - torch.cosine_similarity(states[stop - 1], states[start - 1], dim=0)
            assert steps.scores["persistence"][step] == pytest.approx(moved.item(), abs=1e-5)
    assert np.isnan([steps.scores[name][0] for name in ("surprise", "centred_surprise", "persistence")]).all()


def test_another_order_is_the_mean_over_the_answers_other_steps(run_folder):
    """What the first step predicts is held against the third, which is read alone: exchanged, it is the same."""
    record = conversation("So 1 + 1 = 2", "So 2 + 2 = 4", "So 4 + 4 = 8", "#### 8")
    exchanged = conversation("So 1 + 1 = 2", "So 4 + 4 = 8", "So 2 + 2 = 4", "#### 8")
    representation = load(run_folder)
    plain, other = (measure(representation, [each]).scores for each in (record, exchanged))
    assert np.isnan(plain["shuffled_surprise"][[0, 3]]).all()
    assert plain["shuffled_surprise"][1] == pytest.approx(other["surprise"][1], abs=1e-5)


def test_an_answer_that_cannot_be_read_has_no_scores(model_folder):
    empty, forged = conversation("", question="Well?"), conversation("So <|start|>user", question="Well?")
    steps = measure(load(model_folder), [empty, RECORDS[0], forged], batch_size=2)
    assert set(steps.answer) == {1}
    assert steps.answers == 3
    assert np.isnan(of_answers(steps)["nll"][[0, 2]]).all()
    assert not len(measure(load(model_folder), [empty]).step)


STEPS = StepScores(
    answer=np.array([0, 0, 0, 2, 2]),
    step=np.array([0, 1, 2, 0, 1]),
    scores={
        "surprise": np.array([np.nan, 0.2, 0.6, np.nan, 0.1]),
        "nll": np.array([1.0, 2.0, 4.0, 3.0, 5.0]),
        "nll_max": np.array([2.0, 9.0, 5.0, 3.0, 6.0]),
        "length": np.array([1.0, 2.0, 1.0, 1.0, 3.0]),
        "index": np.array([0.0, 1.0, 2.0, 0.0, 1.0]),
    },
    answers=3,
)


def test_scores_of_answers():
    scores = of_answers(STEPS)
    expected = {
        "surprise": [0.4, np.nan, 0.1],
        "surprise_max": [0.6, np.nan, 0.1],
        "nll": [9 / 4, np.nan, 18 / 4],
        "nll_max": [9, np.nan, 6],
        "length": [4, np.nan, 4],
        "index": [2, np.nan, 1],
    }
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        assert scores[name] == pytest.approx(values, nan_ok=True), name


def test_located_steps_by_hand():
    """Four answers: greatest score at the error, elsewhere, none wrong and low, none wrong and high."""
    values = [[np.nan, 0.1, 0.9], [np.nan, 0.8, 0.2], [np.nan, 0.1, 0.0], [np.nan, 0.3, 0.2]]
    flat = np.array(values).ravel()
    steps = StepScores(np.repeat(range(4), 3), np.tile(range(3), 4), {"surprise": flat, "nll": -flat}, 4)
    answers = labelled(steps, ["surprise", "nll"], np.array([2, 2, NO_ERROR, NO_ERROR]), np.arange(4))
    figures = localisation(answers, seed=0)
    found = {name: figures["surprise"][name]["value"] for name in ("located", "wrong", "right", "f1")}
    # Half of the greatest scores .9, .8, .1, .3 are .55 or more.
    assert found == {"located": 0.5, "wrong": 0.5, "right": 1.0, "f1": pytest.approx(2 / 3)}
    assert figures["-nll"] == figures["surprise"]
    assert chance(answers) == 0.5


def test_errors_at_steps_without_a_prediction_are_left_out():
    steps = replace(STEPS, scores={"surprise": STEPS.scores["surprise"], "nll": STEPS.scores["nll"]})
    answers = labelled(steps, ["nll", "surprise"], np.array([0, np.nan, 1]), np.arange(3))
    assert (answers.left_out, answers.problem.tolist(), answers.first_error.tolist()) == (1, [2], [1])
    assert np.isnan(answers.scores["nll"][0, 0])  # not asked about


def test_area_under_the_curve():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    cluster = np.repeat(range(20), 3)
    areas = resampled_auc(score, positive, cluster, seed=3)
    assert areas[0] == pytest.approx(roc_auc_score(positive, score))
    drawn = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), 1000)
    weight = drawn[7][cluster]
    assert areas[8] == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))
    value, low, high = with_interval(areas)
    assert low < value < high
    assert auc_shares(score, positive).mean() == pytest.approx(value)
    sums = resampled_sums(np.stack([score, positive], 1), cluster, seed=3)
    assert sums[0].tolist() == [score.sum(), positive.sum()]
    assert sums[8].tolist() == [(score * weight).sum(), (positive * weight).sum()]


@pytest.mark.parametrize("told", [True, False])
def test_what_a_latent_score_adds_to_the_free_ones(told):
    rng = np.random.default_rng(1)
    wrong, problem = rng.random(300) < 0.5, np.repeat(range(150), 2)
    free = {name: rng.normal(size=300) for name in ("nll", "nll_max", "entropy", "length", "index", "persistence")}
    latent = rng.normal(size=300) + (1.5 * wrong if told else 0)
    judged = Judged({**free, "surprise": latent}, wrong, problem)
    figure = beyond_free(judged, seed=0)["surprise"]
    assert (figure["low"] > 0.1, figure["p"] < 0.001) == (told, told)
    area = right_against_wrong(judged, seed=0)["surprise"]
    assert (area["low"] > 0.7) == told
    assert (area["low"] <= 0.5 <= area["high"]) != told


def test_a_regression_is_never_asked_about_problems_that_it_was_fitted_to():
    """Two answers to a problem are alike, and each problem has its own feature: whoever fits one knows the other."""
    problem, wrong = np.repeat(range(40), 2), np.repeat(np.random.default_rng(2).random(40) < 0.5, 2)
    features = np.eye(40)[problem]
    assert abs(roc_auc_score(wrong, out_of_fold(features, wrong, problem)) - 0.5) < 0.3
    assert roc_auc_score(wrong, out_of_fold(features, wrong, np.arange(80))) > 0.9


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (RIGHT, -1),
        (["b = 2 + 3 = 5", *RIGHT[1:]], -1),  # operands may change places
        (["b = 3 + 2 = 6", "c = 6 * 3 = 18", "#### 18"], 0),
        ([RIGHT[0], "c = 5 * 2 = 10", "#### 10"], 1),
        ([*RIGHT[:2], "#### 16"], 2),
        ([RIGHT[0], "#### 5"], 1),
        ([*RIGHT, "d = 1"], 3),
        (RIGHT[:2], None),
        ([], None),
    ],
)
def test_the_first_error_of_a_chain(steps, error):
    assert first_error(QUESTION, steps) == error


def test_a_chain_goes_on_from_a_wrong_value():
    assert solved(QUESTION) == RIGHT
    assert solved(QUESTION, {0: 7}) == ["b = 3 + 2 = 7", "c = 7 * 3 = 21", "#### 21"]
    for other in ("How many?", "a = 3\nb = a + x", "a = 3\nb is 4", "a = b"):
        assert solved(other) is None
        assert first_error(other, ["b = 4"]) is None


def test_random_names_change_nothing_else():
    ordered, renamed = problems(3), problems(3, "random")
    firsts = set()
    for _ in range(20):
        one, other = next(ordered), next(renamed)
        assert one["template"] == other["template"]
        question, answer = (turn["content"] for turn in other["messages"])
        assert solved(question) == answer.split("\n\n")
        names = str.maketrans(dict(zip(dict.fromkeys(filter(str.isalpha, question)), "abcdef", strict=False)))
        assert [turn["content"].translate(names) for turn in other["messages"]] == [
            turn["content"] for turn in one["messages"]
        ]
        firsts.add(question[0])
    assert len(firsts) > 3


def chains(count):
    rows = problems(1, "random")
    return [to_reading(next(rows), ReadArguments()) for _ in range(count)]


def test_planted_errors():
    records = chains(30)
    for place, record in enumerate(records):
        foreign, value = foreign_step(records, place, seed=0), wrong_value(records, place, seed=0)
        steps = foreign.record["steps"]
        assert [number for number, step in enumerate(steps) if step != record["steps"][number]] == [foreign.error]
        assert any(steps[foreign.error] in other["steps"] for other in records)
        assert foreign.record["messages"][-1]["content"] == "\n\n".join(steps)
        assert first_error(record["question"], value.record["steps"]) == value.error
        assert {foreign.error, value.error} <= set(range(1, len(steps) - 1))
    assert foreign_step([conversation("one", "two")], 0, seed=0) is None
    assert wrong_value([{**conversation("one", "two", "three"), "question": "How many?"}], 0, seed=0) is None


def test_scores_by_problem_have_the_mean_of_all_cases():
    found = Measures(4)
    found.put("x", np.array([1.0, 0.0, 1.0]), {"y": np.array([0.0, 0.0, 3.0])}, np.array([0, 2, 2]))
    assert np.mean(found.scores["x"]) == pytest.approx(2 / 3)
    assert found.scores["x"][1] == pytest.approx(2 / 3)  # it has no case
    assert np.mean(found.free["x"]["y"]) == pytest.approx(1)


# The command


def surprise(capsys, *options):
    """Exit code, and what was printed."""
    with pytest.raises(SystemExit) as stopped:
        main(["surprise", *map(str, options)])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err


@pytest.fixture(scope="module")
def labelled_file(tmp_path_factory):
    """Answers of three steps and a result, every third with its first error at step 1 or 2."""
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    rows = []
    for a in range(1, 37):
        steps = [f"So {a} + {b} = {a + b}" for b in range(3)]
        error = {1: -1, 2: 1, 0: 2}[a % 3]
        rows.append({"problem": f"Is it {a}?", "steps": [*steps, f"#### {a}"], "label": error})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_measures_resumes_and_refuses(model_folder, labelled_file, tmp_path, capsys, monkeypatch):
    options = ["--model_name", model_folder, "--test_file", labelled_file, "--output_dir", tmp_path / "out"]
    both = [*options, "--base_model", model_folder]
    asked = []

    def breaking(*args, **more):
        asked.append(args)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(*args, **more)

    monkeypatch.setattr("step_jepa.surprise.command.measure", breaking)
    assert surprise(capsys, *both)[0] == 130
    assert surprise(capsys, *both)[0] == 0
    assert len(asked) == 3  # the model's own scores were kept
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out/surprise.jsonl").read_text().splitlines()]
    assert (summary["answers"], summary["steps"], summary["predicted"], summary["errors"]) == (36, 144, 72, 24)
    assert [row["first_error"] for row in rows[:3]] == [-1, 1, 2]
    assert [row["correct"] for row in rows[:3]] == [True, False, False]
    assert rows[1]["steps"][1]["text"] == "So 2 + 1 = 3"
    assert rows[1]["steps"][1]["surprise"] == rows[1]["steps"][1]["base_surprise"]  # the model is its own base
    assert rows[1]["steps"][0]["surprise"] is None
    assert {"surprise", "nll_max", "base_nll", "-surprise"} <= summary["located"].keys()
    assert summary["chance"] == 0.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"surprise.jsonl", "summary.json", "surprise.png"}
    code, printed = surprise(capsys, *both)
    assert (code, "it was finished before" in printed) == (0, True)
    code, printed = surprise(capsys, *options)
    assert (code, "another base_model" in printed) == (2, True)


def test_answers_that_evaluate_wrote(model_folder, tmp_path, capsys):
    """Two samples each of two chains, by hand."""
    rows = problems(1)
    prepared = [dict(to_reading(next(rows), ReadArguments())) for _ in range(2)]
    (tmp_path / "test.jsonl").write_text(json_lines(prepared))
    solution = prepared[0]["messages"][-1]["content"]
    samples = [{"prediction": solution, "correct": True}, {"prediction": "b = 1", "correct": False}]
    folder = tmp_path / "scores"
    folder.mkdir()
    predictions = [{"index": 0, **samples[0], "samples": samples}, {"index": 1, "prediction": "", "correct": None}]
    (folder / "predictions.jsonl").write_text(json_lines(predictions))
    settings = {"model_name": "m", "test_file": str(tmp_path / "test.jsonl"), "limit": None}
    settings["records"] = records_digest(prepared)
    summary = {"n": 1, "accuracy": 0.5, "ci95": [0, 1], "settings": settings}
    (folder / "summary.json").write_text(json.dumps(summary))
    answers = given_answers(str(folder), ReadingOptions(), None)
    assert (answers.problem.tolist(), answers.sample.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert answers.wrong.tolist() == pytest.approx([0, 1, np.nan], nan_ok=True)
    assert answers.first_error.tolist() == pytest.approx([-1, 0, np.nan], nan_ok=True)
    assert answers.records[0]["messages"] == prepared[0]["messages"]
    (tmp_path / "test.jsonl").write_text(json_lines(prepared[::-1]))
    with pytest.raises(UserError, match="has changed since"):
        given_answers(str(folder), ReadingOptions(), None)


TAG = "\u043a\u0438"
PRM_STEP = {"completions": [{"text": "It is 4.", "rating": 1}], "chosen_completion": 0}
PRM_WRONG = {"completions": [{"text": "So 5.", "rating": -1}], "chosen_completion": None}


@pytest.mark.parametrize(
    ("raw", "steps", "error"),
    [
        ({"problem": "Q?", "steps": ["a", "b"], "label": 1}, ["a", "b"], 1),
        ({"problem": "Q?", "steps": ["a", "b"], "label": -1}, ["a", "b"], -1),
        ({"problem": "Q?", "steps": ["a", "b"]}, ["a", "b"], None),
        ({"prompt": "Q?", "completions": ["a", "b"], "labels": [True, False]}, ["a", "b"], 1),
        ({"prompt": "Q?", "completions": ["a", "b"], "labels": ["+", "+"]}, ["a", "b"], -1),
        (
            {"input": f"Q? Step 1: a {TAG}\nStep 2: b {TAG}", "label": "Q? Step 1: a +\nStep 2: b -"},
            ["Step 1: a", "Step 2: b"],
            1,
        ),
        (
            {
                "question": {"problem": "Q?", "ground_truth_answer": "4"},
                "label": {"steps": [PRM_STEP, PRM_WRONG], "finish_reason": "found_error"},
            },
            ["It is 4.", "So 5."],
            1,
        ),
        ({"question": "Q?", "answer": "It is 4.\n#### 4"}, ["It is 4.", "#### 4"], None),
    ],
)
def test_first_errors_of_labelled_formats(raw, steps, error):
    record, found = read_with_first_error(raw, ReadArguments())
    assert (record["steps"], found) == (steps, error)


def test_a_label_that_is_no_step_is_refused():
    with pytest.raises(Rejected, match="count from 0"):
        read_with_first_error({"problem": "Q?", "steps": ["a"], "label": "second"}, ReadArguments())


# A model that knows its chains


@pytest.mark.slow  # a quarter of a minute on a quiet core
def test_a_planted_step_is_found_in_chains_that_the_model_knows(tmp_path):
    """(a) a step of another problem; (b) one wrong value: its areas are figures to look at, and no acceptance; steps of
    which none was planted are told from others by chance alone."""
    records = chains(60)
    overrides = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    overrides |= {"num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.08}
    options = {"pairs": "all", "loss": "infonce", "max_steps": 120, "per_device_train_batch_size": 16}
    config = StepJEPAConfig(
        output_dir=str(tmp_path),
        learning_rate=3e-3,
        pretrain=True,
        config_overrides=json.dumps(overrides),
        **QUIET,
        **options,
    )
    trainer = StepJEPARepresentationTrainer("builtin:chains", config, records)
    trainer.train()
    trainer.save_model()
    representation = load(str(tmp_path))
    found = measures(representation, records, [each["messages"][-1]["content"] for each in records], [True] * 60)
    assert np.mean(found.scores["foreign_steps"]) > 0.9
    for name in ("value_steps", "value_steps_beyond"):
        print(name, np.mean(found.scores[name]), {free: np.mean(values) for free, values in found.free[name].items()})
    steps = measure(representation, records)
    scores = steps.scores["surprise"]
    marked, known = np.random.default_rng(0).random(len(scores)) < 0.3, np.isfinite(scores)
    _, low, high = with_interval(resampled_auc(scores[known], marked[known], steps.answer[known], 0))
    assert low <= 0.5 <= high
