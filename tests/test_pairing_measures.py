"""The pairing's measures on sets whose figures are known beforehand, and the equations by hand."""

import json
import time
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from step_jepa.errors import UserError
from step_jepa.pairing.equations import equation, numbers
from step_jepa.pairing.measures import bootstrap, measure, scores_by_problem
from step_jepa.pairing.pairs import HeldOutPairs, PairScores
from step_jepa.pairing.retrieval import retrieval_scores
from step_jepa.pairing.scorers import similarities
from step_jepa.pairing.table import caption, document, sentence, summary_rows

H = 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def heldout(rng, predicted, target, later=4, **changes):
    """Pairs of problems with `later` steps after the first, in order; texts (of one word, all different) and embeddings
    tell nothing."""
    problems = len(predicted) // later
    fields = {
        "predicted": predicted,
        "target": target,
        "base_target": None,
        "problem": np.repeat(np.arange(problems), later),
        "step": np.tile(np.arange(1, later + 1), problems),
        "questions": ["how many"] * problems,
        "steps": [["so" + "!" * (i * later + step) for step in range(later + 1)] for i in range(problems)],
        "embedded_prefix": rng.standard_normal((len(predicted), H)),
        "embedded_step": rng.standard_normal((len(predicted), H)),
        "length": rng.integers(5, 30, len(predicted)),
    }
    return HeldOutPairs(**fields | changes)


def values(result, scorer="views"):
    return {name: scorers[scorer]["value"] for name, scorers in result["measures"].items() if scorer in scorers}


def test_perfect_views_have_every_point(rng):
    views = rng.standard_normal((120, H))
    result = measure(heldout(rng, views, views, base_target=-views))
    for name in ("retrieval_across", "retrieval_across_length_matched", "retrieval_within"):
        figure = result["measures"][name]["views"]
        assert (figure["value"], figure["low"], figure["high"]) == (1, 1, 1)
        assert result["measures"][name]["views_to_base"]["value"] == 0
        assert result["differences"][name]["views"]["value"] > 0.3
    assert values(result)["centred_margin"] == pytest.approx(1, abs=0.02)
    assert values(result, "views_to_base")["centred_margin"] == pytest.approx(-1, abs=0.02)
    assert result["measures"]["retrieval_across"]["views"]["chance"] == 1 / 32
    assert result["measures"]["retrieval_within"]["views"] == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 60,  # of four later steps, the first two have two more behind them
        "chance": 1 / 3,
    }
    none = dict.fromkeys(("retrieval_across", "retrieval_across_length_matched"), 0)
    assert result["left_out"] == none | {"retrieval_within": 60, "probes": 120}


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_collapsed_views_have_chance_and_no_margin(rng, noise):
    views = np.ones((2, 120, H)) + noise * rng.standard_normal((2, 120, H))
    found = values(measure(heldout(rng, *views.astype(np.float32))))
    assert found["raw_cosine_paired"] == pytest.approx(1)
    assert found["raw_cosine_unpaired"] == pytest.approx(1)
    assert found["centred_margin"] == 0
    assert found["retrieval_across"] == pytest.approx(1 / 32)
    assert found["retrieval_across_length_matched"] == pytest.approx(1 / 32)
    assert found["retrieval_within"] == pytest.approx(1 / 3)


def test_independent_views_have_chance_within_the_interval(rng):
    result = measure(heldout(rng, *rng.standard_normal((2, 800, H))))
    for name in ("retrieval_across", "retrieval_across_length_matched", "retrieval_within"):
        figure = result["measures"][name]["views"]
        assert figure["low"] < figure["chance"] < figure["high"]
    assert (
        result["measures"]["centred_margin"]["views"]["low"] < 0 < result["measures"]["centred_margin"]["views"]["high"]
    )
    assert not result["enough"]


def test_views_of_the_topic_alone_are_found_across_problems_and_not_within(rng):
    topic = np.repeat(rng.standard_normal((100, H)), 4, axis=0)
    result = measure(heldout(rng, *(topic + 0.3 * rng.standard_normal((2, 400, H)))))
    assert values(result)["retrieval_across"] > 0.95
    within = result["measures"]["retrieval_within"]["views"]
    assert within["low"] < 1 / 3 < within["high"]


def test_centred_margin_by_hand():
    # Centred, prefixes and steps are (1, 0), (-1, 0), (0, 1), (0, -1) and the pairs of the second axis are swapped.
    axes = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], float)
    result = measure(heldout(np.random.default_rng(0), axes + 7, axes[[0, 1, 3, 2]] + [5, -3], later=2))
    # own cosines 1, 1, -1, -1; the others of each pair sum to minus that, over three pairs: 4/3, 4/3, -4/3, -4/3
    figure = result["measures"]["centred_margin"]["views"]
    assert figure["value"] == pytest.approx(0)
    assert (figure["low"], figure["high"]) == pytest.approx((-4 / 3, 4 / 3))
    raw = (8 * 6 + 7 * -3) / np.hypot(8, 7) / np.hypot(6, -3)  # the first pair's, of four
    assert raw == pytest.approx(0.378633)
    others = [(6 * 4 + 7 * -3, (6, 7), (4, -3)), (7 * 5 + 8 * -4, (7, 8), (5, -4)), (7 * 5 + 6 * -2, (7, 6), (5, -2))]
    raw += sum(dot / np.hypot(*a) / np.hypot(*b) for dot, a, b in others)
    assert values(result)["raw_cosine_paired"] == pytest.approx(raw / 4)


def test_a_step_that_reads_the_same_is_no_wrong_answer(rng):
    # Every step is one of two problems', with the same view.
    views = np.repeat(rng.standard_normal((20, H)), 2, axis=0)
    steps = [["so", f"step {i // 2}"] for i in range(40)]
    data = heldout(rng, views, views, later=1, steps=steps)
    all_but_its_twin = values(measure(data, pool=39))
    assert all_but_its_twin["retrieval_across"] == 1
    assert all_but_its_twin["retrieval_across_length_matched"] == 1
    result = measure(data, pool=40)  # with it there would be 39 candidates
    assert result["left_out"]["retrieval_across"] == result["left_out"]["retrieval_across_length_matched"] == 40
    assert result["measures"]["retrieval_across"]["views"] == {
        **dict.fromkeys(("value", "low", "high")),
        "n": 0,
        "chance": 1 / 40,
    }
    steps = [["so", "a", "a"], ["so", "b", "b"]]
    within = measure(heldout(rng, *rng.standard_normal((2, 4, H)), later=2, steps=steps), pool_within=2)
    assert within["left_out"]["retrieval_within"] == 4


def test_steps_of_other_templates_alone(rng):
    # The view is the template: its own problems tie with each other, and never with another's.
    template = np.repeat(np.arange(10), 20)
    views = np.eye(10)[template]
    data = {"later": 2, "length": np.full(200, 7)}
    result = measure(heldout(rng, views, views, template=template, **data), pool=8)
    figure = result["measures"]["retrieval_across_templates"]["views"]
    assert {name: figure[name] for name in ("value", "low", "high", "n", "chance")} == {
        "value": 1,
        "low": 1,
        "high": 1,
        "n": 200,
        "chance": 1 / 8,
    }
    assert values(result)["retrieval_across"] < 0.9
    without = measure(heldout(rng, views, views, **data), pool=8)
    assert "retrieval_across_templates" not in without["measures"]
    assert "templates" not in without
    assert "low_template" not in without["measures"]["retrieval_across"]["views"]


def test_intervals_over_templates(rng):
    # In one template all pairs agree, in the other all are opposite: -1, 0 or 1 when two templates are drawn.
    views = rng.standard_normal((200, H))
    template = np.repeat(["coins", "trains"], 100)
    result = measure(heldout(rng, views, views * np.repeat([1, -1], 100)[:, None], later=2, template=template))
    figure = result["measures"]["raw_cosine_paired"]["views"]
    assert (figure["value"], figure["low_template"], figure["high_template"]) == pytest.approx((0, -1, 1))
    assert -0.4 < figure["low"] < figure["high"] < 0.4
    assert {"low_template", "high_template"} <= result["differences"]["centred_margin"]["views"].keys()
    assert "problems of 2 templates: intervals are over problems" in caption(result)
    assert "too narrow for new templates" in caption(result)
    alone = measure(heldout(rng, views, views, later=2, template=np.zeros(200, int)))
    figure = alone["measures"]["raw_cosine_paired"]["views"]
    assert (figure["value"], figure["low_template"], figure["high_template"]) == (pytest.approx(1), None, None)


def test_a_constant_added_to_all_views_changes_nothing(rng):
    views = rng.standard_normal((3, 120, H))
    pairs = [heldout(rng, *each[:2], base_target=each[2], **same) for each, same in _moved(rng, views)]
    before, after = (measure(each) for each in pairs)
    for scorer in ("views", "views_to_base"):
        for name, value in values(before, scorer).items():
            if not name.startswith("raw"):
                assert values(after, scorer)[name] == pytest.approx(value, abs=1e-9)


def _moved(rng, views):
    same = {"length": np.arange(120), "embedded_prefix": np.eye(120), "embedded_step": np.eye(120)}
    return [(views, same), (views + 10 * rng.standard_normal(H), same)]


def test_free_baselines_find_what_is_free(rng):
    questions = [f"word{i} {1000 + i} {2000 + i}" for i in range(40)]
    steps = [["first", f"word{i} {1000 + i}", f"it is {2000 + i}", "nothing"] for i in range(40)]
    chance = heldout(rng, *rng.standard_normal((2, 120, H)), later=3, questions=questions, steps=steps)
    result = measure(chance, pool=8)
    assert values(result, "position")["retrieval_within"] == 1
    tfidf = result["measures"]["retrieval_across"]["tfidf"]
    # The last step shares nothing with its prefix: all candidates tie, but for those with common words.
    assert tfidf["value"] == pytest.approx(2 / 3, abs=0.1)
    # One of three steps has no number, so that it ties with all steps of other problems; the other two are found.
    assert values(result, "numbers")["retrieval_across"] == pytest.approx((1 + 1 + 1 / 8) / 3)
    assert result["differences"]["retrieval_across"]["views"]["against"] in ("tfidf", "numbers")
    assert result["differences"]["retrieval_within"]["views"]["against"] != "position"
    assert result["differences"]["retrieval_across"]["views"]["high"] < 0
    by_problem = result["by_problem"]
    assert by_problem["retrieval_within"]["position"] == [1] * 40
    assert by_problem["retrieval_across"]["numbers"] == pytest.approx([(1 + 1 + 1 / 8) / 3] * 40)


def test_scores_of_problems_have_the_mean_and_the_spread_of_the_figure():
    """Three right pairs of one problem, a wrong one of another: 3/4, and each problem's pull on it by hand."""
    problem, weight = np.array([0, 0, 0, 1]), np.ones(4)
    assert scores_by_problem(PairScores(np.array([1, 1, 1, 0]), weight), problem) == [0.75 + 0.75 / 2, 0.75 - 0.75 / 2]
    assert scores_by_problem(PairScores(np.ones(4), weight), problem) == [1, 1]
    assert scores_by_problem(PairScores(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1])), problem) == [1]
    assert scores_by_problem(PairScores(np.zeros(4), np.zeros(4)), problem) == []


def test_numbers_are_shared_by_candidates(rng):
    pairs = heldout(rng, rng.standard_normal((4, H)), rng.standard_normal((4, H)), later=2)
    pairs.questions = ["7 of 12", "9"]
    pairs.steps = [["1", "7 + 1", "8"], ["2", "9 + 2 = 11", "no number"]]
    (similarity,) = [each for name, each in similarities(pairs, {}) if name == "numbers"]
    # Steps 7 + 1; 8; 9 + 2 = 11; no number. Prefixes: 7 12 1; 7 12 1 7 1; 9 2; 9 2 9 2 11.
    places = np.array([[0, 1, 2, 3]] * 4)
    assert similarity(places).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 2 / 3, 0], [0, 0, 1, 0]]


def test_retrieval_takes_no_square_of_the_pairs(rng):
    """Thousands of pairs: many problems, or one whose answer has a thousand steps."""
    peaks = []
    for count in (1000, 2000):
        pairs = heldout(rng, *rng.standard_normal((2, count, H)), later=count // 2)
        candidates = {"retrieval_across": rng.integers(0, count, (count, 8))}
        vectors = {"views": (pairs.predicted, pairs.target)}
        tracemalloc.start()
        retrieval_scores(pairs, vectors, candidates)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]


def test_tfidf_reads_numbers_of_one_digit(rng):
    questions, steps = [f"has {i}" for i in range(10)], [["so", f"gets {i}"] for i in range(10)]
    data = heldout(rng, *rng.standard_normal((2, 10, H)), later=1, questions=questions, steps=steps)
    assert values(measure(data), "tfidf")["retrieval_across"] == 1


def test_length_matched_pools_hold_the_nearest(rng):
    # Views are the length alone: told from any step, and not from steps of the same length.
    length = np.repeat(rng.permutation(np.repeat(np.arange(20) * 7, 10)), 2)
    views = np.eye(20)[length // 7]
    found = values(measure(heldout(rng, views, views, later=2, length=length), pool=5))
    assert found["retrieval_across_length_matched"] == pytest.approx(1 / 5)
    assert found["retrieval_across"] > 0.8


def arithmetic(rng, known, problems=150):
    """Steps `a op b = c`, whose predicted views hold the operation and log(1 + a), or noise."""
    operations = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}
    signs = rng.choice(list(operations), 3 * problems, p=[0.4, 0.2, 0.2, 0.2])
    a, b = rng.integers(2, 500, (2, 3 * problems))
    results = [operations[sign](*pair) for sign, *pair in zip(signs, a, b, strict=True)]
    texts = [f"{x} {s} {y} = {z:.2f}" for x, s, y, z in zip(a, signs, b, results, strict=True)]
    steps = [["so", *texts[3 * i : 3 * i + 3]] for i in range(problems)]
    signal = np.column_stack([signs[:, None] == list(operations), np.log1p(a), np.zeros((len(a), H - 5))])
    predicted = signal * known @ rng.standard_normal((H, H)) + 0.01 * rng.standard_normal((len(a), H))
    target = rng.standard_normal((len(a), H))
    return heldout(rng, predicted, target, later=3, steps=steps), signs


def test_a_probe_reads_what_is_there(rng):
    data, signs = arithmetic(rng, known=1)
    result = measure(data)
    assert result["measures"]["operation"]["views"]["value"] > 0.98
    assert result["measures"]["first_operand"]["views"]["value"] > 0.98
    assert values(result)["second_operand"] < 0.1
    majority = result["measures"]["operation"]["majority"]
    assert majority["value"] == pytest.approx(np.mean(signs == "+"))
    assert majority["low"] < majority["value"] < majority["high"]
    difference = result["differences"]["operation"]["views"]
    assert difference["against"] in ("majority", "embedding", "tfidf")
    assert difference["low"] > 0.5
    assert result["operations"] == {sign: int((signs == sign).sum()) for sign in signs}


def test_a_probe_does_not_read_what_is_not_there(rng):
    result = measure(arithmetic(rng, known=0)[0])
    operation = result["measures"]["operation"]
    assert operation["views"]["value"] < operation["majority"]["value"] + 0.03
    for name in ("first_operand", "second_operand", "result"):
        assert -0.2 < values(result)[name] < 0.02


def test_components_that_only_rounding_keeps_from_zero_say_nothing(rng):
    """Texts of few words and fewer pairs: standardised, such a component made R2 -4.7e9."""
    questions, steps = [], []
    for i in range(15):
        questions.append(f"Is it {i}?")
        steps.append(["so", f"So {i} + 1 = {i + 1}", f"So {i} + 2 = {i + 2}"])
    views = rng.standard_normal((2, 30, H))
    result = measure(heldout(rng, *views, later=2, questions=questions, steps=steps))
    for name in ("first_operand", "second_operand", "result"):
        assert -1 < values(result, "tfidf")[name] <= 1


def test_a_probe_of_collapsed_views_knows_the_mean_and_no_more(rng):
    data, _ = arithmetic(rng, known=1)
    data.predicted = np.ones_like(data.predicted)
    result = measure(data)
    assert values(result)["operation"] == values(result, "majority")["operation"]
    for name in ("first_operand", "second_operand", "result"):
        assert values(result)[name] == pytest.approx(0)


def test_a_figure_that_cannot_be_is_not_given_out(rng, monkeypatch):
    views = rng.standard_normal((120, H))
    data = heldout(rng, views, views)
    monkeypatch.setattr("step_jepa.pairing.cosines.unit", lambda vectors: 2 * vectors)
    with pytest.raises(AssertionError, match="raw_cosine_paired"):
        measure(data)


def test_pairs_without_an_equation_are_left_out_of_the_probes(rng):
    data, signs = arithmetic(rng, known=1)
    data.steps = [steps if i % 3 else ["so", "and so", *steps[2:]] for i, steps in enumerate(data.steps)]
    known = (data.problem % 3 > 0) | (data.step > 1)
    result = measure(data)
    figure = result["measures"]["operation"]["majority"]
    expected = bootstrap((signs == "+")[known].astype(float), data.problem[known], 42)
    assert (figure["value"], figure["low"], figure["high"]) == pytest.approx(expected)
    assert figure["n"] == 400
    assert result["left_out"]["probes"] == 50


def test_probes_keep_a_template_in_one_fold(rng):
    # Problems of one template share the operation and the view, which says nothing about other templates.
    template = np.repeat(np.arange(30), 4)
    signs = rng.permutation(["+", "-"] * 15)
    steps = [["so", *[f"{2 + i} {sign} 2 = {rng.integers(2, 99)}"] * 2] for i, sign in enumerate(np.repeat(signs, 2))]
    views = rng.standard_normal((30, 64))[template]
    data = {"later": 2, "steps": steps}
    seen = measure(heldout(rng, views, views, **data))
    unseen = measure(heldout(rng, views, views, template=template, **data))
    assert values(seen)["operation"] > 0.9
    assert values(unseen)["operation"] < 0.75


def test_the_bootstrap_is_scipys_where_each_problem_has_one_pair(rng):
    sample = rng.exponential(size=200)
    mean, low, high = bootstrap(sample, np.arange(200), 1)
    theirs = scipy.stats.bootstrap((sample,), np.mean, n_resamples=20000, method="percentile", rng=rng)
    assert mean == pytest.approx(sample.mean())
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_the_bootstrap_knows_that_equal_pairs_of_a_problem_are_one(rng):
    one = rng.standard_normal(50)
    mean, low, high = bootstrap(np.repeat(one, 9), np.repeat(np.arange(50), 9), 1)
    assert (mean, low, high) == pytest.approx(bootstrap(one, np.arange(50), 1))
    naive = bootstrap(np.repeat(one, 9), np.arange(450), 1)
    assert (high - low) / (naive[2] - naive[1]) == pytest.approx(3, rel=0.15)


def test_the_bootstrap_weighs():
    mean, low, high = bootstrap(np.array([1.0, 2, 6]), np.array([0, 0, 7]), 1, weight=np.array([1.0, 1, 4]))
    assert mean == 9 / 6
    assert (low, high) == (3 / 2, 6 / 4)


def test_the_seed_decides(rng):
    data = heldout(rng, *rng.standard_normal((2, 120, H)))
    assert measure(data) == measure(data)
    assert measure(data)["measures"]["retrieval_across"] != measure(data, seed=1)["measures"]["retrieval_across"]


def test_few_pairs_give_small_pools_and_none(rng):
    result = measure(heldout(rng, *rng.standard_normal((2, 4, H)), later=2))
    assert result["pool"] == 3
    assert result["measures"]["retrieval_across"]["views"]["chance"] == 1 / 3
    unknown = dict.fromkeys(("value", "low", "high"))
    assert result["measures"]["retrieval_within"]["views"] == unknown | {"n": 0, "chance": 1 / 3}
    assert "operation" not in result["measures"]


def test_a_result_is_json_rows_a_sentence_and_a_table(rng):
    result = measure(arithmetic(rng, known=1, problems=20)[0]) | {"lm_loss": 1.5, "run": {}}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    rows = summary_rows(result)
    assert list(rows) == ["model", "pairs", "centred margin", "retrieval across", "retrieval within"]
    assert "fewer than 1000 pairs: intervals are wide" in rows["pairs"]
    assert "templates" not in rows["pairs"]
    page = document({"run": result})
    assert sentence("run", result) in page
    assert "| position (oracle) |" in page
    assert "| views - " in page


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "tell the next step better than what is free (+0.200 [+0.100, +0.300] against tfidf"),
        (-0.3, -0.1, "tell the next step less well than what is free"),
        (-0.1, 0.3, "are not shown to tell the next step better than what is free"),
        (None, None, "cannot be said of these pairs"),
    ],
)
def test_the_sentence_follows_from_the_interval(low, high, words):
    value = None if low is None else (low + high) / 2
    figure = {"value": value, "low": low, "high": high, "against": "tfidf", "n": 9}
    assert words in sentence("run", {"differences": {"retrieval_across": {"views": figure}}})


def test_what_cannot_be_measured(rng):
    views = rng.standard_normal((4, H))
    with pytest.raises(UserError, match="one problem alone"):
        measure(heldout(rng, views, views, later=4))
    with pytest.raises(UserError, match=r"target views .* not finite"):
        measure(heldout(rng, views, views * np.nan, later=2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Natalia sold 48/2 = 24 clips in May.", (48, "/", 2, 24)),
        ("48+24 = 72", (48, "+", 24, 72)),
        ("Weng earns 12/60 = $0.2 per minute.", (12, "/", 60, 0.2)),
        ("5 loaves of bread cost 5 * $7 = $35.", (5, "*", 7, 35)),
        ("900 onion / 12 onion/minute = 75 minutes", (900, "/", 12, 75)),
        ("David has 40 x 40= 1600 pineapples", (40, "*", 40, 1600)),
        ("He has 4x12=48 eggs", (4, "*", 12, 48)),
        ("$60,000 + $30,000 = $90,000", (60000, "+", 30000, 90000)),
        ("it has 2.50 + .25 = 2.75", (2.5, "+", 0.25, 2.75)),
        ("2 * 3 + 4 = 10", (2, "*", 3, 10)),
        ("in one day 2 + 9 + 7 = 18 sushi rolls", (2, "+", 9, 18)),
        ("Jimmy did 1/2 * 484 pieces = 242 pieces.", (0.5, "*", 484, 242)),
        ("it takes her 14\u00f72/5=35 minutes", (14, "/", 0.4, 35)),
        ("or 13/65 = 1/5 miles per minute", (13, "/", 65, 0.2)),
        ("2 * 1/5 = 2/5 miles", (2, "*", 0.2, 0.4)),
        ("1/100000 * 300000 = 3", (0.00001, "*", 300000, 3)),
        ("2 + 3 = 5 + y; 4 + 5 = 9", (2, "+", 3, 5)),
        ("2 + 3 = 7 - 2 or 8 * 2 = 16", (8, "*", 2, 16)),
        ("1 + 2 = 3/1 = 3 + 0", (1, "+", 2, 3)),
        ("z1 + 2 + 3 = 6", (2, "+", 3, 6)),
        ("20% of 50 = 10", (0.2, "*", 50, 10)),
        ("25% * 80 = 20", (0.25, "*", 80, 20)),
        ("3 \u00d7 (4 + 1) = 15", (3, "*", 4, 15)),
        ("M = 18 / 3 = 6 miles", (18, "/", 3, 6)),
        ("2 * 225 + 2 * 125 = 450 + 250 = 700 feet", (2, "*", 225, 700)),
        ("Natalia sold 48/2 = <<48/2=24>>24 clips", (48, "/", 2, 24)),
        (r"We get $3 \times 4 = 12$.", (3, "*", 4, 12)),
        ("By day 3, 20 - 5 = 15 are left and 15 - 1 = 14.", (20, "-", 5, 15)),
        ("5 - 8 = -3 degrees", (5, "-", 8, -3)),
        ("x = 27", None),
        ("5*X - 18 = 77.", None),
        ("so 5x + 3 = 18", None),
        ("Patricia = 498 points", None),
        ("1 / 2 = 3/0", None),
        ("#### 42", None),
        ("", None),
    ],
)
def test_equations(text, expected):
    assert equation(text) == expected


@pytest.mark.parametrize("repeated", ["1+5x", "1+5=", "-1", "1x", "1/2+"])
def test_an_answer_that_repeats_itself_is_read_in_linear_time(repeated):
    start = time.perf_counter()
    assert equation(repeated * 10_000 + "; 3 * 4 = 12") == (3, "*", 4, 12)
    assert time.perf_counter() - start < 5  # quadratic, it is minutes


def test_numbers():
    assert numbers("He paid $1,000.50, 20% and 1/2 - 3-4 .5 on 7.") == [1000.5, 20, 1, 2, 3, 4, 0.5, 7]
