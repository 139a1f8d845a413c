"""What the page lacks, and the commands that make it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from step_jepa.reporting.dots import OTHER, kind_of
from step_jepa.reporting.matching import LabelledEvaluation, not_evaluated_after, not_evaluated_before
from step_jepa.reporting.runs import ReportData, Run

EVALUATE = "step-jepa evaluate --test_file F --model_name"
MOST_NAMED = 5  # runs that lack the same thing


class Lack(NamedTuple):
    """What is not there, and the command that makes it, if one does."""

    text: str
    command: str = ""


def lacks(data: ReportData, evaluations: Sequence[LabelledEvaluation]) -> list[Lack]:
    """Of runs by themselves; those of an experiment are as it planned them."""
    alone = [run for run in data.runs if run.arm is None]
    found = [*_of_runs(alone), *_of_evaluations(data, evaluations, alone)]
    trained = [run for run in alone if kind_of(run.options) != OTHER]
    if trained and not data.pairings:
        command = f"step-jepa pairing --model_name {trained[0].folder} --test_file F --output_dir pairing"
        found.append(Lack("Whether the next step is known, beside controls and baselines, was not measured.", command))
    return found


def _of_runs(runs: Sequence[Run]) -> Iterator[Lack]:
    lacking = {
        "no run.json, as an older version made it: train again": [run for run in runs if not run.settings],
        "no rows.json, for the explorer: train with --approach adapted": [run for run in runs if not run.rows],
        "no curves: train with --logging_steps 1": [run for run in runs if not run.points("lm_loss")],
    }
    for what, without in lacking.items():
        if without:
            yield Lack(f"{_named(without)}: {what}.")


def _of_evaluations(data: ReportData, labelled: Sequence[LabelledEvaluation], runs: Sequence[Run]) -> Iterator[Lack]:
    bases = [run.settings.get("model_name", "BASE") for run in not_evaluated_before(data.evaluations, runs)]
    for base in list(dict.fromkeys(bases))[:MOST_NAMED]:
        yield Lack(f"{base} was not evaluated before training.", f"{EVALUATE} {base} --output_dir before")
    if without := not_evaluated_after(labelled, runs):
        yield Lack(f"{_named(without)}: not evaluated.", f"{EVALUATE} {without[0].folder} --output_dir after")
    for each in labelled:
        folder = each.evaluation.folder
        if each.is_ambiguous:
            names = " or ".join(str(run.folder) for run in each.candidates)
            yield Lack(
                f"{folder} is of {each.evaluation.model}, which may be {names}, so it is credited to none: evaluate "
                "again with the whole path as --model_name."
            )
        elif each.evaluation.views is None and not (each.run and each.run.arm):
            yield Lack(f"{folder} has no views.safetensors, of an older version, or as no problem has two steps.")


def _named(runs: Sequence[Run]) -> str:
    names = ", ".join(run.name for run in runs[:MOST_NAMED])
    return names if len(runs) <= MOST_NAMED else f"{names} and {len(runs) - MOST_NAMED} more"
