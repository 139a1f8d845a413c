"""Best of n: each rule by hand, its scores by one plain pass, and all of it on files."""

from math import nan

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from test_evaluate import arguments, results, solver  # noqa: F401

from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.data.reading import read_records
from step_jepa.data.records import with_answer
from step_jepa.errors import UserError
from step_jepa.evaluation.answers import is_correct
from step_jepa.evaluation.evaluate import run
from step_jepa.evaluation.scoring import mean_nll
from step_jepa.evaluation.selection import choose, compared, select
from step_jepa.objectives.planner import Planner
from step_jepa.surprise.measure import load, readable


@pytest.mark.parametrize(
    ("rule", "answers", "scores", "place"),
    [
        ("vote", ["5", "6", "5.0"], (), 0),
        ("vote", ["6", "5", "5", "6"], (), 0),  # a tie: the answer that was drawn first
        ("vote", [None, None, "5"], (), 2),
        ("likelihood", ["5", "6", "5"], [0.3, 0.1, 0.2], 1),
        ("likelihood", ["5", "6", "7"], [0.3, 0.1, 0.1], 1),  # a tie: the first
        ("likelihood", [None, "6", "7"], [0.0, None, 0.9], 2),  # no answer is never taken, no score last
        ("surprise", ["5", "6"], [nan, 0.4], 1),
        ("surprise", ["5", "6"], [None, nan], 0),
        ("surprise", [None, None], [0.2, 0.1], 0),
        ("vote+surprise", ["6", "5", "5.0"], [0.0, 0.8, 0.9], 1),  # the majority, however surprising
        ("vote+surprise", ["6", "5", "5", "6"], [0.1, 0.3, 0.4, 0.9], 1),  # a tie: .35 on average and not .5
        ("vote+surprise", ["6", "5"], [0.2, 0.2], 0),
        ("vote+surprise", ["6", "5"], [nan, 0.9], 1),
    ],
)
def test_what_a_rule_takes(rule, answers, scores, place):
    assert choose(rule, answers, is_correct, scores) == place


def row(*samples):
    """(answer, whether it is right, score) of each."""
    names = ("extracted", "correct", "nll")
    drawn = [dict(zip(names, each, strict=True)) | {"new_tokens": 7} for each in samples]
    return {**drawn[0], "index": 0, "samples": drawn}


def test_rules_side_by_side():
    rows = [
        row(("6", False, 0.1), ("5", True, 0.4), ("5", True, 0.3)),
        row(("5", True, 0.4), ("6", False, 0.9), ("7", False, 0.2)),
        row(("6", False, 0.4), ("6", False, 0.9), ("7", False, 0.2)),
        row(("6", None, 0.4), ("6", None, 0.9), ("7", None, 0.2)),  # no truth is known
    ]
    chosen = [select(each, ["likelihood", "vote"], "math") for each in rows]
    assert [each["selected"] for each in chosen] == [
        {"likelihood": 0, "vote": 1},
        {"likelihood": 2, "vote": 0},
        {"likelihood": 2, "vote": 0},
        {"likelihood": 2, "vote": 0},
    ]
    assert [each["extracted"] for each in chosen] == ["6", "7", "7", "7"]  # the first rule's
    summary = compared(chosen, {"nll": 99})
    shares = {rule: (each["correct"], each["tokens_read"]) for rule, each in summary["rules"].items()}
    assert shares == {"likelihood": (0, 99), "vote": (2, 0)}
    assert summary["rules"]["vote"]["accuracy"] == 2 / 3
    assert summary["rules"]["vote"]["ci95"] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert (summary["any"]["correct"], summary["tokens_written"]) == (2, 4 * 3 * 7)


@torch.no_grad()
def test_the_likelihood_is_that_of_the_answer_and_its_end(tokenizer):
    model = tiny_model()
    turns = [{"role": "user", "content": "2 + 3?"}]
    texts = ["So 5.\n\n#### 5", "", "No <|end|> idea", "5"]
    records = [{"messages": [*turns, {"role": "assistant", "content": text}]} for text in texts]
    by_hand = []
    for text in (texts[0], texts[3]):
        prompt = tokenizer("<|start|>user\n2 + 3?<|end|>\n<|start|>assistant\n")["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(f"{text}<|end|>")["input_ids"]]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        by_hand.append(float(F.cross_entropy(logits, ids[0, len(prompt) :])))
    for batch_size in (1, 4):
        scored = mean_nll(model, tokenizer, records, batch_size=batch_size)
        assert scored.scores[1:3] == [None, None]  # cannot be read
        assert [scored.scores[0], scored.scores[3]] == pytest.approx(by_hand, abs=1e-6)
        texts_alone = sum(len(tokenizer(text)["input_ids"]) for text in (texts[0], texts[3]))
        assert scored.tokens_read == texts_alone + 2 * (len(prompt) + len(["<|end|>", "line break"]))


def test_rules_on_files(solver, tmp_path, capsys):
    options = {"samples": 3, "temperature": 1.5}
    run(arguments(solver, tmp_path / "vote", **options))
    run(arguments(solver, tmp_path / "both", select=["likelihood", "vote"], **options))
    out = capsys.readouterr().out
    assert "selected by likelihood" in out
    assert "any of 3 right" in out
    (votes, by_vote), (rows, summary) = results(tmp_path / "vote"), results(tmp_path / "both")
    selection = summary["selection"]
    assert selection["rules"]["vote"] == by_vote["selection"]["rules"]["vote"]
    assert by_vote["accuracy"] == selection["rules"]["vote"]["accuracy"]
    assert summary["accuracy"] == selection["rules"]["likelihood"]["accuracy"]
    for each, voted in zip(rows, votes, strict=True):
        scores = [sample["nll"] for sample in each["samples"] if sample["extracted"] is not None]
        assert each["nll"] == min(scores)
        assert each["prediction"] == each["samples"][each["selected"]["likelihood"]]["prediction"]
        assert [sample["prediction"] for sample in each["samples"]] == [
            sample["prediction"] for sample in voted["samples"]
        ]
    assert selection["rules"]["vote"]["tokens_read"] == 0 < selection["rules"]["likelihood"]["tokens_read"]
    assert selection["tokens_written"] == sum(sum(each["new_tokens"] for each in row["samples"]) for row in rows)
    assert max(each["accuracy"] for each in selection["rules"].values()) <= selection["any"]["accuracy"]
    for wrong, message in [
        ({"select": ["likelihood"]}, "--select is read by --samples above 1 alone"),
        ({"select": ["best"], **options}, "select = best: give some of vote, likelihood, surprise"),
        ({"select": ["vote", "vote"], **options}, r"select = vote vote: .*each once"),
    ]:
        with pytest.raises(UserError, match=message):
            run(arguments(solver, tmp_path / "out", **wrong))


def test_surprise_on_files(solver, tmp_path):
    rules = ["surprise", "vote+surprise"]
    run(arguments(solver, tmp_path / "out", samples=3, temperature=1.5, select=rules))
    rows, summary = results(tmp_path / "out")
    problems, known = list(read_records(solver.test)), []
    for each in rows:
        taken = [sample["surprise"] for sample in each["samples"] if sample["extracted"] is not None]
        scores = [score for score in taken if score is not None]
        known += scores
        assert each["surprise"] == min(scores, default=None)
        assert each["selected"].keys() == set(rules)
    assert known
    answers = {(row["index"], sample["prediction"]) for row in rows for sample in row["samples"]}
    representation = load(solver.model)
    examples = readable(representation, [with_answer(problems[index], text) for index, text in answers])
    _, tokens = PlannedRows(examples, Planner(representation.objectives, 42)).token_counts()
    assert {each["tokens_read"] for each in summary["selection"]["rules"].values()} == {tokens}
