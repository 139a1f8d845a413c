"""The record schemas of the field: what is learned of each, what is its truth, and what is said of the rest."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_cli import code

from step_jepa import standalone
from step_jepa.data.columns import CONTEXT, EITHER, OPTIONS, QUESTION, SOLUTION, SYSTEM, THINKING, TRUTH, VERDICTS
from step_jepa.data.conversion import to_reading, to_record
from step_jepa.data.dataset import to_example
from step_jepa.data.formats import SEVERAL
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading_options import SYSTEM_PROMPT, ReadArguments
from step_jepa.data.steps import stated_answer
from step_jepa.errors import UserError

Q = "A train has 6 cars of 8 seats, 5 of them broken. How many can be used?"
ONE, TWO, END = "There are 6 * 8 = 48 seats.", "Of these 48 - 5 = 43 can be used.", "So it is $\\boxed{43}$."
THOUGHT = f"{ONE}\n\n{TWO}"
TEXT = f"{THOUGHT}\n\n{END}"
STEPS = [ONE, TWO, END]
TAG = "\u043a\u0438"


def turns(answer, question=Q, **more):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def shared(answer, human="human", model="gpt"):
    return [{"from": human, "value": Q}, {"from": model, "value": answer}]


def rated(*completions, chosen=0, human=None):
    texts = [{"text": text, "rating": rating} for text, rating in completions]
    return {"completions": texts, "chosen_completion": chosen, "human_completion": human}


LABELLED = [rated((ONE, 1), ("There are 14.", -1)), rated((f"{TWO}\n\n# Answer\n\n43", 1))]
TAGGED = (
    f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{END}\n\n<|end_of_solution|>"
)
SOLVED = {
    "gsm8k": ({"question": Q, "answer": f"{ONE}\n6 - <<48-5=43>>5\n#### 43"}, [ONE, "6 - 5", "#### 43"]),
    "math": ({"problem": Q, "level": "Level 1", "type": "Algebra", "solution": TEXT}, STEPS),
    "math-500": ({"problem": Q, "solution": TEXT, "answer": "43", "subject": "Algebra"}, STEPS),
    "numinamath": ({"problem": Q, "solution": TEXT, "answer": "43", "solution_is_valid": "Yes"}, STEPS),
    "openmath": ({"problem": Q, "generated_solution": TEXT, "expected_answer": "43", "is_correct": True}, STEPS),
    "metamath": (
        {"query": Q, "response": f"{ONE}\n{TWO}\n#### 43\nThe answer is: 43", "original_question": "?"},
        [ONE, TWO, "#### 43\nThe answer is: 43"],
    ),
    "metamath without hashes": (
        {"query": Q, "response": f"{ONE}\n{TWO}\nThe answer is: 43"},
        [ONE, TWO, "The answer is: 43"],
    ),
    "scalequest": ({"query": Q, "response": TEXT}, STEPS),
    "s1k": ({"question": Q, "solution": "43", "thinking_trajectories": [THOUGHT], "attempt": END}, STEPS),
    "s1k with a long solution": (
        {
            "question": Q,
            "solution": "Multiply.\n\n$\\boxed{43}$",
            "thinking_trajectories": [THOUGHT],
            "attempt": END,
        },
        STEPS,
    ),
    "s1k-1.1": (
        {
            "question": Q,
            "solution": "43",
            "deepseek_thinking_trajectory": THOUGHT,
            "deepseek_attempt": END,
            "gemini_thinking_trajectory": "z",
            "gemini_attempt": "z",
        },
        STEPS,
    ),
    "deepmath": (
        {"question": Q, "final_answer": "43", "r1_solution_1": f"{THOUGHT}\n</think>\n\n{END}", "r1_solution_2": "z"},
        STEPS,
    ),
    "openthoughts": ({"system": "Think.", "conversations": shared(TAGGED, "user", "assistant")}, STEPS),
    "openthoughts metadata": (
        {"problem": Q, "deepseek_reasoning": THOUGHT, "deepseek_solution": END, "ground_truth_solution": TEXT},
        STEPS,
    ),
    "openr1": (
        {
            "problem": Q,
            "solution": "Long.\nYes.",
            "answer": "43",
            "messages": turns(f"<think>\n{THOUGHT}\n</think>\n\n{END}"),
        },
        STEPS,
    ),
    "openr1 generations": (
        {
            "problem": Q,
            "answer": "43",
            "generations": ["Wrong.\nIt is 44.", TEXT],
            "correctness_math_verify": [False, True],
        },
        STEPS,
    ),
    "sharegpt": ({"conversations": shared(TEXT)}, STEPS),
    "prm800k": (
        {"question": {"problem": Q, "ground_truth_answer": "43"}, "label": {"steps": LABELLED}},
        [*STEPS[:2], "# Answer\n\n43"],
    ),
    "prm800k by hand": (
        {
            "question": {"problem": Q, "ground_truth_answer": "43"},
            "label": {"steps": [rated(chosen=None, human={"text": ONE, "rating": None}), rated((END, 1))]},
        },
        [ONE, END],
    ),
    "math-shepherd": (
        {
            "input": f"{Q} Step 1: {ONE} {TAG}\nStep 2: {TWO} The answer is: 43 {TAG}",
            "label": f"{Q} Step 1: {ONE} +\nStep 2: {TWO} The answer is: 43 +",
        },
        [f"Step 1: {ONE}", f"Step 2: {TWO} The answer is: 43"],
    ),
    "processbench": ({"problem": Q, "steps": STEPS, "final_answer_correct": True, "label": -1}, STEPS),
    "stepwise": ({"prompt": Q, "completions": STEPS, "labels": [True] * 3}, STEPS),
    "prompt and completion": ({"prompt": Q, "completion": f" {TEXT}"}, STEPS),
    "prompt and completion as turns": ({"prompt": turns("")[:1], "completion": turns(TEXT)[1:]}, STEPS),
    "columns with names of others": ({"input": Q, "output": TEXT, "label": "hard", "steps": 3}, STEPS),
    "alpaca": ({"instruction": Q, "input": "", "output": TEXT, "text": "all"}, STEPS),
    "am-deepseek-r1": (
        {"messages": turns(f"<think>{THOUGHT}</think>\n<answer>{END}</answer>", info={"reference_answer": "43"})},
        STEPS,
    ),
    "thinking": ({"messages": turns(END, thinking=THOUGHT)}, STEPS),
    "reasoning": ({"messages": turns(END, reasoning=THOUGHT, reasoning_content=THOUGHT)}, STEPS),
    "reasoning in a column": ({"messages": turns("")[:1], "reasoning": THOUGHT, "answer": END}, STEPS),
    "a chain of thought and a result": ({"Question": Q, "Complex_CoT": THOUGHT, "Response": "43"}, [ONE, TWO, "43"]),
    "a chain of thought alone": ({"question": Q, "chain_of_thought": THOUGHT, "ground_truth": 43}, [ONE, TWO]),
    "limo": ({"question": Q, "solution": THOUGHT, "answer": "43"}, [ONE, TWO]),
    "aime": ({"ID": "2024-I-1", "Problem": Q, "Solution": THOUGHT, "Answer": 43}, [ONE, TWO]),
    "olympiadbench": ({"question": Q, "solution": [TEXT], "final_answer": ["43"], "context": None}, STEPS),
    "text parts": (
        {"messages": turns([{"type": "text", "text": THOUGHT}, {"type": "text", "text": f"\n\n{END}"}])},
        STEPS,
    ),
    "pandas": (
        {"messages": np.array(turns(TEXT), dtype=object), "steps": float("nan"), "answer": np.int64(43)},
        STEPS,
    ),
}
PROBLEMS = {
    "skywork-or1": {"prompt": [{"role": "user", "content": Q}], "reward_model": {"ground_truth": '["43"]'}},
    "big-math": {"problem": Q, "answer": "43", "llama8b_solve_rate": 0.5},
    "a number": {"problem": Q, "answer": 43},
    "dapo": {"prompt": turns("")[:1], "reward_model": {"ground_truth": "43", "style": "rule"}},
    "turns": {"messages": turns("")[:1], "answer": "43"},
    "gsm-hard": {"input": Q, "target": 43},
}
WRONG = {
    "math-shepherd": (
        {"input": f"{Q} Step 1: 14. {TAG}", "label": f"{Q} Step 1: 14. -"},
        "step as wrong, .* step 1 has '-'",
    ),
    "processbench": ({"problem": Q, "steps": [ONE, "44"], "label": 1}, "^first error at step 1 "),
    "a wrong answer": (
        {"problem": Q, "steps": [ONE], "label": -1, "final_answer_correct": False},
        "^marked as wrong: final",
    ),
    "openmath": (
        {"question": Q, "generated_solution": TEXT, "is_correct": False},
        "^marked as wrong: is_correct is False$",
    ),
    "numinamath": (
        {"problem": Q, "solution": TEXT, "solution_is_valid": "Incomplete"},
        "^marked as wrong: solution_is_",
    ),
    "generations": (
        {"problem": Q, "generations": [TEXT], "correctness_math_verify": [False]},
        "^marked as wrong: correctness_math_verify",
    ),
    "kto": ({"prompt": Q, "completion": TEXT, "label": False}, "^marked as wrong: label is False$"),
    "prm800k": (
        {"question": {"problem": Q}, "label": {"steps": [rated((ONE, 0))]}},
        r"step 0 \(counted from 0\) is rated 0; right is 1$",
    ),
    "prm800k, given up": (
        {"question": {"problem": Q}, "label": {"steps": LABELLED, "finish_reason": "give_up"}},
        "^no whole solution: its labelling ended with give_up$",
    ),
    "several results": ({"question": Q, "solution": ["43", "44"]}, "^solution is .* not text: it is a list of 2$"),
    "several truths as json": (
        {"prompt": Q, "reward_model": {"ground_truth": '["4", "5"]'}},
        "^reward_model.ground_truth is neither text",
    ),
    "null": ({"question": None, "solution": TEXT}, "^null: question, and no format fits the other columns$"),
    "several answers": (
        {"question": Q, "solution": TEXT, "final_answer": ["43", "44"]},
        "^final_answer is neither text",
    ),
    "a picture": ({"messages": turns([{"type": "image"}])}, "^messages, turn 2, holds a part that is not text"),
    "thinking twice": ({"messages": turns(END, thinking="a b", reasoning="c d")}, "^thinking is given twice"),
    "cut off": ({"conversations": shared("<|begin_of_thought|>\n\n4")}, "never closed"),
    "preferences": (
        {"prompt": Q, "chosen": TEXT, "rejected": "14"},
        "^format not recognised: keys prompt, chosen, rejected;",
    ),
}


@pytest.mark.parametrize(("raw", "steps"), SOLVED.values(), ids=SOLVED)
def test_solved(raw, steps):
    record = to_record(raw, ReadArguments())
    assert (record["steps"], record["question"]) == (steps, Q)
    assert record["answer"] == "43"
    roles = [message["role"] for message in record["messages"]]
    assert roles[-2:] == ["user", "assistant"]
    assert to_record(record, ReadArguments()) == record


@pytest.mark.parametrize("raw", PROBLEMS.values(), ids=PROBLEMS)
def test_problems_without_a_solution(raw):
    with pytest.raises(Rejected, match=r"^no solution to learn: there is only a result"):
        to_record(raw, ReadArguments())
    problem = to_record(raw, ReadArguments(for_evaluation=True))
    assert (problem["answer"], problem["question"], problem["steps"]) == ("43", Q, [])
    assert problem["messages"][-1] == {"role": "user", "content": Q}


LABELS, CHOICES, ASKED = ["A", "B"], ["42", "43"], f"{Q}\n\nA) 42\nB) 43"
CHOSEN = {
    "commonsenseqa, arc": {"question": Q, "choices": {"label": LABELS, "text": CHOICES}, "answerKey": "B"},
    "openbookqa": {"question_stem": Q, "choices": {"text": CHOICES, "label": LABELS}, "answerKey": "B"},
    "commonsenseqa as published": {
        "answerKey": "B",
        "question": {"stem": Q, "choices": [{"label": "A", "text": "42"}, {"label": "B", "text": "43"}]},
    },
    "ecqa": {"q_text": Q, "q_op1": "42", "q_op2": "43", "q_ans": "B", "taskB": TEXT},
    "mmlu": {"question": Q, "choices": CHOICES, "answer": 1},
    "mmlu-pro": {"question": Q, "options": CHOICES, "answer": "B", "answer_index": 1},
    "gaokao": {"question": Q, "options": {"A": "42", "B": "43"}, "label": "B", "answer": None},
    "aqua": {"question": Q, "options": ["A) 42", "B) 43"], "correct": "B", "rationale": TEXT},
}


@pytest.mark.parametrize("raw", CHOSEN.values(), ids=CHOSEN)
def test_what_there_is_to_choose_from_stands_in_the_question(raw):
    record = to_record(raw, ReadArguments(for_evaluation=True))
    assert (record["question"], record["answer"]) == (ASKED, "B")
    assert record["steps"] == ([] if record["messages"][-1]["role"] == "user" else STEPS)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("a\n\n**Final Answer**\n\n4", "4"),
        ("a\n### Answer: **1,200**.", "1200"),
        ("a\n\n\u6700\u7ec8\u7b54\u6848\uff1a$x+1$\u3002", "x+1"),
        ("a\n\u7b54\u6848\u662f4", "4"),
        ("Answer: it is as I said in the first of all these lines.", None),
        ("Answering 4 letters\ntakes 2 hours", None),
        ("Answer: 4\n\nand more", None),
    ],
)
def test_truths_under_a_title(text, truth):
    assert stated_answer(text) == truth


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"question": Q, "solution": None}, ["question text", "solution null", "-> rejected null: solution, and no"]),
        (
            {"question": Q, "solution": {}},
            ["format problem, which has the keys", "solution an object", "it is an object"],
        ),
        ({"task": Q}, ["the first record: no format", "-> rejected format not recognised: keys task;"]),
    ],
)
def test_the_first_record_is_explained_where_it_is_rejected(fields, shown, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(fields))
    assert code("prepare", "--input_file", source, "--output_file", tmp_path / "out.jsonl", "--explain") == 2
    said = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    for words in shown:
        assert words in said


@pytest.mark.parametrize(("raw", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_or_unknown_is_not_learned(raw, reason):
    with pytest.raises(Rejected, match=reason):
        to_record(raw, ReadArguments())


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"instruction": "Solve it.", "input": Q, "output": TEXT}, f"Solve it.\n\n{Q}"),
        ({"question": Q, "options": ["A)41", "B)43"], "rationale": TEXT, "correct": "B"}, f"{Q}\n\nA)41\nB)43"),
        ({"Body": "A train.", "Question": "How many?", "Answer": TEXT}, "A train.\n\nHow many?"),
    ],
)
def test_a_question_of_several_columns(fields, question):
    record = to_record(fields, ReadArguments(system_prompt=""))
    assert record["messages"] == turns(TEXT, question)
    assert record["answer"] == fields.get("correct", "43")


def test_of_several_solutions_the_first_is_taken():
    reading = to_reading({"question": Q, "solution": [TEXT, "Another way."]}, ReadArguments(system_prompt=""))
    assert (reading["steps"], reading["answer"]) == (STEPS, "43")
    assert reading.notes == [SEVERAL]


BODY = "    out = []\n\n    for x in xs:\n        out.append(2 * x)\n    return out\n"
CODE = f"Loop over them.\n\n```python\ndef double(xs):\n{BODY}```"


@pytest.mark.parametrize("content", [CODE, "cout<<(a==b)>>1 and <<1+1=2>>2", "a\tb  c\r\nd", "1.  a\n\n\n\n2.  b"])
def test_content_is_kept_to_the_character(content):
    for raw in ({"messages": turns(content)}, {"query": Q, "response": content}, {"prompt": Q, "completion": content}):
        assert to_record(raw, ReadArguments())["messages"][-1]["content"] == content
    raw = {"messages": turns(f"<think>\n{content}\n</think>\n{content}\n")}
    assert to_record(raw, ReadArguments())["messages"][-1]["content"] == f"{content}\n\n{content}"


def test_code_keeps_its_indentation():
    record = to_record({"prompt": "def double(xs):\n", "canonical_solution": BODY}, ReadArguments())
    assert record["messages"][-1]["content"] == BODY.rstrip()
    assert to_record({"messages": turns(CODE)}, ReadArguments())["steps"] == CODE.split("\n\n", 1)


def test_both_implementations_read_indented_code(tokenizer):
    content = f"{BODY.rstrip()}\n\nSo:\n{BODY.rstrip()}"
    record = to_record({"messages": turns(f"```\n{content}\n```\n\n  That is it.")}, ReadArguments(split_by="lines"))
    assert record["messages"][-1]["content"] == f"```\n{content}\n```\n\n  That is it."
    record["steps"] = record["messages"][-1]["content"].split()
    example = to_example(record, tokenizer, "")
    single = standalone.encode(tokenizer, record["messages"], record["steps"], 999)
    assert (example.input_ids, example.steps) == (single.input_ids, single.spans)
    assert [tokenizer.decode(example.input_ids[slice(*span)]).strip() for span in example.steps] == record["steps"]


def test_turns_of_tools():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    asked = [turns("")[0], {"role": "assistant", "content": None, "tool_calls": calls}]
    answered = [
        *asked,
        {"role": "tool", "content": "3", "tool_calls": None},
        {"role": "assistant", "content": "It is 3."},
    ]
    record = to_record({"messages": answered, "tools": json.dumps(tools)}, ReadArguments())
    assert record["tools"] == tools
    assert record["messages"][1:3] == [{**asked[1], "content": ""}, {"role": "tool", "content": "3"}]
    assert to_record(record, ReadArguments()) == record
    with pytest.raises(Rejected, match=r"^no text to train on: tool calls alone$"):
        to_record({"messages": asked}, ReadArguments())
    spoken = to_record({"messages": [asked[0], {**asked[1], "content": "I add.\n\nSo:"}]}, ReadArguments())
    assert (spoken["messages"][-1]["tool_calls"], spoken["steps"]) == (calls, ["I add.", "So:"])
    with pytest.raises(Rejected, match=r"^tools is neither a list nor the JSON of one"):
        to_record({"messages": answered, "tools": "add"}, ReadArguments())


def test_what_is_said_of_a_record():
    reading = to_reading(SOLVED["s1k-1.1"][0], ReadArguments())
    assert reading.roles == {
        "question": "question",
        "deepseek_thinking_trajectory": "thinking",
        "deepseek_attempt": "solution",
        "solution": "truth",
    }
    assert reading.notes == [
        "system turn added (--system_prompt)",
        "thinking that stands apart put before the answer, a blank line between the two",
        "not used: gemini_thinking_trajectory",
        "not used: gemini_attempt",
    ]
    several = [*turns("Hello."), *turns("It is 3.\n")]
    assert to_reading({"messages": several}, ReadArguments()).notes == [
        "whitespace around the answer left out",
        "with earlier assistant turns: steps are those of the last",
    ]


def test_columns_that_the_user_names(tmp_path, capsys):
    raw = {"task": {"text": Q}, "worked": THOUGHT, "outcome": 43, "answer": "z", "level": 3, "kind": "x"}
    columns = ["question=task.text,solution=worked", "truth=outcome"]
    record = to_record(raw, ReadArguments(columns=columns))
    assert (record["question"], record["steps"], record["answer"]) == (Q, [ONE, TWO], "43")
    with pytest.raises(Rejected, match=r"^column words \(--columns\) is missing or empty: keys task, worked, "):
        to_record(raw, ReadArguments(columns=["solution=words"]))
    with pytest.raises(UserError, match=r"^columns = solution: give NAME=KEY, such as question=problem$"):
        ReadArguments(columns=["solution"])
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f"{json.dumps(raw)}\n{json.dumps({**raw, 'kind': None})}\n")
    command = ["prepare", "--input_file", source, "--output_file", output]
    assert code(*command) == 2
    assert "line 1: format not recognised: keys task, worked, outcome, answer, level, kind" in capsys.readouterr().err
    assert code(*command, "--columns", *columns, "--explain") == 0
    captured = capsys.readouterr()
    said = " ".join((captured.err + captured.out).replace("\u2502", " ").split())
    assert "the first record: format solution" in said
    assert "task.text question worked solution outcome truth" in said
    assert "level not used" in said
    assert f'-> steps ["{ONE}", ' in said
    assert "system turn added (--system_prompt) 2" in said
    assert "not used: answer, level 2 not used: kind 1" in said


def test_problems_for_evaluation_are_counted(tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"question": Q, "answer": text}) + "\n" for text in ("43", TEXT, "Yes it is."))
    )
    command = ["prepare", "--input_file", source, "--output_file", output]
    assert code(*command) == 0
    assert "rejected: no solution to learn 1" in " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert code(*command, "--for_evaluation", "--overwrite") == 0
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "for evaluation only: a truth, but no solution 1" in said
    assert "without a known answer (evaluate counts them apart) 1" in said
    prepared = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(record["steps"]) for record in prepared] == [0, 3, 1]


NAMES = [*QUESTION, *SOLUTION, *EITHER, *TRUTH, *THINKING, *VERDICTS, *SYSTEM, *OPTIONS, *CONTEXT, "Question", "Steps"]
NAMES += ["messages", "conversations", "steps", "completions", "labels", "label", "tools", "metadata", "attempt"]
WORDS = st.sampled_from(
    ["", "a b\n\nc", "#### 4", f"Step 1: x {TAG}", "user", "assistant", "<think>", "43", "Yes", "{}", "[1]"]
)
INNER = st.sampled_from(
    ["role", "content", "from", "value", "problem", "steps", "text", "rating", "answer_cot", "tool_calls"]
)
INNER |= st.sampled_from(["completions", "chosen_completion", "ground_truth", "info", "type", "reasoning"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES | WORDS, max_size=6), st.booleans())
@example({"question": "a", "solution": "7", "tools": "[1]"}, True)
def test_any_record_is_read_or_refused(raw, for_evaluation):
    try:
        record = to_record(raw, ReadArguments(for_evaluation=for_evaluation))
    except Rejected:
        return
    assert to_record(record, ReadArguments(for_evaluation=for_evaluation)) == record
    end, content = 0, record["messages"][-1]["content"]
    for step in record["steps"]:
        assert step == step.strip()
        start = content.index(step, end)
        assert not content[end:start].strip()
        end = start + len(step)
    assert not content[end:].strip() or record["steps"] == []


def test_the_system_turn():
    system = {"role": "system", "content": "Think."}
    given = [
        {"system": "Think.", "conversations": shared(TEXT)},
        {"system_prompt": "Think.", "query": Q, "response": TEXT},
    ]
    for raw in given:
        assert to_record(raw, ReadArguments())["messages"] == [system, *turns(TEXT)]
    assert to_record({"messages": turns(TEXT)}, ReadArguments())["messages"] == turns(TEXT)
    added = to_record({"query": Q, "response": TEXT}, ReadArguments())["messages"][0]
    assert added == {"role": "system", "content": SYSTEM_PROMPT}
