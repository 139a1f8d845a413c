"""Is an answer right, does it go on too long, and what do several answers to one problem say. No model is known."""

from collections.abc import Callable, Mapping, Sequence
from operator import eq
from typing import Any, Literal

from scipy.stats import binomtest

from step_jepa.evaluation.answers import extract, is_correct, over_generated
from step_jepa.evaluation.generation import Generation
from step_jepa.evaluation.texts import CRITERIA, ERRORS, error_of

Match = Literal["math", "exact", "starts_with", "first_characters", "regex"]


def truth_of(record: Mapping[str, Any], match: Match = "math") -> str | None:
    """What an answer is held against: the record's `answer`. Without one, the criteria of whole texts take all that the
    assistant says (a regular expression in NL-RX); `math` then knows no truth."""
    return record["answer"] or (None if match == "math" else record["messages"][-1]["content"].strip())


def judge(
    record: Mapping[str, Any], generations: Sequence[Generation], match: Match = "math", also: Sequence[str] = ()
) -> dict[str, Any]:
    """The row of predictions.jsonl.

    Args:
        record: the problem.
        generations: the answers to it, in the order of their samples; at least one.
        match: what is right.
        also: names in CRITERIA, for whole texts.

    Returns:
        index, question, answer (the truth), and of the generation that counts prediction, extracted (its answer, None
        for none), rule (how that was found; "text" where the whole text is the answer), correct (None without a truth),
        over_generated, truncated and new_tokens; where whole texts are judged also error (see `error_of`), and by, what
        each criterion in `also` says. Of several generations the one that counts is the first of the majority; then
        there are also votes, the size of the majority, and samples, all of them in order."""
    truth = truth_of(record, match)
    samples = [_judged(generation, truth, match, also) for generation in generations]
    row = {"index": generations[0].index, "question": record["question"], "answer": truth}
    if len(samples) == 1:
        return {**row, **samples[0]}
    answers = [sample["extracted"] for sample in samples]
    majority = majority_vote(answers, agreement(match))
    return {**row, **samples[majority[0]], "votes": len(majority), "samples": samples}


def _judged(generation: Generation, truth: str | None, match: Match, also: Sequence[str]) -> dict[str, Any]:
    text = generation.prediction.strip()
    if match == "math":
        judged = _mathematics(text, truth)
    else:
        assert truth is not None
        judged = _whole_text(text, truth, match, also)
    return {
        "prediction": generation.prediction,
        **judged,
        "truncated": generation.truncated,
        "new_tokens": generation.new_tokens,
    }


def _mathematics(text: str, truth: str | None) -> dict[str, Any]:
    answer, rule = extract(text, truth)
    correct = None if truth is None else text == truth or is_correct(answer, truth)
    return {"extracted": answer, "rule": rule, "correct": correct, "over_generated": over_generated(text)}


def _whole_text(text: str, truth: str, match: Match, also: Sequence[str]) -> dict[str, Any]:
    error = error_of(text, truth)
    return {
        "extracted": text or None,
        "rule": "text" if text else "none",
        "correct": CRITERIA[match](text, truth),
        "by": {name: CRITERIA[name](text, truth) for name in also},
        "error": error,
        "over_generated": error == "goes_on",
    }


def agreement(match: Match) -> Callable[[str, str], bool]:
    """Whether two answers are the same: the same mathematics, or the same text."""
    return is_correct if match == "math" else eq


def majority_vote(answers: Sequence[str | None], agree: Callable[[str, str], bool]) -> list[int]:
    """Places of the answers that most agree on, in order; of equally many, those of the earliest answer.

    None, no answer, has no vote; where there is nothing else it is the first place."""
    return max(groups_of(answers, agree), key=len, default=[0])


def groups_of(answers: Sequence[str | None], agree: Callable[[str, str], bool]) -> list[list[int]]:
    """Places of the answers that agree, in order; the groups in the order of their earliest answers. None is in no
    group."""
    groups: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        group = next((group for group in groups if agree(answer, str(answers[group[0]]))), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return groups


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over judged rows: n and accuracy are of the rows with a known answer, each of which counts; no_answer (no
    rule found one), truncated and over_generated are of all rows, and a row can be in more than one of them.

    sample_accuracy is the mean over single answers: it is the accuracy, unless majorities were taken. errors are counts
    by kind, where whole texts are judged, and by is the accuracy by each further criterion."""
    known = [row for row in rows if row["correct"] is not None]
    correct = sum(row["correct"] for row in known)
    answers: list[Mapping[str, Any]] = []
    for row in known:
        answers += row.get("samples", [row])
    errors = [row["error"] for row in rows if "error" in row]
    return {
        "n": len(known),
        "without_truth": len(rows) - len(known),
        **proportion(correct, len(known)),
        "sample_accuracy": sum(answer["correct"] for answer in answers) / len(answers) if answers else None,
        "by": {name: sum(row["by"][name] for row in known) / len(known) for name in rows[0].get("by", ())},
        "errors": {kind: errors.count(kind) for kind in ERRORS} if errors else {},
        "no_answer": sum(row["rule"] == "none" for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "over_generated": sum(row["over_generated"] for row in rows),
    }


def proportion(correct: int, n: int) -> dict[str, Any]:
    """correct, accuracy (None with n = 0) and ci95, its interval."""
    return {"correct": correct, "accuracy": correct / n if n else None, "ci95": list(wilson_interval(correct, n))}


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (JASA 22, 1927, p. 209); with n = 0 nothing is known: (0.0, 1.0)."""
    if n == 0:
        return 0.0, 1.0
    # That of statsmodels differs by rounding, and has 1 - 1e-16 where all are correct.
    low, high = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)
