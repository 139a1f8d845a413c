"""Where chains of thought are cut. Expected steps are written out by hand."""

import json
import re
import time

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from step_jepa.data.steps import answer_step, final_answer, split, stated_answer, strip_annotations
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


WHOLE = {
    "display": "We have\n\n\\[\nx = 1\n\ny = 2\n\\]\n\nSo 3.",
    "dollars": "Let\n\n$$\nx\n\n= 1\n$$\n\nSo 3.",
    "environment": "Now\n\n\\begin{align*}\nx &= 1 \\\\[4pt]\n\ny &= 2\n\\end{align*}\n\nSo 3.",
    "environment in itself": "A\n\n\\begin{array}{c}\n\\begin{array}{c}\n\n1\n\\end{array}\n\n2\n\\end{array}\n\nB",
    "figure": "See\n\n[asy]\nsize(100);\n\ndraw((0,0)--(1,1));\n[/asy]\n\nSo 3.",
    "fence": "Code:\n\n```python\n# Step 1: a\n\n# Step 2: \\[\n```\n\nSo 3.",
    "fence in a fence": "Text:\n\n````md\n```\n\na\n```\n\nb\n````\n\nSo 3.",
    "fence that is never closed": "Code:\n\n~~~\na\n\nb",
    "table": "Rows:\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\nSo 3.",
    "item": "List:\n\n- a\n\n  still a\n\n    x = 1\n\n- b",
    "brackets in a line": "Let \\(a =\n\n1\\) be.\n\nSo 3.",
}


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_what_is_never_cut(text):
    first, *_ = text.split("\n\n")
    last = text.rpartition("\n\n")[2] if not text.startswith("Code:\n\n~") else None
    middle = text.removeprefix(first).removesuffix(last or "").strip()
    expected = (
        [text[: -len(last)].strip(), last]
        if "still a" not in text and first.startswith("Let \\(")
        else [first, middle, last]
    )
    assert split(text) == split(text, "paragraphs") == [step for step in expected if step]


@pytest.mark.parametrize(
    ("text", "how", "steps"),
    [
        ("a\n| x | y |\n|---|---|\n| 1 | 2 |\nb", "lines", ["a", "| x | y |\n|---|---|\n| 1 | 2 |", "b"]),
        ("|x| = 1\n|y| = 2", "lines", ["|x| = 1", "|y| = 2"]),
        ("- a\n  more\n- b\n\tmore\nc", "lines", ["- a\n  more", "- b\n\tmore", "c"]),
        ("It costs $5.\n$6 is more.", "lines", ["It costs $5.", "$6 is more."]),
        ("It costs 3*5=$15\nHe has 20-15=$<<20-15=5>>5", "lines", ["It costs 3*5=$15", "He has 20-15=$<<20-15=5>>5"]),
        ("If $m - n >\n0$, so\nis b.", "lines", ["If $m - n >\n0$, so", "is b."]),
        ("Let $5\n+x_1$\nbe b", "lines", ["Let $5\n+x_1$", "be b"]),
        ("a\n<llm-code>\nx = 2\n\nx\n</llm-code>\nb", "lines", ["a", "<llm-code>\nx = 2\n\nx\n</llm-code>", "b"]),
        ("So $a\n\nis $b", "paragraphs", ["So $a", "is $b"]),
        ("a \\[ b\n\nc", "paragraphs", ["a \\[ b", "c"]),
        ("\\begin{x} b\n\nc \\]", "paragraphs", ["\\begin{x} b", "c \\]"]),
        ("a\n\n---\n\nb\n\n**\n\n#### 3", "auto", ["a\n\n---", "b\n\n**", "#### 3"]),
        ("---\n\na\n\n\\[\n\nb", "auto", ["---\n\na", "\\[\n\nb"]),
        ("---\n\n**\n\n#### 3", "auto", ["---\n\n**\n\n#### 3"]),
        ("a\n\n```", "auto", ["a\n\n```"]),
        ("---", "auto", ["---"]),
        ("Step 1: a\n```\nStep 2: b\n```\nStep 2: c", "markers", ["Step 1: a\n```\nStep 2: b\n```", "Step 2: c"]),
    ],
)
def test_blocks_and_markup(text, how, steps):
    assert split(text, how) == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\n#### 6\nThe answer is: 6", ["a", "#### 6\nThe answer is: 6"]),
        ("a\n#### 6\n\nSo the final answer is 6.\n", ["a", "#### 6\n\nSo the final answer is 6."]),
        ("a\nb is $\\boxed{6}$.\nThe answer is: 6", ["a", "b is $\\boxed{6}$.\nThe answer is: 6"]),
        ("a\n#### 6\nb", ["a", "#### 6", "b"]),
        ("a\n\n\\begin{align*}\nx &= 1 \\\\\n&= \\boxed{6}.\n\\end{align*}", None),
        ("a\n\nThus\n$$\nx =\n\\boxed{6}\n$$\n\n---", None),
        ("a \\[\nx=2\n\\]. It is $\\boxed{6}$.", ["a \\[\nx=2\n\\].", "It is $\\boxed{6}$."]),
        ("a\nb\n[asy]\ndraw(A);\n[/asy] so \\boxed{6}", ["a", "b", "[asy]\ndraw(A);\n[/asy]", "so \\boxed{6}"]),
        (
            "a\nAs $m >\n0$, that is $$1 <\nm$$ or $$\\boxed{6}$$",
            ["a", "As $m >\n0$, that is $$1 <\nm$$", "or $$\\boxed{6}$$"],
        ),
        ("a\nAs $m >\n0$, it is \\boxed{6}", ["a", "As $m >\n0$, it is \\boxed{6}"]),
        ("a\n\n# Answer\n\n6", ["a", "# Answer\n\n6"]),
        ("a\n\n# Answer\n\n6\n\nb", ["a", "# Answer", "6", "b"]),
    ],
)
def test_the_answer_with_what_belongs_to_it(text, steps):
    steps = steps or ["a", text.removeprefix("a\n\n")]
    if text.startswith("a\n\nThus"):
        steps = ["a", "Thus", steps[1].removeprefix("Thus\n")]
    assert split(text) == steps


def test_sentences():
    text = (
        "He pays $3.50 for 1.5 kg, i.e. too much. Dr. Wu has 2.  Let $x = 2. Then$ it is 4! See \\(a. B\\). 1. First\n"
        "goes on. 2. Second.\n\n- An item. Its end.\n\nNo stop\n\nSo \\boxed{4}. Yes."
    )
    assert split(text, "sentences") == [
        "He pays $3.50 for 1.5 kg, i.e. too much.",
        "Dr. Wu has 2.",
        "Let $x = 2. Then$ it is 4!",
        "See \\(a. B\\).",
        "1. First\ngoes on.",
        "2. Second.",
        "- An item. Its end.",
        "No stop",
        "So \\boxed{4}. Yes.",
    ]
    assert split("One. Two.") == ["One. Two."]
    one_line = "Let $ b = -\\beta. $ Add 2 to it. It is $\\boxed{6}$. Yes."
    assert split(one_line, "sentences") == ["Let $ b = -\\beta. $ Add 2 to it.", "It is $\\boxed{6}$. Yes."]
    assert split("One. Two.\n#### 6. Yes", "sentences") == ["One.", "Two.", "#### 6. Yes"]


MATHS = st.sampled_from(
    [
        *("\\[\n{}\n\n{}\n\\]", "$$\n{}\n\n= {}\n$$", "\\begin{{align*}}\n{} &= 1 \\\\\n\n&= {}\n\\end{{align*}}"),
        *("\\begin{{cases}}\n{} \\\\[2pt]\n\n1. {}\n\\end{{cases}}", "[asy]\npair A = {};\n\ndraw({});\n[/asy]"),
        *("```python\nx = {}\n\n# Step 2: {}\n```", "\\begin{{tabular}}{{cc}}\n{} & 1\n\n{} & 2\n\\end{{tabular}}"),
    ]
)
SENTENCES = st.sampled_from(
    ["We add {} and {}.", "Let $x = {}.$ Then {} follows", "1. Take {}\n2. So {}", "**Step 1:** {}, {}"]
)
PARTS = st.tuples(st.one_of(MATHS, SENTENCES), st.integers(0, 99), st.integers(0, 99))
GAPS = st.sampled_from(["\n", "\n\n", "\n \n\n"])


@settings(max_examples=300)
@given(st.lists(st.tuples(PARTS, GAPS), min_size=1, max_size=6), st.booleans())
def test_no_cut_inside_an_environment(parts, boxed):
    written = [(pattern.format(first, second), gap) for (pattern, first, second), gap in parts]
    text = "".join(part + gap for part, gap in written) + ("So $\\boxed{3}$." if boxed else "")
    environments = [part for part, _ in written if part[0] in "\\$[`"]
    for how in ("auto", "markers", "paragraphs", "lines", "sentences"):
        steps, end = split(text, how), 0
        assert all(any(part in step for step in steps) for part in environments)
        for step in steps:
            start = text.index(step, end)
            assert not text[end:start].strip()
            end = start + len(step)
        assert not text[end:].strip()


def test_hostile_texts_take_no_time():
    started = time.process_time()
    for text in (
        "\\[ " * 20000,
        "\\begin{a}" * 9000,
        "$$ " * 20001,
        "- a\n" * 20000,
        "|-|\n" * 20000,
        "---\n" * 20000,
        "$" * 50000,
        "$a\n" * 20000,
        "$ \\$" * 20000,
    ):
        split(text)
        split(text, "sentences")
    assert time.process_time() - started < 20


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
    + ["\\[", "\\]", "$$", "\r\n", "\u2003", "\x85", "  ", "```\n", "- ", "|-|\n", "[asy]", "The answer is: 7", ". B"]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join) | st.text()


@given(TEXTS, st.sampled_from(["auto", "markers", "paragraphs", "lines", "sentences"]), st.integers(0, 4))
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
    assert answer_step(["a", "# Answer\n\n7"]) == 1
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
    ("text", "answer"),
    [
        ("x\n#### 7\nThe answer is: 8", "7"),
        ("x. The answer is: $1,200.", "1200"),
        ("x\nSo the final answer is $\\frac{1}{2}$.\n", "\\frac{1}{2}"),
        ("x\n\n# Answer\n\n7", "7"),
        ("The answer is: 8\nor so", None),
        ("The answer is:", None),
    ],
)
def test_stated_answer(text, answer):
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reasoning", "parts"),
    [
        ("<|begin_of_thought|>\na\n<|end_of_thought|>\n<|begin_of_solution|>c<|end_of_solution|>\n", "", ("a", "c")),
        ("<think>a</think>\n<answer>\nc\n</answer>", "", ("a", "c")),
        ("<thinking>a</thinking>c <answer>4</answer>", "", ("a", "c <answer>4</answer>")),
        ("<answer>4</answer> or 5", "a", ("a", "<answer>4</answer> or 5")),
        ("c", "<think>\na\n</think>", ("a", "c")),
        ("<think>a</think>c", "a ", ("a", "c")),
        ("    if x:\n      y", "", ("", "    if x:\n      y")),
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
        ("<think>a</think><answer>c", "", "<answer> is never closed"),
        ("<|begin_of_thought|>a", "", "never closed"),
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
