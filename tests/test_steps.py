"""Where chains of thought are cut. Expected steps are written out by hand."""

import json
import re

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from step_jepa.data.steps import answer_step, final_answer, split, strip_annotations
from step_jepa.data.thinking import part_thinking, wrap_thinking

GSM8K = SHARED / "gsm8k" / "train.jsonl"
MARKERS = {
    "bold": (
        "**Step 1:** Add.\n4\n\n**Step 2:** Take.\n\n\\boxed{2}",
        ["**Step 1:** Add.\n4", "**Step 2:** Take.", "\\boxed{2}"],
    ),
    "bold, colon outside": (
        "**Step 1**: a\n**Step 2**: b\n\\boxed{2}",
        ["**Step 1**: a", "**Step 2**: b", "\\boxed{2}"],
    ),
    "plain": ("Step 1: a\nmore\nStep 2: b\n#### 2", ["Step 1: a\nmore", "Step 2: b", "#### 2"]),
    "heading": ("### Step 1\na\n### Step 2\nb\n\n#### 2", ["### Step 1\na", "### Step 2\nb", "#### 2"]),
    "heading over a paragraph": ("### Step 1\n\na\n\n### Step 2\n\nb", ["### Step 1\n\na", "### Step 2\n\nb"]),
    "points": ("1. a\n\n2. b\n\n#### 2", ["1. a", "2. b", "#### 2"]),
    "parentheses": ("1) a\n2) b\n#### 2", ["1) a", "2) b", "#### 2"]),
    "bold numbers": ("**1. Add**\n- x\n\n**2. Take**\n- y", ["**1. Add**\n- x", "**2. Take**\n- y"]),
    "preamble": ("Let us see.\n\n1. a\n2. b", ["Let us see.\n\n1. a", "2. b"]),
    "closing": ("1. a\n2. b\n\n   still b\n\nSo 2.\n\n \n#### 2", ["1. a", "2. b\n\n   still b", "So 2.", "#### 2"]),
    "not closing": ("1. a\n2. b\n\n   still b", ["1. a", "2. b\n\n   still b"]),
    "indented list": ("1. a\n   1. x\n   2. y\n2. b\n3. c", ["1. a\n   1. x\n   2. y", "2. b", "3. c"]),
    "indented list of one": ("1. a\n   1. x\n2. b", ["1. a\n   1. x", "2. b"]),
    "list under bold numbers": ("**1. A**\n1. x\n**2. B**\n1. y", ["**1. A**\n1. x", "**2. B**\n1. y"]),
    "list that restarts": ("1. a\n1. x\n2. y\n2. b", ["1. a\n1. x\n2. y", "2. b"]),
    "list inside steps": ("Step 1: a\n1. x\n2. y\nStep 2: b\n1. z", ["Step 1: a\n1. x\n2. y", "Step 2: b\n1. z"]),
    "list before steps": ("1. x\n2. y\nStep 1: a\nStep 2: b", ["1. x\n2. y\nStep 1: a", "Step 2: b"]),
    "decimal": ("1. a\n2.5 is more\n2. b", ["1. a\n2.5 is more", "2. b"]),
    "gap": ("1. a\n2. b\n4. c", ["1. a", "2. b\n4. c"]),
}


@pytest.mark.parametrize(("text", "steps"), MARKERS.values(), ids=MARKERS)
def test_markers(text, steps):
    assert split(text) == steps
    assert split(text, "markers") == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\nb\n \t\nc", ["a\nb", "c"]),
        ("a\r\n\r\nb\r\n", ["a", "b"]),
        ("a\nb\n\n#### 3", ["a", "b", "#### 3"]),
        ("a\n\nb\nc\n#### 3", ["a", "b", "c", "#### 3"]),
        ("1. only\nb", ["1. only", "b"]),
        ("Step 1 is easy.\nStep 2 is not.\n\nNow b.", ["Step 1 is easy.\nStep 2 is not.", "Now b."]),
        ("a\n\nSo\nit is $\\boxed{3}$.", ["a", "So", "it is $\\boxed{3}$."]),
        ("a\n\nb\n\n\\[\nx =\n\\boxed{3}\n\\]", ["a", "b", "\\[\nx =\n\\boxed{3}\n\\]"]),
        ("a \\boxed{3}\n\nb", ["a \\boxed{3}", "b"]),
        ("\\boxed{3}", ["\\boxed{3}"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_auto(text, steps):
    assert split(text) == steps


def test_named_ways_to_cut():
    text = "1. a\nb\n\n2. c\nd"
    assert split(text, "markers") == ["1. a\nb", "2. c\nd"] == split(text, "paragraphs")
    assert split(text, "lines") == ["1. a", "b", "2. c", "d"]


def test_short_steps_join_the_next_but_never_the_answer():
    assert split("So:\nwe add two\nand take three\nOk.\n\\boxed{5}", "lines", min_words=2) == [
        "So:\nwe add two",
        "and take three\nOk.",
        "\\boxed{5}",
    ]
    assert split("a\nb\n#### 5", "lines", min_words=9) == ["a\nb", "#### 5"]


PIECES = st.sampled_from(
    [
        "a",
        "b c",
        "\n",
        "\n\n",
        " \n \n",
        "1. ",
        "2) ",
        "Step 1: ",
        "**Step 2:** ",
        "3.5",
        "#### 7",
        "\\boxed{",
        "}",
        "{",
    ]
    + ["\\[", "\\]", "$$", "\r\n", "\u2003", "\x85", "  "]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join) | st.text()


@given(TEXTS, st.sampled_from(["auto", "markers", "paragraphs", "lines"]), st.integers(0, 4))
def test_nothing_is_lost(text, how, min_words):
    end = 0
    steps = split(text, how, min_words)
    for step in steps:
        start = text.index(step, end)
        assert step
        assert step == step.strip()
        assert not text[end:start].strip()
        end = start + len(step)
    assert not text[end:].strip()
    assert "".join("".join(steps).split()) == "".join(text.split())


def test_answer_step():
    assert answer_step(["a", "#### 7"]) == 1
    assert answer_step(["a", "b", "So \\boxed{7}."]) == 2
    assert answer_step(["\\boxed{7}", "b"]) is None
    assert answer_step([]) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x\n#### 1,080", "1080"),
        ("#### 1\n#### $-2,000.50 ", "-2000.50"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}\n#### 3", "\\frac{1}{2}"),
        ("\\boxed{\\$1,200}", "1200"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a \\} b}", "a \\} b"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("#### 12 cats", "12 cats"),
        ("1,2 and $5", None),
        ("####", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reasoning", "parts"),
    [
        ("<think>\na\n\nb\n</think>\n\nc", "", ("a\n\nb", "c")),
        ("a\n</think>c", "", ("a", "c")),
        ("<think>\n\n</think>\n\nc", "", ("", "c")),
        ("<think></think>c", "a", ("a", "c")),
        (" c ", " a ", ("a", "c")),
        ("c", "", ("", "c")),
    ],
)
def test_part_thinking(text, reasoning, parts):
    assert part_thinking(text, reasoning) == parts


@pytest.mark.parametrize(
    ("text", "reasoning", "complaint"),
    [
        ("<think>a", "", "never closed"),
        ("<think>a</think>", "", "no answer"),
        ("b<think>a</think>c", "", "not one"),
        ("<think>a</think>c<think>d</think>", "", "not one"),
        ("<think>a</think>c", "d", "twice"),
    ],
)
def test_part_thinking_refuses(text, reasoning, complaint):
    with pytest.raises(ValueError, match=complaint):
        part_thinking(text, reasoning)


def test_wrapped_thinking_joins_to_the_wrapper():
    assert "\n\n".join([*wrap_thinking(["a", "b"]), "c"]) == "<think>\na\n\nb\n</think>\n\nc"
    assert wrap_thinking(["a"]) == ["<think>\na\n</think>"]
    assert wrap_thinking([]) == []


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("48/2 = <<48/2=24>>24, 1 << 2 >> 3", "48/2 = 24, 1 << 2 >> 3"),
        ("<<(2.5 + .5)*-3=-9>><<20%*50=10.00>>10<<1,000-1=+999>> <<6=6>>", "10 "),
        ("cout<<(a==b)>>1", None),
        ("cout<<(1==2)>>1", None),
        ("x<<y=3>>1, <<=>>, <<=3>>, <<3=>>, <<1+1=two>>, <<1\n+1=2>>, <<1+1=2>", None),
    ],
)
def test_annotations_are_gsm8ks(text, stripped):
    assert strip_annotations(text) == (text if stripped is None else stripped)


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand")
def test_all_annotations_of_gsm8k():
    answers = [json.loads(line)["answer"] for line in GSM8K.open()]
    assert sum(answer.count("<<") for answer in answers) == 23716
    for answer in answers:
        assert strip_annotations(answer) == re.sub("<<.*?>>", "", answer)
