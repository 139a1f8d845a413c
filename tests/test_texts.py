"""Criteria of whole texts: what a person would say of two regular expressions, and of a text that is wrong."""

import re
import time
from itertools import product

import pytest

from step_jepa.evaluation.generation import Generation
from step_jepa.evaluation.judging import judge, summarise
from step_jepa.evaluation.regex_syntax import equivalent
from step_jepa.evaluation.texts import CRITERIA, error_of

SAME = [
    ("dog", "(dog)"),
    ("(dog)|(truck)", "(truck)|(dog)"),
    ("(([a-z])|([A-Z])).*", "[A-Za-z].*"),
    ("([A-Z])|([a-z])", "[A-Za-z]"),
    (".*dog.*", "(.*)(dog)(.*)"),
    (".*(.*dog.*).*", ".*dog.*"),
    ("(.*)(.*)", ".*"),
    ("([0-9])+", "[0-9][0-9]*"),
    ("(dog){3,}", "dogdogdog(dog)*"),
    ("(a){2,4}", "aa|aaa|aaaa"),
    ("(a){0,2}", "a?a?"),
    ("(dog)*", "((dog)+)?"),
    ("((dog)*)*", "(dog)*"),
    ("(a|b)*", "(a*b*)*"),
    ("([a-z])&([AEIOUaeiou])", "[aeiou]"),
    ("([AEIOUaeiou])&(.)", "[AEIOUaeiou]"),
    ("(dog)&(truck)", "([a-z])&([0-9])"),  # no string
    ("(.*dog.*)&(.*truck.*)", "(.*dog.*truck.*)|(.*truck.*dog.*)"),
    ("(.*a.*)&(.*b.*)", "(.*b.*)&(.*a.*)"),
    ("~(~(dog))", "dog"),
    ("~((dog)|(truck))", "(~(dog))&(~(truck))"),
    ("~(.*)", "a&b"),
    ("(dog)|(~(dog))", ".*"),
    ("~([^0-9].*|)", "[0-9].*"),
    ("(~(dog))*", ".*"),
    (r"\bdog\b", "dog"),  # of the whole line
    (r"\b(dog)\b", r"(\bdog)\b"),
    (r"\b\bdog", r"\bdog"),
    (r".*\bdog\b.*", r"(.*\b|)dog(\b.*|)"),
    (r"a\bb", "a&b"),  # no boundary there: no string
    (r"(.*)\b", r"(.*\w)|(.*\b)"),
    (r"\d", "[0-9]"),
    (r"\.", "[.]"),
]
OTHER = [
    ("dog", "truck"),
    ("dog", "dogs"),
    ("dog.*", "dog"),
    ("(dog).*", ".*(dog)"),
    (".*dog.*", "dog.*"),
    ("(dog)+", "(dog)*"),
    ("(dog){3,}", "(dog){2,}"),
    ("(dog){3}", "(dog){3,}"),
    ("dog{3,}", "(dog){3,}"),  # the last letter alone
    ("[a-z]", "[A-Za-z]"),
    ("[AEIOU]", "[AEIOUaeiou]"),
    ("[0-9]", "[1-9]"),
    ("([a-z])|([0-9])", "([a-z])&([0-9])"),
    ("(a|b)*", "a*|b*"),
    ("a|bc", "(a|b)c"),
    ("a&b|c", "a&(b|c)"),
    ("~(dog)", "dog"),
    ("~(dog)", "~(truck)"),
    ("~(dog).*", "~(dog.*)"),
    ("~(.*dog.*)", "~(dog)"),
    ("(.*dog.*)&(.*truck.*)", ".*dog.*truck.*"),
    (r".*\bdog\b.*", ".*dog.*"),
    (r"\b.*", ".*"),
    (r"\bdog.*", r"dog\b.*"),
    ("(.*)([A-Z])", "([A-Z])(.*)"),
    (".", ".*"),
    ("(.)(.)", "(.)"),
]


@pytest.mark.parametrize(
    ("first", "second", "same"), [(*pair, True) for pair in SAME] + [(*pair, False) for pair in OTHER]
)
def test_equivalence_is_what_a_person_would_say(first, second, same):
    assert len(SAME) + len(OTHER) == 60
    assert equivalent(first, second) is equivalent(second, first) is same


PLAIN = [
    *(r"\ba.*", r".*\b", r"(a|A)*\b7", r"a\b A", "[^a]{1,2}7?", r"(\w\b.)*"),
    *(r"(\ba|A\b| )+", "(.*7.*){2,}", r"(a\b)?.A*"),
]
SHORT = ["".join(letters) for length in range(4) for letters in product("aA7 ", repeat=length)]


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_short_strings_are_matched_as_by_re(number):
    matched = [{text for text in SHORT if re.fullmatch(pattern, text)} for pattern in PLAIN]
    for other, pattern in enumerate(PLAIN):
        assert equivalent(PLAIN[number], pattern) == (matched[number] == matched[other])
    assert equivalent(f"({PLAIN[number]})&([aA7 ]{{0,3}})", "|".join(sorted(matched[number])))


@pytest.mark.parametrize(
    "wrong", ["(dog", "dog)", "[a-z", "*a", "a**|(", "a{3,2}", "[z-a]", r"\q", "\\", "(|", "a(", "~"]
)
def test_what_is_no_expression_is_like_none(wrong):
    with pytest.raises(ValueError, match=r"."):
        equivalent(wrong, "dog")
    assert not CRITERIA["regex"](wrong, "dog")
    assert CRITERIA["regex"](wrong, wrong)


@pytest.mark.parametrize(
    ("hard", "like"),
    [
        ("(.*a.{18})|b", "(.*a.{18})|c"),
        ("(.*a.{30})&(.*b.{30})", "(.*b.{30})&(.*a.{29}.)"),
        ("~(.*a.{20})(.*b.{20})*", "(.*a.{21})|(~(.*))"),
        ("(" * 333 + "a" + ")" * 333, "a"),
        ("(" * 2000, "a"),
        ("a{99999999}", "a"),
        ("((([a-z])|(.).*(.){3,35})*){5,}", "(~((.){4,}))|((~(.)){5,})"),  # terms of hundreds of parts
        (r"(((b){0,37}){3,32}((a)&(dog))|((\b)&([a-z])))+", r"~((([^a])|(\b)|([0-9])|((.*))){5,})"),
        ("(((.{1,99}){1,99}){1,99})", ".*"),
        ("(a|b|c|d|e|f|g|h|.*){30,}", "((.*a)&(.*b)){30}"),
        ("&".join(f"(.*{letter}.*)" for letter in "abcdefghijklmnop"), "a"),
        ("|".join(f"(.{{{n}}})*" for n in (2, 3, 5, 7, 11, 13, 17)), ".*"),
        ("|".join(f"{letter}{letter}*" for letter in "abcdefghijklmnopqrstuvwxyz") + "|.*", ".*"),
    ],
)
def test_no_input_takes_a_second(hard, like):
    start = time.process_time()
    assert equivalent(hard, like) in (None, False, True)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("(dog).*", {"exact", "starts_with", "first_characters", "regex"}),
        ("(dog).*truck", {"starts_with", "first_characters"}),  # of a short truth all
        ("((dog)).*", {"regex"}),
        ("(dog).", set()),
        ("", set()),
    ],
)
def test_criteria(text, by):
    assert {name for name, holds in CRITERIA.items() if holds(text, "(dog).*")} == by


def test_the_first_ten_characters():
    assert CRITERIA["first_characters"]("(dog).*[A-]", "(dog).*[A-Z]")
    assert not CRITERIA["first_characters"]("(dog).*[A]", "(dog).*[A-Z]")
    assert not CRITERIA["first_characters"]("(dog)", "(dog).*[A-Z]")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("ab", None), ("abc", "goes_on"), ("a", "stops_early"), ("", "stops_early"), ("ba", "other"), ("bac", "other")],
)
def test_kinds_of_error(text, kind):
    assert error_of(text, "ab") == kind


def test_rows_and_summary_have_them():
    record = {"question": "q", "answer": None, "messages": [{"role": "assistant", "content": "(dog)"}]}
    texts = ["(dog)", "dog", "(dog).*", "(d", "cat"]
    answers = [Generation(number, 0, text, False, 3) for number, text in enumerate(texts)]
    rows = [judge(record, [answer], "exact", ["starts_with", "regex"]) for answer in answers]
    assert rows[1]["by"] == {"starts_with": False, "regex": True}
    assert [row["error"] for row in rows] == [None, "other", "goes_on", "stops_early", "other"]
    summary = summarise(rows)
    assert (summary["accuracy"], summary["by"]) == (0.2, {"starts_with": 0.4, "regex": 0.4})
    assert summary["errors"] == {"goes_on": 1, "stops_early": 1, "other": 2}
    assert summary["over_generated"] == 1
