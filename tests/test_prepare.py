"""Raw records to conversations: every format, what is refused, and files that appear whole or not at all."""

import json
import re
import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
from test_cli import ROOT, code

from step_jepa.data import format_registry, generated, prepare, records
from step_jepa.data.conversion import to_reading, to_record
from step_jepa.data.prepare import PrepareArguments, run
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading import read_records
from step_jepa.data.reading_options import SYSTEM_PROMPT, ReadArguments
from step_jepa.data.steps import strip_annotations
from step_jepa.errors import UserError

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
RAW = {"question": "2 + 2?", "answer": "Two and two\nare <<2+2=4>>4.\n#### 4"}
SYSTEM = {"role": "system", "content": SYSTEM_PROMPT}
USER = {"role": "user", "content": "2 + 2?"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gsm8k_record():
    assert to_record(RAW, ReadArguments()) == {
        "question": "2 + 2?",
        "answer": "4",
        "steps": ["Two and two", "are 4.", "#### 4"],
        "total_steps": 3,
        "answer_step": 2,
        "messages": [SYSTEM, USER, assistant("Two and two\nare 4.\n#### 4")],
    }


@pytest.mark.parametrize(
    ("raw", "context", "content", "steps", "answer"),
    [
        (
            {
                **RAW,
                "ground_truth": 7,
                "deepseek_response": "a</think>\n\n**Step 1:** b\n**Step 2:** c\n\n\\boxed{5}",
            },
            [SYSTEM, USER],
            "a\n\n**Step 1:** b\n**Step 2:** c\n\n\\boxed{5}",
            ["a", "**Step 1:** b", "**Step 2:** c", "\\boxed{5}"],
            "7",
        ),
        ({"messages": [*TURNS, assistant("a\n\n\\boxed{4}")]}, TURNS, "a\n\n\\boxed{4}", ["a", "\\boxed{4}"], "4"),
        (
            {"messages": [USER, assistant("b", reasoning_content="a\nb")], "answer": "1,004"},
            [USER],
            "a\nb\n\nb",
            [*"abb"],
            "1004",
        ),
        (
            {"prompt": "2 + 2?", "completions": ["a\n\nb ", " \n", " c", "  d"]},
            [SYSTEM, USER],
            "a\n\nb\n\nc\n\n  d",
            ["a\n\nb", "c", "d"],
            None,
        ),
        ({"prompt": TURNS, "completions": ["a", "#### 4"]}, TURNS, "a\n\n#### 4", ["a", "#### 4"], "4"),
        (
            {
                "question": "2 + 2?",
                "answer": "4",
                "metadata": {"answer_cot": "1. a\n\n2. b\n#### 4", "answer_value": 4.0},
            },
            [SYSTEM, USER],
            "1. a\n\n2. b\n#### 4",
            ["1. a", "2. b", "#### 4"],
            "4",
        ),
    ],
    ids=["deepseek_response", "messages", "reasoning_content", "stepwise", "stepwise turns", "gsm_symbolic"],
)
def test_other_formats(raw, context, content, steps, answer):
    record = to_record(raw, ReadArguments())
    assert record["messages"] == [*context, assistant(content)]
    assert (record["steps"], record["answer"], record["question"]) == (steps, answer, "2 + 2?")


@pytest.mark.parametrize(
    ("fields", "steps", "answer"),
    [
        ({"answer": "#### 14"}, ["#### 14"], "14"),
        ({"solution": "$\\boxed{14}$"}, ["$\\boxed{14}$"], "14"),
        ({"answer": "It is 14."}, ["It is 14."], None),  # a sentence may be all that is learned, and is no truth
        ({"answer": "14", "solution": "Two\nand 12."}, ["Two", "and 12."], "14"),
        ({"answer": 14, "solution": "Two\nand 12."}, ["Two", "and 12."], "14"),
        ({"answer": "14 cats", "solution": "Two\nand 12\n#### 15"}, ["Two", "and 12", "#### 15"], "14 cats"),
        ({"answer": "Two\nand 12.\n#### 14", "solution": "14"}, ["Two", "and 12.", "#### 14"], "14"),
        ({"answer": "Two\nand 12.\n#### 14", "solution": ["x"]}, ["Two", "and 12.", "#### 14"], "14"),
    ],
)
def test_a_bare_answer_is_the_truth(fields, steps, answer):
    record = to_record({"question": "2 + 2?", **fields}, ReadArguments())
    assert (record["steps"], record["answer"]) == (steps, answer)
    assert record["messages"] == [SYSTEM, USER, assistant("\n".join(steps))]


@pytest.mark.parametrize(
    ("fields", "truth"),
    [
        ({"answer": "14"}, "14"),
        ({"answer": 14}, "14"),
        ({"answer": " $1,200 "}, "1200"),
        ({"answer": "14", "solution": "14"}, "14"),
        ({"solution": "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"}, "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ({"answer": "x = 5 or x = -3"}, "x = 5 or x = -3"),
        ({"answer": "5 square feet"}, "5 square feet"),
    ],
)
def test_only_a_result_is_for_evaluation_alone(fields, truth):
    raw = {"question": "2 + 2?", **fields}
    with pytest.raises(Rejected, match=r"^no solution to learn: .*--for_evaluation.*--columns solution=KEY"):
        to_record(raw, ReadArguments())
    problem = to_record(raw, ReadArguments(for_evaluation=True))
    assert (problem["answer"], problem["steps"], problem["messages"]) == (truth, [], [SYSTEM, USER])
    assert to_record(dict(problem), ReadArguments(for_evaluation=True)) == problem
    with pytest.raises(Rejected, match="no solution to learn"):
        to_record(dict(problem), ReadArguments())


def test_a_result_is_a_solution_where_the_user_says_so():
    regex = {"question": "2 + 2?", "answer": "~((dog.*[0-9].*){3,})"}
    record = to_record(regex, ReadArguments(columns=["solution=answer"]))
    assert (record["steps"], record["answer"]) == ([regex["answer"]], regex["answer"])


@pytest.mark.parametrize("label", [1, True, 1.0, "+", "GOOD", "good", "Good"])
def test_steps_that_are_labelled_right(label):
    raw = {"prompt": "2 + 2?", "completions": ["a", " ", "b"], "labels": [label] * 3}
    assert to_record(raw, ReadArguments())["steps"] == ["a", "b"]
    assert to_record({**raw, "labels": None}, ReadArguments())["steps"] == ["a", "b"]


def test_prepared_record_keeps_its_content():
    messages = [USER, assistant("a\nb\n\nc")]
    record = to_record({"messages": messages, "steps": ["a", "b\n\nc"], "answer": "4"}, ReadArguments())
    assert record["messages"] == messages
    assert record["steps"] == ["a", "b\n\nc"]
    assert to_record(dict(record), ReadArguments()) == record


def test_options_reach_the_steps():
    raw = {"messages": [USER, assistant("<think>\na<<1=1>>\n\nb</think>c\nd")]}
    kept = to_record(raw, ReadArguments(keep_thinking=True, keep_annotations=True, split_by="paragraphs"))
    assert kept["steps"] == ["<think>\na<<1=1>>", "b\n</think>", "c\nd"]
    assert kept["messages"][-1]["content"] == "<think>\na<<1=1>>\n\nb\n</think>\n\nc\nd"
    assert to_record(raw, ReadArguments())["steps"] == ["a<<1=1>>", "b", "c", "d"]
    assert to_record(raw, ReadArguments(strip_annotations=True))["steps"] == ["a", "b", "c", "d"]
    short = to_record(raw, ReadArguments(min_step_tokens=2, strip_annotations=True))
    assert short["steps"] == ["a\n\nb", "c\nd"]
    assert to_record(RAW, ReadArguments(keep_annotations=True))["steps"][1] == "are <<2+2=4>>4."
    assert to_record(RAW, ReadArguments(system_prompt=""))["messages"][0] == USER
    assert to_record({**RAW, "messages": []}, ReadArguments(format="gsm8k"))["answer"] == "4"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"question": ', "not JSON: "),
        ("[" * 1100, "not JSON: "),
        ("3", "not a JSON object"),
        ({"text": "a"}, "format not recognised: keys text"),
        ({**RAW, "answer": " "}, "answer is missing"),
        ({**RAW, "question": 3}, "question is missing, empty or not text"),
        ({**RAW, "answer": "\ud800"}, "surrogate"),
        ({"messages": [USER]}, "last turn is not the assistant's: user"),
        ({"messages": []}, "messages is not a list of turns"),
        ({"messages": [assistant("a")]}, "no user turn"),
        ({"messages": [USER, assistant("<think>a")]}, "never closed"),
        ({"messages": [USER, assistant([{"type": "text"}])]}, "each with role and content, both text"),
        ({"messages": [USER, {"role": "tool", "content": None}, assistant("a")]}, "both text"),
        (
            {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
            "a step as wrong, or not as we know it: step 2 has False",
        ),
        (
            {"prompt": "q", "completions": ["a", "b", "c"], "labels": [1, -1, -1]},
            "a step as wrong, or not as we know it: step 2 has -1",
        ),
        (
            {"prompt": "q", "completions": ["a"], "labels": [0.0]},
            "a step as wrong, or not as we know it: step 1 has 0.0",
        ),
        (
            {"prompt": "q", "completions": ["a"], "labels": ["-"]},
            "a step as wrong, or not as we know it: step 1 has '-'",
        ),
        (
            {"prompt": "q", "completions": ["a"], "labels": ["BAD"]},
            "a step as wrong, or not as we know it: step 1 has 'BAD'",
        ),
        ({"prompt": "q", "completions": ["a"], "labels": [None]}, r"step 1 has None; right are 1, true, \+ and good$"),
        ({"prompt": "q", "completions": ["a"], "labels": [0.7]}, "as we know it: step 1 has 0.7; right are"),
        ({"prompt": "q", "completions": ["a"], "labels": [2]}, "as we know it: step 1 has 2; right are"),
        ({"prompt": "q", "completions": ["a"], "labels": [[1]]}, r"as we know it: step 1 has \[1\]"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True]}, "labels and steps differ in number: 1 and 2"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": []}, "labels and steps differ in number: 0 and 2"),
        ({"prompt": "q", "completions": ["a"], "labels": 1}, "labels is not a list"),
        ({"messages": [USER, assistant("a b")], "steps": ["a", "c"]}, "step 2 does not follow"),
        ({"messages": [USER, assistant("a x b")], "steps": ["a", "b"]}, "step 2 does not follow"),
        ({"messages": [USER, assistant("a b")], "steps": ["a"]}, "text follows the last step"),
        ({"prompt": "q", "completions": [" "]}, "no steps"),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]},
            "^no text to train on: tool calls alone$",
        ),
        ({**RAW, "deepseek_grade": "No"}, "^marked as wrong: deepseek_grade is No$"),
        (
            dict.fromkeys("abcdefghij", 1),
            "^format not recognised: keys a, b, c, d, e, f, g, h, ...; .* --columns question=KEY,",
        ),
        (
            {"messages": [USER, assistant("a")], "answer": ["2"]},
            r"answer is neither text nor a number: it is a list, \['2'\]",
        ),
        ({"messages": [USER, assistant("a")], "steps": ["a"], "answer": {"x": 2}}, "answer is neither .* a dict, "),
        ({"prompt": "q", "completions": ["a"], "answer": ["2"]}, "answer is neither text nor a number"),
        ({"question": "q", "solution": "a b", "answer": ["2"]}, "answer is neither text nor a number"),
        ({**RAW, "deepseek_response": "a", "ground_truth": ["2"]}, "ground_truth is neither text nor a number"),
        ({"prompt": "q", "completions": "a"}, "completions is not a list of texts"),
        ({"prompt": 3, "completions": ["a"]}, "prompt is missing, empty or not text"),
        (
            {**RAW, "metadata": {"answer_cot": "a\n#### 4", "answer_value": 5}},
            "solution disagrees with its answer: 4 and 5",
        ),
        ({**RAW, "metadata": {"answer_cot": "a", "answer_value": 5}}, "solution disagrees"),
    ],
)
def test_rejected_records(raw, reason):
    with pytest.raises(Rejected, match=reason):
        to_record(raw, ReadArguments())


PAGE = (ROOT / "docs" / "adding-a-format.md").read_text(encoding="utf-8")
FORMAT = PAGE.partition("```python\n")[2].partition("```")[0]
TASK = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])


@pytest.fixture
def tasks_format(monkeypatch):
    monkeypatch.setattr(format_registry, "_FORMATS", dict(format_registry._FORMATS))
    exec(FORMAT, {})


def test_a_format_from_outside(tasks_format, tmp_path, capsys):
    expected = to_record(RAW, ReadArguments())
    assert to_record(TASK, ReadArguments()) == to_record(TASK, ReadArguments(format="tasks")) == expected
    source, output = write(tmp_path / "in.jsonl", TASK, {**TASK, "worked": " "}), tmp_path / "out.jsonl"
    for how in ([], ["--format", "tasks", "--overwrite"]):
        assert code("prepare", "--input_file", source, "--output_file", output, *how) == 0
        assert read_lines(output) == [expected]
        (reject,) = read_lines(tmp_path / "out.rejected.jsonl")
        assert reject["reason"] == "worked is missing, empty or not text"
    assert code("prepare", "--input_file", source, "--output_file", output, "--format", "task") == 2
    known = "tasks, prepared, prm800k, messages, stepwise, processbench, math_shepherd, deepseek_response, gsm_symbolic"
    assert f"format = task: give one of {known}" in capsys.readouterr().err


def test_a_format_from_outside_comes_before_ours(tasks_format):
    raw = {**TASK, **RAW, "messages": [USER, assistant("a")], "steps": ["a"]}
    assert to_record(raw, ReadArguments())["steps"] == ["Two and two", "are 4.", "#### 4"]
    assert to_record({**raw, "worked": None}, ReadArguments())["steps"] == ["a"]


def test_a_format_in_place_of_ours(tasks_format):
    ours = format_registry._FORMATS["gsm8k"]
    records.register_format(replace(ours, read=lambda raw, args: {**ours.read(raw, args), "answer": "mine"}))
    assert to_record(RAW, ReadArguments())["answer"] == "mine"
    assert format_registry.format_names().count("gsm8k") == 1


@pytest.mark.parametrize(
    ("raw", "columns"),
    [
        ({"q": "How many?", "reasoning": "Two and two.", "final": "4"}, "question=q,solution=reasoning,truth=final"),
        ({"task": "Add 2 to 2", "worked out": "2 + 2 is\n4."}, "'question=task,solution=worked out'"),
        ({"why": "It is so. Long.", "what": "Is it so?"}, "question=what,solution=why"),
        ({"input": "2 + 2", "trace": "2 + 2 is 4", "result": 4}, "question=input,solution=trace,truth=result"),
    ],
)
def test_columns_are_proposed_by_what_they_hold(raw, columns):
    with pytest.raises(Rejected, match=re.escape(f"perhaps --columns {columns}")):
        to_record(raw, ReadArguments())
    assert to_record(raw, ReadArguments(columns=shlex.split(columns)))["steps"]


def test_no_columns_are_proposed_where_there_are_no_two_texts():
    with pytest.raises(Rejected, match="--columns question=KEY,solution=KEY"):
        to_record({"text": "Two and two are four."}, ReadArguments())


def test_unknown_format():
    with pytest.raises(UserError, match=r"^format = gsm9k: give one of prepared, .*, messages, .*, gsm8k, problem$"):
        ReadArguments(format="gsm9k")


def test_run_sets_unusable_lines_aside(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", RAW, "", "{oops", {**RAW, "answer": ""}, RAW)
    output = tmp_path / "new" / "out.jsonl"
    run(PrepareArguments(input_file=source, output_file=str(output)))
    assert read_lines(output) == [to_record(RAW, ReadArguments())] * 2
    bad_json, empty = read_lines(tmp_path / "new" / "out.rejected.jsonl")
    assert (bad_json["line"], bad_json["record"]) == (3, "{oops")
    assert bad_json["reason"].startswith("not JSON: ")
    assert (empty["line"], empty["record"]) == (4, {**RAW, "answer": ""})
    captured = capsys.readouterr()
    table = " ".join(captured.out.split())
    assert "read 4 written 2 rejected: not JSON 1 rejected: answer is missing, empty or not text 1 " in table
    assert "out.rejected.jsonl" in captured.err
    assert "3 / 3 / 3" in table
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl", "out.rejected.jsonl"]


def test_run_again_without_rejects_leaves_no_rejected_file(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for lines in ([RAW, "{oops"], [RAW, RAW, RAW]):
        run(PrepareArguments(input_file=write(source, *lines), output_file=str(output), overwrite=True, max_examples=2))
    assert len(read_lines(output)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("crash", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, crash):
    def failing(raw, args):
        if not fine.pop():
            raise crash
        return to_reading(raw, args)

    fine = [False, True, True]
    source, output = write(tmp_path / "in.jsonl", RAW, RAW, RAW), tmp_path / "out.jsonl"
    output.write_text("old")
    monkeypatch.setattr(prepare, "to_reading", failing)
    with pytest.raises(crash):
        run(PrepareArguments(input_file=source, output_file=str(output), overwrite=True))
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_nothing_usable(tmp_path):
    source = write(tmp_path / "in.jsonl", "{oops")
    output = tmp_path / "out.jsonl"
    reason = r"none of 1 record can be used; line 1: not JSON: Expecting .*; .*out\.rejected\.jsonl says why of each$"
    for _ in range(2):  # what the first call leaves is in the way of no other
        with pytest.raises(UserError, match=reason):
            run(PrepareArguments(input_file=source, output_file=str(output)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.rejected.jsonl"]
    run(PrepareArguments(input_file=write(tmp_path / "in.jsonl", RAW), output_file=str(output)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_file_that_holds_other_things_is_not_taken_for_rejects(tmp_path):
    source = write(tmp_path / "in.jsonl", RAW)
    write(tmp_path / "out.rejected.jsonl", {"line": 1, "mine": 2})
    with pytest.raises(UserError, match=r"out\.rejected\.jsonl exists: give --overwrite"):
        run(PrepareArguments(input_file=source, output_file=str(tmp_path / "out.jsonl")))


def test_run_replaces_no_file_by_accident(tmp_path):
    source, other = write(tmp_path / "in.rejected.jsonl", RAW), write(tmp_path / "other.jsonl", RAW)
    for output, overwrite, complaint in [
        (other, False, "--overwrite"),
        (source, True, "its own result"),
        (str(tmp_path / "in.jsonl"), True, "its own result"),
        (str(tmp_path), True, "is a folder"),
    ]:
        with pytest.raises(UserError, match=complaint):
            run(PrepareArguments(input_file=source, output_file=output, overwrite=overwrite))
    assert read_lines(Path(source)) == read_lines(Path(other)) == [RAW]


def test_numbers_out_of_range():
    for number in (0, -1):
        with pytest.raises(UserError, match=f"^max_examples = {number}: give 1 or more$"):
            ReadArguments(max_examples=number)
    for name in ("min_step_tokens", "skip"):
        with pytest.raises(UserError, match=f"^{name} = -1: give 0 or more$"):
            ReadArguments(**{name: -1})


def test_read_records(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + json.dumps(RAW).encode() + b"\r\n\r\n" + json.dumps(RAW).encode())
    array = write(tmp_path / "in.json", json.dumps([RAW, RAW], indent=1))
    lines = write(tmp_path / "lines.json", RAW, RAW)
    expected = [to_record(RAW, ReadArguments())] * 2
    assert list(read_records(str(source))) == list(read_records(array)) == list(read_records(lines)) == expected
    assert list(read_records(array, max_examples=1, system_prompt="")) == [
        to_record(RAW, ReadArguments(system_prompt=""))
    ]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("in.jsonl", json.dumps(RAW) + "\n\n{oops", r"in\.jsonl:3: not JSON: .*step-jepa prepare"),
        ("in.jsonl", '{"question": "q"}', r"in\.jsonl:1: format not recognised: keys question;"),
        ("in.jsonl", json.dumps(RAW) + "\n\xff", r"in\.jsonl:2: not UTF-8"),
        ("in.jsonl", "\n \n", r"in\.jsonl holds no records"),
        ("in.json", "[\n{,]", r"in\.json:2: not JSON"),
        ("in.json", "[" * 1100 + "]" * 1100, r"in\.json: arrays or objects within one another"),
        ("in.jsonl", None, r"in\.jsonl: no such file"),
    ],
)
def test_read_records_is_strict(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=complaint) as error:
        list(read_records(str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_hub_sets(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(*args, **options):
        if args[0] == "none":
            raise FileNotFoundError("not\nthere")
        assert (args, options) == (("some/set", "main"), {"split": "test"})
        return [{**RAW, "steps": None, "messages": None}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    options = {"dataset_config": "main", "dataset_split": "test"}
    assert list(read_records("some/set", **options)) == [to_record(RAW, ReadArguments())]
    with pytest.raises(UserError, match="none: no such file, and no hub data set could be loaded: not there"):
        next(read_records("none"))
    with pytest.raises(UserError, match="--templates"):
        next(read_records("some/set", templates="test"))


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_gsm_symbolic():
    before = {name for name in sys.modules if name.startswith("reasoning_gym")}
    train = list(read_records("gsm_symbolic", seed=1, templates="train", max_examples=300))
    test = list(read_records("gsm_symbolic", seed=1, templates="test", max_examples=100))
    again = list(read_records("gsm_symbolic", seed=1, templates="test", max_examples=50))
    questions = [record["question"] for record in train + test]
    assert len(questions) == len(set(questions)) == 400
    assert again == test[:50]
    assert all(record["answer_step"] == record["total_steps"] - 1 for record in train + test)
    assert {name for name in sys.modules if name.startswith("reasoning_gym")} == before


def test_gsm_symbolic_templates_and_failures(tmp_path, monkeypatch):
    class Problems:
        task_indices = [3, 5, 10, 6, 5]

        def __getitem__(self, index):
            if index == 2:
                raise ZeroDivisionError("0")
            template = self.task_indices[index]
            cot = {"answer_cot": f"a\n#### {template}", "answer_value": template}
            return {"question": f"template {template}", "answer": str(template), "metadata": cot}

    monkeypatch.setattr(generated, "_gsm_symbolic_problems", lambda seed, size: Problems())
    output = tmp_path / "out.jsonl"
    run(PrepareArguments(input_file="gsm_symbolic", output_file=str(output), templates="test"))
    assert [record["answer"] for record in read_lines(output)] == ["5"]
    (reject,) = read_lines(tmp_path / "out.rejected.jsonl")
    assert (reject["line"], reject["reason"]) == (2, "template failed: 10, ZeroDivisionError: 0")
    assert [record["answer"] for record in islice(read_records("gsm_symbolic", templates="train"), 9)] == ["3", "6"]


def test_gsm_symbolic_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*reasoning-gym"):
        next(read_records("gsm_symbolic"))


@pytest.mark.skipif(not GSM8K.exists(), reason="shared/data/gsm8k is not there")
def test_all_of_gsm8k(tmp_path):
    output = tmp_path / "out.jsonl"
    run(PrepareArguments(input_file=str(GSM8K), output_file=str(output)))
    prepared = read_lines(output)
    assert len(prepared) == 7473
    for raw, record in zip(read_lines(GSM8K), prepared, strict=True):
        lines = [line.strip() for line in strip_annotations(raw["answer"]).split("\n")]
        assert record["steps"] == [line for line in lines if line]
        assert record["messages"][-1]["content"] == strip_annotations(raw["answer"])
        assert record["answer_step"] == record["total_steps"] - 1
        assert record["answer"] == raw["answer"].split("####")[1].strip().replace(",", "")


def test_what_lies_on_disk_comes_before_generated_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generated = {name: list(read_records(name, max_examples=2)) for name in ("chains", "builtin:chains")}
    assert generated["chains"] == generated["builtin:chains"]
    assert len(list(read_records("builtin:chains"))) == 1000  # as many as of chains
    for name in ("chains", "gsm_symbolic"):
        write(tmp_path / name, RAW)
        assert list(read_records(name)) == [to_record(RAW, ReadArguments())]
        with pytest.raises(UserError, match=f"builtin:gsm_symbolic and builtin:chains; leave it out for {name}$"):
            next(read_records(name, templates="test"))
    assert list(read_records("builtin:chains", max_examples=2)) == generated["chains"]
    output = tmp_path / "out.jsonl"
    run(PrepareArguments(input_file="builtin:chains", output_file=str(output), max_examples=2))
    assert read_lines(output) == generated["chains"]


def test_a_folder_is_not_generated_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chains").mkdir()
    with pytest.raises(UserError, match=r"^chains: .* could be loaded: .*; builtin:chains is generated$"):
        next(read_records("chains"))
    with pytest.raises(UserError, match=r"^builtin:chain: give one of builtin:gsm_symbolic and builtin:chains$"):
        next(read_records("builtin:chain"))


def test_builtin_gsm_symbolic(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*reasoning-gym"):
        next(read_records("builtin:gsm_symbolic"))


def test_the_first_records_can_be_left_out(tmp_path, capsys):
    source = tmp_path / "raw.jsonl"
    source.write_text(
        "".join(json.dumps({"question": f"q{n}", "answer": f"{n} + 1\n#### {n + 1}"}) + "\n" for n in range(5))
    )
    taken = [record["question"] for record in read_records(str(source), skip=2, max_examples=2)]
    assert taken == ["q2", "q3"]
    with pytest.raises(UserError, match="holds no more than 5 records: give a smaller --skip"):
        list(read_records(str(source), skip=5))
