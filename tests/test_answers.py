"""Answers: what is extracted by which rule, what counts as right, and how sure one may be. All by hand."""

import threading

import pytest

from step_jepa.evaluation.answers import extract, interval, is_correct


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
        (r"It is 72: \boxed{\frac{7}{2}", ("2", "number")),
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
    ],
)
def test_wrong(answer, truth):
    assert not is_correct(answer, truth)


def test_what_math_verify_raises_is_wrong(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("sympy")

    monkeypatch.setattr("step_jepa.evaluation.answers.math_verify.verify", fail)
    assert not is_correct("72.0", "72")


def test_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(is_correct("1/2", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]


def test_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert interval(20, 20)[1] == 1.0
    assert interval(0, 0) == (0.0, 1.0)
