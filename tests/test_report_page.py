"""What the report says, of folders that are written by hand: the answer, intervals, dots, curves, sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_report import Page

from step_jepa.plots import InlineFigures
from step_jepa.reporting import curves, view_maps
from step_jepa.reporting.answer import sentences, title
from step_jepa.reporting.dots import Dot, DotPlot, share_dot
from step_jepa.reporting.matching import label_evaluations
from step_jepa.reporting.report import explored_rows, render
from step_jepa.reporting.retrieval import retrievals
from step_jepa.reporting.runs import ReportData, read_folders
from step_jepa.reporting.scores import answers_side_by_side, changes, figures_table, scored
from step_jepa.reporting.settings import main_settings

SETTINGS = {
    **{"approach": "adapted", "lr_scheduler_type": "linear", "device": "cpu", "dtype": "float32", "lora": None},
    **{"model_name": "base", "train_file": "data/train.jsonl", "eval_file": None, "world_size": 1, "seed": 7},
    **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.001},
    **{"data": {"examples": 5, "pairs": 8, "cut": 0}, "versions": {"torch": "2"}},
}
OPTIONS = {"objective": ["step_jepa"], "loss": "infonce", "lbd": 0.1, "control": "none"}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def history(steps: int) -> list[dict]:
    return [{"step": step, "lm_loss": 1 / step, "jepa_loss": 0.5} for step in range(1, steps + 1)]


def make_run(folder: Path, steps: int = 3, rows: dict | None = None, **options: object) -> None:
    write(folder / "trainer_state.json", {"global_step": steps, "log_history": history(steps)})
    write(folder / "step_jepa.json", {**OPTIONS, **options})
    write(folder / "run.json", SETTINGS)
    if rows:
        write(folder / "rows.json", rows)


def make_evaluation(folder: Path, model: str, correct: list[bool], views: dict | None = None) -> None:
    settings = {"model_name": model, "test_file": "data/test.jsonl"}
    share = sum(correct) / len(correct)
    write(folder / "summary.json", {"settings": settings, "n": len(correct), "accuracy": share, "ci95": [0.1, 0.9]})
    answers = {True: "It is 7.", False: "It is 8."}
    rows = [
        {"index": n, "question": f"What is {n}?", "answer": "7", "prediction": answers[right], "extracted": "7"}
        | {"correct": right, "truncated": False}
        for n, right in enumerate(correct)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if views:
        save_file(views, folder / "views.safetensors")


def make_views(noise: float, problems: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Two pairs of each problem, of which the prediction is the target and some noise."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((2 * problems, 16))
    predicted = target + noise * rng.standard_normal(target.shape)
    sides = {"predicted": predicted, "target": target}
    unit = {name: (side / np.linalg.norm(side, axis=1)[:, None]).astype(np.float16) for name, side in sides.items()}
    return {**unit, "problem": np.arange(problems).repeat(2), "step": np.tile([1, 2], problems)}


def figure(value: float, low: float, high: float, **more: object) -> dict:
    return {"value": value, "low": low, "high": high, "n": 40, **more}


def make_pairing(folder: Path, models: dict[str, dict]) -> None:
    """By model its retrieval; the options of its run; its lead over the best baseline."""
    results = {}
    for model, about in models.items():
        found = {"views": about["found"], "tfidf": figure(0.2, 0.15, 0.25, chance=1 / 32)}
        results[model] = {
            **{"run": about["run"], "pairs": 40, "problems": 20, "pool": 32},
            "measures": {"retrieval_across": found},
            "differences": {"retrieval_across": {"views": {**about["lead"], "against": "tfidf"}}},
        }
    write(folder / "pairing.json", {"settings": {"records": "r"}, "models": results})


@pytest.fixture
def before_and_after(tmp_path):
    make_run(tmp_path / "model")
    make_evaluation(tmp_path / "before", "base", [True, False, False, False], make_views(3))
    after = [False, True, True, False]
    make_evaluation(tmp_path / "after", str(tmp_path / "model"), after, make_views(0.3))
    return tmp_path


def read(*folders: Path) -> ReportData:
    return read_folders(list(map(str, folders)))


def evaluations(data: ReportData) -> list:
    return scored(label_evaluations(data.evaluations, data.runs))


# The answer first


def test_the_head_says_what_was_trained_and_what_came_of_it(before_and_after):
    words = Page(render(read(before_and_after))).words().partition("Figures")[0]
    assert "base, trained on train.jsonl with step_jepa, loss infonce, lbd 0.1" in words
    assert "3 optimisation steps, all weights, learning rate 0.001, seed 7; 5 examples, 8 pairs." in words
    assert "Of 4 held-out problems 2 gained and 1 lost." in words
    assert "The margin of true pairs grew (0." in words
    assert "before 25.0% [10.0%, 90.0%]" in words
    assert "after 50.0% [10.0%, 90.0%]" in words


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"lbd": 0.0}, "without a JEPA term"),
        ({"objective": ["none"]}, "without a JEPA term"),
        ({"objective": ["step_jepa", "stp"]}, "with step_jepa + stp, loss infonce, lbd 0.1"),
        (
            {"control": "past_target"},
            "with step_jepa, loss infonce, lbd 0.1; a control: the target is the step that was just read",
        ),
    ],
)
def test_the_title_names_the_method(tmp_path, options, method):
    make_run(tmp_path / "model", **options)
    assert title(read(tmp_path)) == f"base, trained on train.jsonl {method}"


def test_a_jepa_loss_goes_with_its_name(before_and_after):
    for part, settings in {"before": {}, "after": {"loss": "infonce"}}.items():
        summary = json.loads((before_and_after / part / "summary.json").read_text())
        write(
            before_and_after / part / "summary.json",
            {**summary, "jepa_loss": 0.25, "settings": {**summary["settings"], **settings}},
        )
    heads, before, after = figures_table(evaluations(read(before_and_after)))
    assert (before[heads.index("JEPA loss")], after[heads.index("JEPA loss")]) == ("0.2500", "0.2500 infonce")


def test_a_margin_has_an_interval_and_what_is_the_same_has_not_grown(tmp_path, before_and_after):
    margins = [each.margin for each in evaluations(read(before_and_after))]
    assert [margin["low"] < margin["value"] < margin["high"] for margin in margins] == [True, True]
    make_evaluation(before_and_after / "after", str(before_and_after / "model"), [True] * 4, make_views(3))
    data = read(before_and_after)
    assert "is not shown to have grown" in sentences(evaluations(data), [], data.runs)[-1]
    make_evaluation(tmp_path / "one", "base", [True], make_views(1, problems=1))
    assert evaluations(read(tmp_path / "one"))[0].margin is None  # nothing to compare


CONTROL = {**OPTIONS, "control": "shuffled_pairs"}
LEAD, NO_LEAD = figure(0.7, 0.6, 0.8), figure(0.05, -0.05, 0.15)


@pytest.mark.parametrize(
    ("found", "lead", "control", "verdict"),
    [
        ((0.9, 0.85, 0.95), LEAD, (0.3, 0.2, 0.4), "The pairing was learned: model finds"),
        ((0.9, 0.35, 0.95), LEAD, (0.3, 0.2, 0.4), "That the pairing was learned is not shown"),
        (
            (0.25, 0.2, 0.3),
            NO_LEAD,
            (0.1, 0.0, 0.1),
            "Baselines that need no model are not shown to be beaten",
        ),
        ((0.9, 0.85, 0.95), LEAD, None, "only a control on shuffled pairs can tell by what"),
    ],
)
def test_whether_the_pairing_was_learned(tmp_path, found, lead, control, verdict):
    make_run(tmp_path / "model")
    models = {str(tmp_path / "model"): {"run": OPTIONS, "found": figure(*found, chance=1 / 32), "lead": lead}}
    if control:
        models["shuffled"] = {"run": CONTROL, "found": figure(*control, chance=1 / 32), "lead": NO_LEAD}
    make_pairing(tmp_path / "pairing", models)
    data = read(tmp_path)
    (retrieval,) = retrievals(data)
    (sentence,) = sentences([], [retrieval], data.runs)
    assert verdict in sentence
    assert f"finds the next step in {found[0]:.0%} [" in sentence
    assert (f"(control: shuffled_pairs) in {control[0]:.0%} [" in sentence) if control else ("control:" not in sentence)


def test_a_run_is_held_against_the_control_of_its_own_loss(tmp_path):
    make_run(tmp_path / "model")
    trained = {"run": OPTIONS, "found": figure(0.6, 0.55, 0.65, chance=1 / 32), "lead": LEAD}
    controls = {
        "shuffled": {**trained, "run": CONTROL, "found": figure(0.3, 0.2, 0.4, chance=1 / 32)},
        "other": {**trained, "run": {**CONTROL, "loss": "cosine"}, "found": figure(0.9, 0.8, 1.0, chance=1 / 32)},
    }
    make_pairing(tmp_path / "pairing", {"other": controls["other"], "model": trained, "shuffled": controls["shuffled"]})
    data = read(tmp_path)
    (sentence,) = sentences([], retrievals(data), data.runs)
    assert sentence == (
        "The pairing was learned: model finds the next step in 60% [55%, 65%] of cases, shuffled (control: "
        "shuffled_pairs) in 30% [20%, 40%], the best baseline (TF-IDF) is 70 points behind."
    )


def test_nothing_is_said_of_a_pairing_that_was_not_measured(tmp_path):
    make_run(tmp_path / "model")
    assert "Whether the pairing was learned was not measured" in Page(render(read(tmp_path))).words()
    make_run(tmp_path / "model", objective=["none"])
    assert "pairing was learned" not in Page(render(read(tmp_path))).words()


# Retrieval


def test_models_of_several_files_stand_in_one_plot(tmp_path):
    make_run(tmp_path / "model")
    for name, run in {"model": OPTIONS, "shuffled": CONTROL, "base": {}}.items():
        about = {"run": run, "found": figure(0.5, 0.4, 0.6, chance=1 / 32), "lead": LEAD}
        make_pairing(tmp_path / f"pairing_{name}", {name: about})
    (retrieval,) = retrievals(read(tmp_path))
    labels = {kind: [dot.label for dot in dots] for kind, dots in retrieval.dots.items()}
    assert labels == {
        "trained": ["model"],
        "control": ["shuffled (control: shuffled_pairs)"],
        "other": ["base"],
        "baseline": ["TF-IDF"],
    }
    assert retrieval.chance == 1 / 32
    assert retrieval.rows[0] == ["base", "retrieval across", "views", "0.500 [0.400, 0.600]", "0.031", "40"]
    page = Page(render(read(tmp_path)))
    assert "20.0% [15.0%, 25.0%]" in page.words()
    assert "dashed: chance" in page.words()


def test_intervals_are_for_new_templates_where_there_are_some(tmp_path):
    make_run(tmp_path / "model")
    wide = figure(0.9, 0.85, 0.95, chance=1 / 32, low_template=0.5, high_template=1.0)
    lead = {**LEAD, "low_template": -0.1, "high_template": 1.5}
    make_pairing(tmp_path / "pairing", {"model": {"run": OPTIONS, "found": wide, "lead": lead}})
    data = read(tmp_path)
    (retrieval,) = retrievals(data)
    assert retrieval.dots["trained"][0].text == "90.0% [50.0%, 100.0%]"
    assert "Baselines that need no model are not shown to be beaten" in sentences([], [retrieval], data.runs)[0]


def test_places_on_an_axis_by_hand():
    plot = DotPlot("", [Dot("a", 0.5, 0.25, 1.2, "")], (0.0, "chance"), is_share=True)
    assert (plot.ticks[0], plot.ticks[-1]) == (0, 1)
    assert [plot.place(value) for value in (0, 0.25, 1, 1.2)] == ["0.00", "25.00", "100.00", "100.00"]
    assert (plot.tick_text(0.2), DotPlot("", []).tick_text(0.2)) == ("20 %", "0.2")
    same = DotPlot("", [share_dot("a", figure(0, 0, 0), "trained")])
    assert (same.ticks[0], same.ticks[-1], same.place(0)) == (pytest.approx(-0.6), pytest.approx(0.6), "50.00")


# Answers


def test_answers_to_one_problem_stand_side_by_side(before_and_after):
    data = read(before_and_after)
    assert changes(evaluations(data)) == (2, 1)
    (answers,) = answers_side_by_side(evaluations(data))
    assert [label for label, _ in answers.columns] == ["before", "after"]
    totals = {kind: [rows[0]["index"] for rows in examples.rows] for kind, examples in answers.kinds.items()}
    assert totals == {
        "Gained: wrong before, right after": [1, 2],
        "Lost: right before, wrong after": [0],
        "Wrong": [3],
    }
    assert "gold answer: 7 before wrong: 7 It is 8. after right: 7 It is 7." in Page(render(data)).words()


def test_answers_to_other_problems_do_not(before_and_after):
    make_evaluation(before_and_after / "after", str(before_and_after / "model"), [True] * 3)
    found = evaluations(read(before_and_after))
    assert changes(found) is None
    assert [len(each.columns) for each in answers_side_by_side(found)] == [1, 1]


# Curves


def test_a_line_is_smoothed_over_its_neighbours():
    values = np.zeros(40)
    values[[0, 20]] = 6.0  # two neighbours on both sides
    assert curves.smoothed(values)[[0, 1, 17, 18, 20, 22, 23]].tolist() == pytest.approx([2, 1.5, 0, 1.2, 1.2, 1.2, 0])


def test_what_is_not_finite_is_left_out_and_few_points_stay_as_they_are(tmp_path):
    make_run(tmp_path / "model")
    state = {"global_step": 3, "log_history": [{"step": 1, "lm_loss": 2.0}, {"step": 3, "lm_loss": float("nan")}]}
    write(tmp_path / "model" / "trainer_state.json", state)
    (run,) = read(tmp_path).runs
    (line,) = curves.lines(curves.QUANTITIES[0], [run], ["model"])
    assert (line.steps.tolist(), line.values.tolist(), line.is_smoothed) == ([1], [2], False)


def test_a_table_of_points_by_hand():
    lines = [curves.Line("a", np.array([0, 4]), np.array([1, 0.5]), 0, 0)]
    lines += [curves.Line("b", np.array([4]), np.array([0.123456]), 1, 0)]
    assert curves.points_table(lines) == [["0", "1", ""], ["4", "0.5", "0.1235"]]


# Several runs


def test_runs_are_shown_and_hidden_by_check_boxes(tmp_path):
    for number, name in enumerate("ab"):
        make_run(tmp_path / "out" / name, lbd=1.0 + number)
        make_evaluation(tmp_path / f"after_{name}", str(tmp_path / "out" / name), [True, False], make_views(1))
    page = Page(render(read(tmp_path / "out", tmp_path / "after_a", tmp_path / "after_b")))
    boxes = [each for each in page.all("input") if each.get("type") == "checkbox"]
    assert [box["value"] for box in boxes] == ["0", "1"]
    toggled = {tag for tag, attributes in page.elements if attributes.get("data-group") == "1"}
    assert toggled == {"g", "tr", "td", "th", "div", "figure"}  # lines, rows, columns, dots and answers, maps
    words = page.words()
    assert "2 runs of base" in words
    assert "where runs differ setting a b lbd 1.0 2.0" in words
    assert "seed 7" in words.partition("the same in all")[2]


def test_the_settings_of_plain_fine_tuning_name_no_loss_of_the_term(tmp_path):
    make_run(tmp_path / "model")
    make_run(tmp_path / "sft", objective=["none"])
    differing = main_settings(read(tmp_path).runs).differing
    assert differing == {
        "objective": ["step_jepa", "none"],
        "control": ["none", "-"],
        "loss": ["infonce", "-"],
        "lbd": ["0.1", "-"],
    }


def test_the_explorer_begins_with_rows_that_have_pairs(tmp_path):
    plain, paired = ({"rows": [{"pairs": pairs}]} for pairs in ([], [{"step": 1}]))
    make_run(tmp_path / "a", rows=plain, objective=["none"])
    make_run(tmp_path / "b", rows=paired)
    assert explored_rows(read(tmp_path).runs) == [{"run": "b", **paired}, {"run": "a", **plain}]


def test_a_single_run_has_no_check_boxes(before_and_after):
    page = Page(render(read(before_and_after)))
    assert not page.all("input")
    assert not [each for _, each in page.elements if "data-group" in each]


@pytest.mark.parametrize("count", [10, 50])
def test_the_page_of_many_runs_stays_small(tmp_path, count):
    rows = {"kinds": ["full_attention"], "window": None, "rows": [{"tokens": ["x"] * 5000}]}
    for number in range(count):
        make_run(tmp_path / "out" / f"{number}", steps=400, rows=rows, lbd=number + 1.0)
    page = render(read(tmp_path / "out"))
    assert len(page) < 2**20
    assert page.count("full_attention") == 1  # the rows are the same


# Experiments


def result(arm: str, baseline: str, *, primary: bool, difference: float) -> dict:
    found = {
        **{"arm": arm, "baseline": baseline, "seeds": [0, 1], "left_out": [], "problems": 4, "by_seed": [0.1, 0.3]},
        **{"difference": difference, "new_problems": [0.01, 0.4], "p": 0.04, "same_problems": [0.1, 0.3]},
        **{"same_problems_p": 0.04, "sign_flip_p": 0.5, "bootstrap": [0.1, 0.3], "components": None},
    }
    shared = {"measure": "accuracy", "holm": None, "detectable": None, "seeds_needed": None}
    words = {"sentence": f"{arm} minus {baseline}", "sign_flips": "none."}
    return {**shared, **words, "primary": primary, "found": found}


@pytest.fixture
def experiment(tmp_path):
    """Two arms of two seeds, as `ab` leaves them."""
    arms = {}
    for arm in ("sft", "step_jepa"):
        for seed in (0, 1):
            cell = tmp_path / "cells" / arm / f"seed-{seed}"
            make_run(cell / "model", objective=["none"] if arm == "sft" else ["step_jepa"])
            make_evaluation(cell / "scores", str(cell / "model"), [True, False, arm != "sft", False])
            write(cell / "cell.json", {"arm": arm, "seed": seed})
        summary = {"seeds": 2, "problems": 4, "mean": 0.25, "sd": 0.1, "new_problems": [0, 1], "same_problems": [0, 1]}
        arms[arm] = {
            **{"measures": {"accuracy": summary}, "steps": 3, "tokens": 9, "flops": 1.0},
            "figures": {"lm_loss": 1.0, "jepa_loss": None, "truncated": 0},
            "seconds": {"train": 1, "answer": 1, "all": 2},
        }
    write(
        tmp_path / "results.json",
        {
            **{"name": "mine", "date": "today", "command": "ab", "machine": "cpu", "seeds": [0, 1], "power": "little"},
            **{"missing": [], "closing": ["Step-JEPA changes the accuracy."], "measures": ["accuracy"]},
            **{"arms": {arm: arms[arm] for arm in ("step_jepa", "sft")}, "free": {}},
            "comparisons": [
                result("sft", "step_jepa", primary=False, difference=-0.2),
                result("step_jepa", "sft", primary=True, difference=0.2),
            ],
        },
    )
    (tmp_path / "results.csv").write_text("arm,seed,accuracy\nsft,0,0.2500001\n")
    return tmp_path


def test_the_page_of_an_experiment_shows_its_verdict_and_its_runs(experiment):
    data = read(experiment)
    names = ["step_jepa, seed 0", "step_jepa, seed 1", "sft, seed 0", "sft, seed 1"]
    assert [run.name for run in data.runs] == names  # arms as the results name them
    assert data.groups == ["step_jepa", "sft"]
    assert len(data.evaluations) == 2  # of the first seeds
    page = Page(render(data))
    words = page.words()
    assert words.index("Step-JEPA changes the accuracy.") < words.index("Arms shown")
    first, second = words.index("step_jepa - sft (primary) +0.200"), words.index("sft - step_jepa -0.200")
    assert first < second
    assert "sft 0 0.25" in words
    assert "step_jepa is wrong, another right" not in words
    assert "step_jepa is right, another wrong 1 problem" in words
    assert "Not measured" not in words
    assert len(page.all("input")) == 2


def test_runs_that_the_results_do_not_know_yet_come_last(experiment):
    make_run(experiment / "cells" / "later" / "seed-0" / "model")
    write(experiment / "cells" / "later" / "seed-0" / "cell.json", {"arm": "later", "seed": 0})
    data = read(experiment)
    assert data.groups == ["step_jepa", "sft", "later"]
    assert "later" in Page(render(data)).words()


# Views


def test_cosines_are_of_views_less_their_mean_on_a_scale_around_zero():
    # After centring, predicted and target are each +-(1, 0) and +-(0, 1).
    sides = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float16)
    views = {"predicted": sides + np.float16(0), "target": sides, "problem": np.array([0, 0, 1, 1])}
    views["step"] = np.array([1, 2, 1, 2])
    steps, within, across = view_maps.step_cosines(views)
    assert steps == [1, 2]
    assert within.tolist() == [[1, -1], [-1, 1]]
    assert across.tolist() == [[0, 0], [0, 0]]
    cells = view_maps._cells(within, 1.0)
    assert cells[0] == [("+1.00", "positive", 55), ("-1.00", "negative", 55)]


def test_maps_have_one_plane_in_common(before_and_after):
    found = evaluations(read(before_and_after))
    views = [each.labelled.evaluation.views for each in found]
    points, share = view_maps.plane(views)
    assert [places.shape for places in points] == [(48, 2)] * 2
    assert 0 < share < 1
    both = np.concatenate(points)
    assert both.mean(0) == pytest.approx([0, 0], abs=1e-6)  # one mean for all, not one of each
    around = view_maps.map_chart(points[0], views[0]["step"], both).axes[0]
    assert around.get_xlim() == view_maps.map_chart(points[1], views[1]["step"], both).axes[0].get_xlim()


def test_views_without_a_map_are_left_out(before_and_after):
    found = evaluations(read(before_and_after))
    assert view_maps.views_section(found, InlineFigures())["maps"]["charts"][0]["pairs"] == 24
    one_point = {side: np.ones((4, 8), np.float16) for side in ("predicted", "target")}
    same = {**one_point, "problem": np.array([0, 0, 1, 1]), "step": np.array([1, 2, 1, 2])}
    for views in (same, {**same, "predicted": np.full((4, 8), np.nan, np.float16)}):
        make_evaluation(before_and_after / "one", "base", [True] * 4, views)
        assert view_maps.views_section(evaluations(read(before_and_after / "one")), InlineFigures()) is None
