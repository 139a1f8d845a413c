"""The results of an experiment in words."""

from collections.abc import Mapping

from step_jepa.experiments.arguments import ACCURACY
from step_jepa.experiments.results import ConditionResult, ExperimentResults
from step_jepa.plurals import counted

MANY = 0.5  # of an arm's answers, cut off
EXTREME = 0.02  # accuracies that are so near to 0 or to 1 can show no difference


def primary_sentence(results: ExperimentResults) -> str:
    """What came of the comparison that was named beforehand."""
    found = [comparison for comparison in results.comparisons if comparison.primary]
    return (
        " ".join(f"{each.measure}, {each.sentence}" for each in found) or "The primary comparison cannot be made yet."
    )


def conclusions(results: ExperimentResults) -> list[str]:
    """A sentence for the primary comparison and for every one that shows a difference; how many do not; and one where
    accuracy is at its floor or ceiling."""
    sentences = extremes(results.conditions)
    others = [comparison for comparison in results.comparisons if not comparison.primary]
    shown = [comparison for comparison in others if comparison.shows_difference]
    for comparison in results.comparisons:
        if comparison.primary:
            sign_flips = comparison.sign_flips.capitalize()
            sentences.append(f"Primary. {comparison.measure}, {comparison.sentence} {sign_flips}")
    sentences += [f"{comparison.measure}, {comparison.sentence}" for comparison in shown]
    if count := len(others) - len(shown):
        of = f"{count} of {counted(len(others), 'other comparison')}"
        sentences.append(f"No difference is shown by {of}; see their intervals.")
    return sentences


def extremes(conditions: Mapping[str, ConditionResult]) -> list[str]:
    """A sentence where all conditions solve next to nothing, or next to everything."""
    scores = []
    for condition in conditions.values():
        if ACCURACY in condition.measures:
            scores.append(condition.measures[ACCURACY].mean)
    unseen = "where no difference can be seen"
    if scores and max(scores) < EXTREME:
        return [f"Every arm solves next to nothing, {unseen}: {_remedy(conditions)}."]
    if scores and min(scores) > 1 - EXTREME:
        return [f"Every arm solves next to everything, {unseen}: take harder problems."]
    return []


def _remedy(conditions: Mapping[str, ConditionResult]) -> str:
    """Where next to nothing is solved."""
    shares = [_share_cut_off(condition) for condition in conditions.values()]
    if max(shares) < MANY:
        return "take easier problems, or train longer"
    longest = max(condition.figures.get("longest_solution") or 0 for condition in conditions.values())
    enough = f" (the longest solution of the test file has {longest:.0f} tokens)" if longest else ""
    return f"up to {max(shares):.0%} of an arm's answers are cut off: raise max_new_tokens{enough}"


def _share_cut_off(condition: ConditionResult) -> float:
    return (condition.figures.get("truncated") or 0) / condition.measures[ACCURACY].problems
