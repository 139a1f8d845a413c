"""`step-jepa audit`: known answers from a model that only copies, separate passes of real ones, and the command."""

import json
from dataclasses import replace
from itertools import islice
from math import log, nan
from random import Random
from string import ascii_letters
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, SHARED, byte_tokenizer, conversation, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, set_seed

from step_jepa.auditing import audit as command
from step_jepa.auditing.audit import AuditArguments, audit
from step_jepa.auditing.information import StepPlace, draw_mismatches, measure_information, scored_steps
from step_jepa.auditing.overlap import ExampleText, overlap
from step_jepa.auditing.segmentation import segment
from step_jepa.auditing.verdict import best_segmentations, dependence, largest_part
from step_jepa.cli import main
from step_jepa.data.example import Example
from step_jepa.data.reading import read_records
from step_jepa.data.tokens import encode
from step_jepa.errors import UserError

VOCABULARY = 300


class Copier(torch.nn.Module):
    """After a token of which it sees an earlier one, it expects what followed the last such; else it knows nothing."""

    def __init__(self, sure: float = 60.0):
        super().__init__()
        self.sure, self.embeddings, self.device = sure, torch.nn.Embedding(VOCABULARY, 1), torch.device("cpu")
        self.config = LlamaConfig(vocab_size=VOCABULARY, attn_implementation="sdpa")

    def get_input_embeddings(self):
        return self.embeddings

    def get_output_embeddings(self):
        return None  # its logits come from no head

    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row, place in logits_to_keep.nonzero().tolist():
            *before, now = input_ids[row, attention_mask[row, 0, place].nonzero()[:, 0]].tolist()
            if now in before:
                copied = len(before) - 1 - before[::-1].index(now)
                logits[row, place, [*before, now][copied + 1]] = self.sure
        return SimpleNamespace(logits=logits[logits_to_keep])


def example(index: int, *parts: list[int], answer: int | None = None) -> Example:
    """A question, its steps, and an end-of-turn token of its own."""
    ids, steps = list(parts[0]), []
    for part in parts[1:]:
        steps.append((len(ids), len(ids) + len(part)))
        ids += part
    return Example(
        text="", input_ids=[*ids, 299], labels=[], steps=steps, chars=[], user=None, answer=answer, index=index
    )


def fresh(start: int, length: int) -> list[int]:
    """Tokens that nobody else has."""
    return list(range(start, start + length))


def measured(*examples: Example, batch_size: int = 2):
    return measure_information(Copier(), examples, pad_id=0, batch_size=batch_size)


def test_independent_steps_tell_nothing():
    found = measured(*[example(n, *[fresh(60 * n + 20 * step, 3 + n + step) for step in range(3)]) for n in range(4)])
    assert len(found.in_context) == sum(3 + n + step - 1 for n in range(4) for step in (2,))
    for values in (found.in_context, found.mismatched, found.isolated):
        np.testing.assert_allclose(values, -log(VOCABULARY), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_copied_step_tells_its_full_length(batch_size):
    rows = [example(n, fresh(50 * n, 9 - n), fresh(50 * n + 20, 4 + n), fresh(50 * n + 20, 4 + n)) for n in range(5)]
    found = measured(*rows, batch_size=batch_size)
    assert found.problem.tolist() == [n for n in range(5) for _ in range(3 + n)]
    assert set(found.step) == {1}
    for n, row in enumerate(rows):
        here = found.problem == n
        assert found.token[here].tolist() == list(range(row.steps[1][0] + 1, row.steps[1][1]))
        length = len(found.in_context[here])
        assert (found.in_context - found.isolated)[here].sum() == pytest.approx(length * log(VOCABULARY), rel=1e-6)
        assert (found.in_context - found.mismatched)[here].sum() == pytest.approx(length * log(VOCABULARY), rel=1e-6)


def test_a_model_that_diverged_is_refused():
    rows = [example(n, [1, 2], [3, 4], [3, 4]) for n in range(2)]
    with pytest.raises(UserError, match="not finite"):
        measure_information(Copier(sure=nan), rows, pad_id=0)


def test_what_every_past_has_is_form():
    """The last step stands in every question, so that any problem's past tells it."""
    rows = [example(n, fresh(0, 6), fresh(50 * n + 20, 3), fresh(0, 6)) for n in range(3)]
    found = measured(*rows)
    np.testing.assert_allclose(found.in_context, 0, atol=1e-6)
    np.testing.assert_allclose(found.mismatched, 0, atol=1e-6)
    np.testing.assert_allclose(found.isolated, -log(VOCABULARY), rtol=1e-6)


def gpt2():
    """A model whose positions are learned, so that it matters where a branch stands."""
    set_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=264, n_positions=256, n_embd=32, n_layer=2, n_head=4)).eval()


@pytest.mark.parametrize(
    ("name", "flat"), [("llama", True), ("llama", False), ("gemma3", True), ("gemma3", False), ("gpt2", False)]
)
def test_readings_equal_separate_passes(name, flat, tokenizer):
    rows = [
        conversation("So it is two.", "Then three", "#### 3", question="What comes after two?"),
        conversation("One.", "And one more is two.", "No: three.", question="Count!"),
        conversation("It is raining, as they say.", "Take it.", "#### yes", question="Umbrella?"),
    ]
    examples = [
        replace(encode(tokenizer, row["messages"], row["steps"]), index=place) for place, row in enumerate(rows)
    ]
    model = gpt2() if name == "gpt2" else tiny_model(name)
    found = measure_information(model, examples, pad_id=258, flat=flat, batch_size=3)
    pairs = draw_mismatches(examples)
    assert min(len(each.input_ids) for each in examples) > ARCHITECTURES["gemma3"][2]["sliding_window"]

    @torch.no_grad()
    def scores(past, start, step):
        """Of the step's tokens but the first, read after the past, at positions that end with the past's."""
        ids = torch.tensor([[*past, *step]])
        places = torch.arange(start - len(past), start + len(step))[None]
        logits = model(ids, position_ids=places).logits[0].log_softmax(-1)
        return [logits[len(past) + k, token].item() for k, token in enumerate(step[1:])]

    read = 0
    for problem, each in enumerate(examples):
        for step in scored_steps(each):
            start, stop = each.steps[step]
            here, ids = (found.problem == problem) & (found.step == step), each.input_ids[start:stop]
            other = examples[pairs[problem, step].problem]
            before = other.steps[pairs[problem, step].step][0]
            assert found.token[here].tolist() == list(range(start + 1, stop))
            np.testing.assert_allclose(found.in_context[here], scores(each.input_ids[:start], start, ids), atol=1e-4)
            np.testing.assert_allclose(found.mismatched[here], scores(other.input_ids[:before], before, ids), atol=1e-4)
            np.testing.assert_allclose(found.isolated[here], scores([], start, ids), atol=1e-4)
            read += here.sum()
    assert read == len(found.in_context) == sum(b - a - 1 for each in examples for a, b in each.steps[1:])


def test_partners_are_of_the_same_index_and_kind():
    def rows(*steps):
        return [example(n, [0], *[[1, 2]] * count, answer=answer) for n, (count, answer) in enumerate(steps)]

    examples = rows((3, 2), (3, 2), (3, None), (2, 1), (5, None), (3, None))
    pairs = draw_mismatches(examples, seed=1)
    assert sorted(pairs) == [
        StepPlace(n, step) for n, each in enumerate(examples) for step in range(1, len(each.steps))
    ]
    assert all(own.problem != other.problem for own, other in pairs.items())
    alike = {own: other for own, other in pairs.items() if own.step < 3 and own != StepPlace(3, 1)}
    assert all(own.step == other.step for own, other in alike.items())
    assert {pairs[StepPlace(n, 2)].problem for n in (0, 1)} == {0, 1}  # answers
    assert len(set(alike.values())) == len(alike)  # every past is lent once
    assert pairs[StepPlace(3, 1)].step == 1  # the only answer of that index
    assert pairs[StepPlace(4, 4)].step == 2  # the nearest that another problem has
    assert draw_mismatches(examples, seed=1) == pairs


def test_a_step_of_one_token_is_not_scored():
    rows = [example(n, [1, 2], [3, 4], [5], [6, 7], []) for n in range(2)]
    assert scored_steps(rows[0]) == [2]
    assert set(measured(*rows).step) == {2}


TEXT = "be 7: is 2 + 5.5 so? 7 2 Is 72.\n\nOr 5.5 so it."
PIECES = [
    "be 7: ",
    "is",
    " ",
    "2",
    " + 5",
    ".5 so?",
    " 7",
    " 2",
    " Is",
    " 7",
    "2",
    ".\n\n",
    "Or",
    " 5",
    ".5",
    " so it.",
]


def text() -> ExampleText:
    """Steps "7 2 is 72." and "So 5.5 it is."; the question begins at "is"."""
    ends = np.cumsum([len(piece) for piece in PIECES]).tolist()
    ids = list(range(len(PIECES)))
    steps = Example(text=TEXT, input_ids=ids, labels=[], steps=[(6, 12), (12, 16)], chars=[], user=(1, 6))
    return ExampleText(steps, list(zip([0, *ends], ends, strict=False)))


def test_words_said_before_by_hand():
    assert "".join(PIECES) == TEXT
    assert text().step(1) == "Or 5.5 so it."
    assert text().past(1) == "is 2 + 5.5 so? 7 2 Is 72.\n\n"
    repeated = dict(zip(range(6, 16), text().repeats()[6:], strict=True))
    # "7" stands before the question only; of 72 both tokens are new; "." is no part of 5.5, and new as a sign
    assert [repeated[token] for token in range(6, 12)] == [False, True, True, False, False, False]
    # 5.5 was said as a whole; "so" too, but "it" is new
    assert [repeated[token] for token in range(12, 16)] == [False, True, True, False]
    assert not any(text().repeats()[:6])


def test_what_is_free_by_hand():
    found = overlap([text(), text()], [0, 1], [0, 1])
    assert found.numbers.tolist() == [1 / 3, 1.0]  # of 7, 2 and 72 the question has 2
    # Words of step 1: or, 5, 5, so, it; of its past: is, 2, 5, 5, so, 7, 2, is, 72. All documents are one: idf is 1.
    assert found.tfidf[1] == pytest.approx((2 * 2 + 1) / (7 * (4 + 4 + 4 + 1 + 1 + 1)) ** 0.5)


# Ways of cutting.

CONTENT = "Step 1: Ann has two\nor even three.\n\nStep 2: Bob has one.\n\nThat is four.\n#### 4"
STEPS = ["Step 1: Ann has two\nor even three.\n\nStep 2: Bob has one.", "That is four.", "#### 4"]
BY_MARKERS = ["Step 1: Ann has two\nor even three.", "Step 2: Bob has one.", "That is four.", "#### 4"]
BY_LINES = ["Step 1: Ann has two", "or even three.", "Step 2: Bob has one.", "That is four.", "#### 4"]


READ = {"max_length": 1024, "seed": 0}


def marked(content: str = CONTENT, steps: list[str] = STEPS) -> dict:
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": content}]
    return {"messages": turns, "steps": steps}


def texts_of(examples: list[Example]) -> list[list[str]]:
    return [[each.text[a:b].strip() for a, b in each.chars] for each in examples]


def test_ways_of_cutting(tokenizer):
    found = segment([marked()] * 2, tokenizer, **READ)
    assert texts_of(found["record"].examples) == [STEPS] * 2
    assert texts_of(found["markers"].examples) == [BY_MARKERS] * 2
    assert texts_of(found["lines"].examples) == [BY_LINES] * 2
    assert [cut.unscored for cut in found.values()] == [None, None, "the same cuts as markers", None, None]
    own, random = found["record"].examples[0].steps, found["random"].examples[0].steps
    assert [b - a for a, b in random] == [own[1][1] - own[1][0], own[0][1] - own[0][0], own[2][1] - own[2][0]]
    assert all(cut.examples[1].input_ids == found["record"].examples[0].input_ids for cut in found.values())


def test_a_way_that_finds_few_steps_is_not_scored(tokenizer):
    plain = marked("Ann has two.\nBob has one.\n#### 3", ["Ann has two.", "Bob has one.", "#### 3"])
    found = segment([marked(), *[plain] * 9], tokenizer, **READ)
    assert found["markers"].unscored == found["paragraphs"].unscored == "two steps in 1 of 10 rows"
    assert found["lines"].unscored is None
    assert segment([marked(), *[plain] * 8], tokenizer, **READ)["markers"].unscored == "two steps in 1 of 9 rows"
    assert segment([marked(), marked(), *[plain] * 8], tokenizer, **READ)["markers"].unscored is None


def test_a_way_whose_steps_do_not_fit_is_not_scored(tokenizer):
    """Where there is but one paragraph, longer than max_length, the records' own steps may fit all the same."""
    content = "Ann has two.\nBob has one.\nThat is " + "really " * 20 + "three."
    records = [marked(content, ["Ann has two.", "Bob has one.", "That is " + "really " * 20 + "three."])] * 2
    cut = segment(records, tokenizer, max_length=100, seed=0)
    assert texts_of(cut["record"].examples) == [["Ann has two.", "Bob has one."]] * 2
    assert cut["paragraphs"].unscored == "no whole step fits into max_length = 100"
    assert cut["paragraphs"].examples == []
    assert cut["lines"].unscored == "the same cuts as record"
    with pytest.raises(UserError, match="no whole step fits into max_length = 3"):
        segment(records, tokenizer, max_length=3, seed=0)


def test_rows_without_two_steps_are_left_out(tokenizer):
    short = marked("Ann has two.\n#### 2", ["Ann has two.", "#### 2"])
    found = segment([short, marked(), short, marked()], tokenizer, **READ)["record"].examples
    assert [each.index for each in found] == [0, 1]


# What the figures say.


def figures_of(share: float = 0.5, low: float | None = 0.1, **values: float) -> dict:
    figures = {"form": 0.1, "words": 0.3, "more": 0.2, "specific": 0.5, "past": 0.6} | values
    per_token = {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name, value in figures.items()}
    per_token["specific"]["low"] = low
    return {"per_token": per_token, "share": {"value": share}}


def test_levels_and_kinds():
    assert dependence(figures_of(low=-0.01, share=0.9)) == "nothing"
    assert dependence(figures_of(low=0.0)) == "nothing"
    assert dependence(figures_of(low=0.01, share=0.24)) == "little"
    assert dependence(figures_of(low=0.01, share=0.25)) == "much"
    assert largest_part(figures_of()) == "words"
    assert largest_part(figures_of(more=0.4)) == "more"
    assert largest_part(figures_of(form=0.4)) == "form"


def test_the_boundaries_that_carry_most():
    def way(value, low):
        return {"all": figures_of(specific=value, low=low)}

    ways = {"record": way(0.5, 0.4), "lines": way(0.9, 0.8), "random": way(0.75, 0.6), "markers": {"unscored": "why"}}
    assert best_segmentations(ways) == ["lines", "random"]  # random reaches to 0.85
    assert best_segmentations({**ways, "lines": way(0.9, 0.86)}) == ["lines"]


# The command.


def run(*argv) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["audit", *map(str, argv)])
    return stopped.value.code


def written_to(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train_file(records, tmp_path):
    return written_to(tmp_path / "train.jsonl", records)


def test_the_command_prints_and_draws(model_folder, train_file, tmp_path, capsys):
    files = ["--model_name", model_folder, "--train_file", train_file]
    assert run(*files, "--output", tmp_path / "new" / "audit.png") == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 5 + 1
    page = (tmp_path / "new" / "audit.md").read_text()
    for words in ("| 8 of 9 |", "the same cuts as record", "reads it, the past says ", "Not scored: step 0"):
        assert words in page
    assert "\n| answer |" in page
    assert (tmp_path / "new" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert run(*files, "--json", "--output", tmp_path / "audit.svg") == 0
    result = json.loads(capsys.readouterr().out)
    assert "<svg" in (tmp_path / "audit.svg").read_text()
    assert result["rows"] == 9
    assert result["statement"][0] in printed
    assert list(result["ways"]) == ["record", "markers", "paragraphs", "lines", "random"]
    record = result["ways"]["record"]
    assert record["rows"] == 8
    assert record["steps_per_row"] == (3 * 3 + 4 * 3 + 2 * 2) / 8
    assert {step: way["count"] for step, way in record["steps"].items()} == {"1": 8, "2": 6, "3": 3}
    assert record["all"]["count"] == 17
    assert record["answer"]["count"] == 8
    assert [way["only_answer"] for way in record["steps"].values()] == [0, 2 / 8, 3 / 6]
    assert record["steps"]["1"]["length"] == len("So 1 + 1 = 2") + 1  # ".\n\n" is one token
    assert record["steps"]["3"]["shared_numbers"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)  # 2 + 3, 5 + 3, 8 + 3
    for figures in (record["all"], record["answer"], *record["steps"].values()):
        for per in (figures["per_token"], figures["per_step"]):
            value = {name: figure["value"] for name, figure in per.items()}
            assert value["past"] == pytest.approx(value["form"] + value["specific"])
            assert value["specific"] == pytest.approx(value["words"] + value["more"])
            assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in per.values())
        ratio = figures["per_step"]["past"]["value"] / figures["per_token"]["past"]["value"]
        assert ratio == pytest.approx(figures["tokens"] / figures["count"])


def copying(monkeypatch, rows, tmp_path) -> dict:
    """The audit of rows by the copier."""
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(command, "setup_model_and_tokenizer", lambda *names, **options: (Copier(sure=8), tokenizer))
    monkeypatch.setattr(command.attention, "check", lambda model, flat: None)
    return audit(AuditArguments("copier", written_to(tmp_path / "rows.jsonl", rows), batch_size=8))


def test_shuffled_across_problems_steps_tell_nothing(monkeypatch, tmp_path):
    """Each step says what the step before it says; then each is another problem's."""
    words = ["".join(Random(n).sample(ascii_letters, 16)) for n in range(24)]
    rows = [conversation(*[word] * 3) for word in words]
    others = [conversation(*[words[n - k] for k in range(3)]) for n in range(24)]
    own, shuffled = copying(monkeypatch, rows, tmp_path), copying(monkeypatch, others, tmp_path)
    figures, shuffled_figures = own["ways"]["record"]["all"], shuffled["ways"]["record"]["all"]
    assert own["level"] == "much"
    assert largest_part(figures) == "words"
    assert figures["per_token"]["more"]["value"] == pytest.approx(0, abs=0.01)
    assert shuffled["level"] == "nothing"
    assert shuffled_figures["per_token"]["specific"]["high"] < 0.2 * figures["per_token"]["specific"]["low"]
    assert "says nothing" in shuffled["statement"][0]


def test_only_the_first_steps_have_figures_of_their_own(monkeypatch, tmp_path):
    rows = [conversation(*[f"{n} {step}" for step in range(25)]) for n in range(2)]
    result = copying(monkeypatch, rows, tmp_path)
    way = result["ways"]["record"]
    assert list(way["steps"]) == list(range(1, 21))
    assert way["all"]["count"] == 48
    assert any("of the first 20 steps" in sentence for sentence in result["statement"])


def test_what_cannot_be_audited_is_refused_in_one_line(model_folder, train_file, tmp_path, monkeypatch, capsys):
    def refused(words, *options, file=train_file, code=2):
        assert run("--model_name", model_folder, "--train_file", file, *options) == code
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("step-jepa: ")
        assert words in line

    single = written_to(tmp_path / "single.jsonl", [conversation("One.", "#### 1"), conversation("Two.", "#### 2")])
    refused("single.jsonl: two steps beside the answer are in 0 of 2 rows", file=single)
    refused("give two such rows or more", "--limit", "1")
    refused("batch_size = 0: give 1 or more", "--batch_size", "0")
    refused("seed = -1: give 0 to 4294967295", "--seed", "-1")
    refused("written as .png or .svg", "--output", "audit.pdf")
    (tmp_path / "mine.png").write_text("mine")
    refused("mine.png is there already", "--output", tmp_path / "mine.png")
    refused("no whole step fits into max_length = 3", "--max_length", "3")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": [')
    refused("broken.jsonl:1: not JSON", file=broken)

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure_information", stopped)
    refused("interrupted", code=130)


@pytest.mark.slow
def test_shuffled_rows_of_gsm8k_tell_far_less(tmp_path):
    path = SHARED / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("GSM8K's rows are not here")
    rows = list(islice(read_records(str(path)), 12))
    steps = [list(row["steps"]) for row in rows]
    for step in range(9):  # each is that of another problem, and those of one row come from several
        having = [n for n, row in enumerate(rows) if len(row["steps"]) > step]
        for place, n in enumerate(having):
            steps[n][step] = rows[having[(place + 1 + step) % len(having)]]["steps"][step]
    shuffled = [conversation(*own, question=row["question"]) for own, row in zip(steps, rows, strict=True)]
    rows = [conversation(*row["steps"], question=row["question"]) for row in rows]
    results = [
        audit(AuditArguments("smollm2", written_to(tmp_path / f"{n}.jsonl", each)))
        for n, each in enumerate([rows, shuffled])
    ]
    own, other = (result["ways"]["record"]["all"]["per_token"]["specific"] for result in results)
    assert results[0]["level"] == "much"
    assert other["high"] < 0.5 * own["low"]
