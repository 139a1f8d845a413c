"""Which evaluation is of which run: by the folder of the model that was evaluated, never by a name alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from step_jepa.reporting.runs import Evaluation, Run

ORDER = {"before": 0, "after": 1}  # of labels on the page, by their first word; others come last


class LabelledEvaluation(NamedTuple):
    """An evaluation, and what it is of.

    label        "before" (of a run's base model), "after" and the run's name, or the name of its model
    candidates   the runs whose model it may be of: one where it is known, several where its name fits them all
    """

    label: str
    evaluation: Evaluation
    candidates: list[Run]

    @property
    def is_ambiguous(self) -> bool:
        return len(self.candidates) > 1


def label_evaluations(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[LabelledEvaluation]:
    """Those before first, then those after, then others."""
    run_by_folder = {run.folder.resolve(): run for run in runs}
    base_models = {run.settings.get("model_name") for run in runs}
    labelled = []
    for evaluation in evaluations:
        candidates = _candidates(evaluation, run_by_folder)
        if len(candidates) == 1:
            label = "after" if len(runs) == 1 else f"after {candidates[0].name}"
        else:
            label = "before" if evaluation.model in base_models else evaluation.model
        labelled.append(LabelledEvaluation(label, evaluation, candidates))
    return sorted(labelled, key=lambda each: ORDER.get(each.label.split()[0], len(ORDER)))


def _candidates(evaluation: Evaluation, run_by_folder: Mapping[Path, Run]) -> list[Run]:
    model, working_folder = Path(evaluation.model), _working_folder(evaluation)
    if model.is_absolute() or working_folder is not None:
        run = run_by_folder.get(((working_folder or Path()) / model).resolve())
        return [run] if run else []
    here = model.resolve()
    return [run for folder, run in run_by_folder.items() if folder == here or _ends_with(folder, model)]


def _working_folder(evaluation: Evaluation) -> Path | None:
    """Where `evaluate` ran, now, should all have been moved since: its results lie in --output_dir from there. None
    where that is not known, as the option was an absolute path, or the results were moved alone."""
    folder, output_dir = evaluation.folder.resolve(), evaluation.output_dir
    if output_dir is None or Path(output_dir).is_absolute() or not _ends_with(folder, Path(output_dir)):
        return None
    return Path(*folder.parts[: len(folder.parts) - len(Path(output_dir).parts)])


def _ends_with(folder: Path, relative: Path) -> bool:
    return folder.parts[len(folder.parts) - len(relative.parts) :] == relative.parts


def not_evaluated_before(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[Run]:
    """Runs of whose base model, known by its name, there is no evaluation; random weights are no model's."""
    models = {evaluation.model for evaluation in evaluations}
    tuned = [run for run in runs if not run.options.get("pretrain")]
    return [run for run in tuned if run.settings.get("model_name") not in models]


def not_evaluated_after(labelled: Sequence[LabelledEvaluation], runs: Sequence[Run]) -> list[Run]:
    """Runs that no evaluation can be of."""
    evaluated: set[Path] = set()
    for each in labelled:
        evaluated |= {run.folder for run in each.candidates}
    return [run for run in runs if run.folder not in evaluated]
