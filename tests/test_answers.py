"""Answers: what is extracted by which rule, what counts as right, and how sure one may be. All by hand."""

import threading
import time

import pytest
from math_verify.errors import TimeoutException

from step_jepa.evaluation.answers import extract, is_correct, over_generated
from step_jepa.evaluation.judging import majority_vote, wilson_interval
from step_jepa.evaluation.mathematics import time_limit

RIGHT, WRONG = True, False

# What a model wrote, the truth, the rule that finds the answer, and what a person would say of it.
JUDGED = [
    # boxed: nested braces, fractions
    (r"The answer is \boxed{72}.", "72", "boxed", RIGHT),
    (r"\boxed{\frac{1}{2}}", "0.5", "boxed", RIGHT),
    (r"\boxed{\frac12}", "1/2", "boxed", RIGHT),
    (r"\boxed{-\tfrac{1}{2}}", "-0.5", "boxed", RIGHT),
    (r"\boxed{5\frac{1}{2}}", "5.5", "boxed", RIGHT),
    (r"\boxed{\dfrac{\sqrt{16}}{\frac{4}{3}}}", "3", "boxed", RIGHT),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}", "boxed", RIGHT),
    (r"\boxed{(1, 2)}", "(2, 1)", "boxed", WRONG),
    (r"\boxed{0.33}", "1/3", "boxed", WRONG),
    (r"\boxed{2^{10}}", "1024", "boxed", RIGHT),
    (r"\boxed{3 \times 10^2}", "300", "boxed", RIGHT),
    # several boxes, text around them
    (r"First \boxed{9}. No, I forgot one: \boxed{10}", "10", "boxed", RIGHT),
    (r"First \boxed{9}. No, I forgot one: \boxed{10}", "9", "boxed", WRONG),
    (r"#### 9 - wait: \boxed{8}", "8", "boxed", RIGHT),
    (r"\boxed{72} is what she earns in 30 days.", "72", "boxed", RIGHT),
    # units
    (r"\boxed{72\text{ dollars}}", "72", "boxed", RIGHT),
    (r"\boxed{72 \text{ km/h}}", "72", "boxed", RIGHT),
    (r"\boxed{5 \text{ cm}^2}", "5", "boxed", RIGHT),
    (r"\boxed{12\,\mathrm{m}}", "12", "boxed", RIGHT),
    (r"\boxed{90^{\circ}}", "90", "boxed", RIGHT),
    (r"\boxed{50\%}", "50", "boxed", RIGHT),
    (r"\boxed{50\%}", "0.5", "boxed", RIGHT),
    # commas
    (r"\boxed{\$1,250.50}", "1250.5", "boxed", RIGHT),
    (r"\boxed{1{,}000}", "1000", "boxed", RIGHT),
    (r"\boxed{1\,000}", "1000", "boxed", RIGHT),
    # equations, words
    (r"\boxed{x = 5}", "5", "boxed", RIGHT),
    (r"\boxed{2 + 3 = 5}", "5", "boxed", RIGHT),
    (r"\boxed{2x}", "2", "boxed", WRONG),
    (r"\boxed{72 and 73}", "73", "boxed", WRONG),
    (r"\boxed{\text{Evelyn}}", "Evelyn", "boxed", RIGHT),
    (r"\boxed{\text{Evelyn}}", "Evelyna", "boxed", WRONG),
    (r"\boxed{\textbf{72}}", "72", "boxed", RIGHT),
    # hashes
    ("He has 3 + 4 = 7.\n#### 7", "7", "hashes", RIGHT),
    ("#### 1,234", "1234", "hashes", RIGHT),
    ("#### $72.00", "72", "hashes", RIGHT),
    ("#### 72\u20ac", "72", "hashes", RIGHT),
    ("#### **72**", "72", "hashes", RIGHT),
    ("#### 72 eggs", "72", "hashes", RIGHT),
    ("#### The answer is 72.", "72", "hashes", RIGHT),
    ("#### 72. Check: 36 * 2 = 72.", "72", "hashes", RIGHT),
    ("#### 5 (five)", "5", "hashes", RIGHT),
    ("#### -5", "5", "hashes", WRONG),
    ("#### \u22125", "-5", "hashes", RIGHT),
    ("#### 3 / 4", "0.75", "hashes", RIGHT),
    ("#### 20%", "20", "hashes", RIGHT),
    ("#### 7:30", "7:30", "hashes", RIGHT),
    ("#### 7 2", "72", "hashes", WRONG),
    ("#### 72\n\nSo she earns $72 in 30 days.", "72", "hashes", RIGHT),
    # the last number
    ("####\nThe answer is 72.", "72", "number", RIGHT),
    (r"The answer is \boxed{72", "72", "number", RIGHT),
    ("She pays $1,234.50 in total.", "1234.5", "number", RIGHT),
    ("The loss is -5.", "-5", "number", RIGHT),
    ("So 3/4 of it", "0.75", "number", RIGHT),
    ("It is 3 1/2.", "3.5", "number", RIGHT),
    ("It is 3 1/2.", "0.5", "number", WRONG),
    (r"So $2 \frac{3}{4}$ cups", "2.75", "number", RIGHT),
    ("It is 12\u202f345 in 2020.", "2020", "number", RIGHT),
    ("In 2020 12 345 came.", "12345", "number", RIGHT),
    (r"So $12\,345$.", "12345", "number", RIGHT),
    ("It is 1.5e3.", "1500", "number", RIGHT),
    ("It is 3 4.", "7", "number", WRONG),
    (r"The answer is $\frac{3}{4}$.", "0.75", "number", RIGHT),
    ("The answer is **72**.", "72", "number", RIGHT),
    ("It is .5", "1/2", "number", RIGHT),
    ("About 70, but exactly 71.", "72", "number", WRONG),
    # no answer
    ("I cannot solve this.", "72", "none", WRONG),
    (r"\boxed{}", "72", "none", WRONG),
    ("####", "72", "none", WRONG),
    ("", "72", "none", WRONG),
]


@pytest.mark.parametrize(("text", "truth", "rule", "verdict"), JUDGED)
def test_judged_as_a_person_would(text, truth, rule, verdict):
    answer, found_by = extract(text)
    assert (found_by, is_correct(answer, truth)) == (rule, verdict)


@pytest.mark.parametrize(
    ("text", "truth", "answer", "rule", "verdict"),
    [
        ("21 / 3 = 7.\nAnswer is A", "A", "A", "stated", RIGHT),
        ("The answer is A", "A", "A", "stated", RIGHT),
        ("So the answer is A because 3 < 4.", "A", "A", "stated", RIGHT),
        ("Answer: (A)", "a", "A", "stated", RIGHT),
        ("**Answer:** B) 21", "b", "B", "stated", RIGHT),
        ("the correct option is: (c).", "C", "c", "stated", RIGHT),
        ("The answer is B. No, the answer is C.", "B", "C", "stated", WRONG),
        ("The answer is a number, 7", "A", "7", "number", WRONG),
        (r"\boxed{(A)}", "A", "(A)", "boxed", RIGHT),
        ("#### A) 21", "A", "A) 21", "hashes", RIGHT),
        ("#### (B)", "A", "(B)", "hashes", WRONG),
        ("the answer is False.", "false", "False", "stated", RIGHT),
        ("Snow melts at 0 C.\nThe answer is: **no**", "No", "no", "stated", RIGHT),
        ("false", "False", "false", "stated", RIGHT),
        ("The answer is Evelyn.", "Evelyn", "Evelyn", "stated", RIGHT),
        ("The answer is evelyn.", "Evelyn", "evelyn", "stated", WRONG),
        ("The answer is A: 7", "7", "7", "number", RIGHT),
        ("The answer is x.", "2x", None, "none", WRONG),
    ],
)
def test_letters_and_words(text, truth, answer, rule, verdict):
    assert extract(text, truth) == (answer, rule)
    assert is_correct(answer, truth) == verdict


PROBLEM = "Question: Bob has 3 apples and eats 1. How many are left?\nAnswer: Bob has 3 - 1 = 2 apples left.\n#### 2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7.\n#### 7", False),
        ("3 + 4 = 7.\n#### 7\n", False),
        ("#### 7\n\nSo he pays $7.", False),
        (r"So it is \boxed{7}. I hope this helps! Let me know if you have any other questions.", False),
        ("\\[\n\\boxed{7}\n\\]\n\nTherefore Bob has 7 apples in total after he visited the shop.", False),
        (r"First \boxed{9}. No: \boxed{10}", False),
        (r"So $x = \boxed{3}$ and $y = \boxed{4}$.", False),
        ("Step " * 60 + "\n#### 7", False),
        ("word " * 60 + "7", False),  # no answer is set off, so none is gone beyond
        ("#### \n" + "word " * 60, False),
        (r"\boxed{}" + " word" * 60, False),
        ("#### 7" + " word" * 30, False),
        ("#### 7" + " word" * 31, True),
        (r"\boxed{7}" + " word" * 31, True),
        ("#### 7\n\n" + PROBLEM, True),
        ("\\boxed{7}\n\n" + PROBLEM, True),
        ("#### 7\n#### 7\n#### 7", True),
        ("#### 7" * 40, True),
        ("\\boxed{7}\n\\boxed{7}", True),
        ("#### 7\nThat is \\boxed{7}.", True),
    ],
)
def test_over_generated(text, expected):
    assert over_generated(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So it is \boxed{72}.", ("72", "boxed")),
        (r"\boxed{\frac{1}{2}}", (r"\frac{1}{2}", "boxed")),
        (r"first \boxed{5}, no: \boxed{6}", ("6", "boxed")),
        (r"\boxed{72} is what she earns in 30 days. I hope this helps!", ("72", "boxed")),
        (r"\boxed{x=5}", ("x=5", "boxed")),
        ("#### 9\n\\boxed{8}", ("8", "boxed")),
        ("#### 1,234", ("1234", "hashes")),
        ("#### 5\nsome more\n#### 6 eggs\nand 7", ("6 eggs", "hashes")),
        ("\\boxed{72\n#### 72", ("72", "hashes")),
        (r"It is 72: \boxed{\frac{7}{2}", (r"\frac{7}{2}", "number")),
        ("72. \\boxed{}", ("72", "number")),
        ("#### 72\n\\boxed{}", ("72", "hashes")),
        ("####\nThe answer is 72.", ("72", "number")),
        ("She pays $1,234.50 in total.", ("$1,234.50", "number")),
        ("The loss is -5.", ("-5", "number")),
        ("10-5 apples", ("5", "number")),
        ("so 3/4 of it", ("3/4", "number")),
        ("I do not know.", (None, "none")),
        ("", (None, "none")),
    ],
)
def test_extract(text, expected):
    assert extract(text) == expected


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\frac{1}{2}", "0.5"),
        ("3/4", "0.75"),
        ("72.0", "72"),
        ("72 dollars", "72"),
        (r"72\text{ dollars}", "72"),
        ("$72", "72"),
        (r"\$72", "72"),
        ("-$5", "-5"),
        ("\u20ac72", "72"),
        (r"72\%", "72"),
        ("72", "72 dollars"),
        ("The answer is 72.", "72"),
        ("12 km/h", "12"),
        ("1,000", "1000"),
        ("x=5", "5"),
        (r"\sqrt{4}", "2"),
        ("(dog).*", " (dog).* "),
        ("Evelyn", "Evelyn"),
        ("12 345", "12345"),
        ("12\u2009345", "12345"),
        ("12\u00a0345", "12345"),
        (r"12\,345", "12345"),
        ("12~345", "12345"),
        ("1 234 567.5 km", "1234567.5"),
        ("3 1/2", "3.5"),
        ("-3 1/2 hours", "-3.5"),
        (r"x = 3 \frac{1}{2}", "3.5"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        ("3 4", "3 4"),
        (r"\log_2 8", "3"),
        (r"4\sqrt(2)", r"\sqrt{32}"),
        ("(x,y) = (3.0, 4)", "(x, y) = (3, 4)"),
        ("(3, 4)", "(x, y) = (3, 4)"),
        ("(x, y) = (3, 4)", "(3,4)"),
        (r"x\in(-\infty, 1.0)", r"x \in (-\infty,1)"),
        (r"(-\infty, 1)", r"x \in (-\infty,1)"),
        ("x = 2 + 3 = 5", "x = 5"),
        ("2 + 3 = 5", "1 + 4 = 5"),
        ("x = 2, y = 3", "x=2,y=3"),
        ("1 + x^2 = 0", "x^2 + 1 = 0"),
        ("4 @ 5", "4 @ 5"),
    ],
)
def test_right(answer, truth):
    assert is_correct(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("-5", "5"),
        ("71", "72"),
        ("0.33", "1/3"),
        ("2x", "2"),
        ("12 hours 30 minutes", "42"),
        ("72 and 73", "73"),
        ("paris", "Paris"),
        ("Aegean", "Agenea"),
        ("3", "([dog].*3).*"),
        ("(3|dog).*", "(dog|3).*"),
        ("", "5"),
        (None, "5"),
        (r"\frac{", "1"),
        ("9" * 5000, "1"),
        ("3 4", "7"),
        (r"3\ 4", "7"),
        ("3\n4", "4"),
        ("3 1/2", "2"),
        ("12 345", "357"),
        ("0 123", "123"),
        ("(x, y) = (9, -2)", "(x, y) = (3, 4)"),
        ("(y, x) = (3, 4)", "(x, y) = (3, 4)"),
        (r"x \in (-\infty,2)", r"x \in (-\infty,1)"),
        (r"x \in (-\infty,1]", r"x \in (-\infty,1)"),
        ("A = (1,2)", "A = (1,3)"),
        (r"x \in \{1, 2\}", r"x \in \{1, 3\}"),
        ("x = 2, y = 4", "x = 2, y = 3"),
        (r"4\sqrt(2)", "4"),
        ("4@5", "4"),
        ("4 )", "4"),
        (r"4 \le", "4"),
        ("2 + 3 = 5", "1 + 4 = 6"),
        ("x^2 + 1 = 0", "x^2 + 4 = 0"),
    ],
)
def test_wrong(answer, truth):
    assert not is_correct(answer, truth)


def test_unlike_answers_do_not_vote_together():
    answers = ["(x, y) = (9, -2)", "(x, y) = (3, 4)", "(x, y) = (0, 1)", "(3, 4)"]
    assert majority_vote(answers, is_correct) == [1, 3]


def test_what_math_verify_raises_is_wrong(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("sympy")

    monkeypatch.setattr("step_jepa.evaluation.mathematics.math_verify.verify", fail)
    assert not is_correct("72.0", "72")


def test_off_the_main_thread():
    found = []

    def judge():
        found.append(is_correct("1/2", "0.5"))
        start = time.monotonic()
        try:
            with time_limit(0.05):
                while time.monotonic() < start + 10:
                    pass
        except TimeoutException:
            found.append("in time")

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert found == [True, "in time"]


def test_what_takes_too_long_is_wrong(monkeypatch):
    monkeypatch.setattr("step_jepa.evaluation.mathematics.SECONDS", 0.2)
    start = time.monotonic()
    assert not is_correct("10000000!", "5")
    assert time.monotonic() < start + 5
    assert is_correct("72.0", "72")


def test_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
