"""Best of n: which of several answers to a problem counts, by several rules. Pure; no model is known here."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from statistics import fmean
from typing import Any, Literal, get_args

from step_jepa.evaluation.judging import Match, agreement, groups_of, proportion

Rule = Literal["vote", "likelihood", "surprise", "vote+surprise"]
RULES: tuple[Rule, ...] = get_args(Rule)
NLL, SURPRISE = "nll", "surprise"
SCORE: dict[Rule, str] = {"likelihood": NLL, "surprise": SURPRISE, "vote+surprise": SURPRISE}  # the smallest is best

Scores = Sequence[float | None]


def choose(rule: Rule, answers: Sequence[str | None], agree: Callable[[str, str], bool], scores: Scores = ()) -> int:
    """The place of the answer that a rule takes. No answer, None, is taken where there is nothing else, the first.

    vote           the first of those that most agree on; of equally many, of those whose earliest was drawn first
    likelihood     the one with the smallest score; of equal ones the first; without a score it is the last choice
    surprise       the same with another score
    vote+surprise  the first of those that most agree on; of equally many, of those with the smaller mean score

    Args:
        rule: its name.
        answers: to one problem, in the order in which they were drawn.
        agree: whether two are the same.
        scores: of each answer, where the rule looks at one.
    """
    given = [place for place, answer in enumerate(answers) if answer is not None]
    if not given:
        return 0
    if rule in ("likelihood", "surprise"):
        return min(given, key=lambda place: _known(scores[place]))
    groups = groups_of(answers, agree)
    most = max(map(len, groups))
    largest = [group for group in groups if len(group) == most]
    if rule == "vote+surprise":
        largest.sort(key=lambda group: fmean(_known(scores[place]) for place in group))
    return largest[0][0]


def _known(score: float | None) -> float:
    return score if score is not None and isfinite(score) else inf


def select(row: Mapping[str, Any], rules: Sequence[Rule], match: Match) -> dict[str, Any]:
    """The row of several answers (see `judge`) with the one that the first rule takes, and `selected`: by rule the
    place of its answer among the samples."""
    samples = row["samples"]
    answers = [sample["extracted"] for sample in samples]
    places = {}
    for rule in rules:
        scores = [sample[SCORE[rule]] for sample in samples] if rule in SCORE else ()
        places[rule] = choose(rule, answers, agreement(match), scores)
    return {**row, **samples[places[rules[0]]], "selected": places}


def compared(rows: Sequence[Mapping[str, Any]], tokens_read: Mapping[str, int]) -> dict[str, Any]:
    """How many of the problems with a known answer each rule solves, and how many could be: any, of which one answer at
    least is right. Each {correct, accuracy, ci95}, rules with the tokens that were read to select; and the tokens that
    were written.

    Args:
        rows: of `select`.
        tokens_read: by score, those of the pass that it is of.
    """
    known = [row for row in rows if row["correct"] is not None]
    rules: dict[str, Any] = {}
    for rule in rows[0]["selected"]:
        correct = sum(row["samples"][row["selected"][rule]]["correct"] for row in known)
        rules[rule] = {**proportion(correct, len(known)), "tokens_read": tokens_read.get(SCORE.get(rule, ""), 0)}
    solvable = sum(any(sample["correct"] for sample in row["samples"]) for row in known)
    written = sum(sum(sample["new_tokens"] for sample in row["samples"]) for row in rows)
    return {"rules": rules, "any": proportion(solvable, len(known)), "tokens_written": written}
