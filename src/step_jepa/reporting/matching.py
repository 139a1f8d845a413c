"""Which evaluation is of which run: by the folder of the model that was evaluated, never by a name alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from step_jepa.reporting.runs import Evaluation, Run

BEFORE, AFTER = "before", "after"


class LabelledEvaluation(NamedTuple):
    """An evaluation, and what it is of.

    label        "before" (of a run's base model), the run or its arm ("after", of a single one), or the model's name
    candidates   the runs whose model it may be of: one where it is known, several where its name fits them all
    """

    label: str
    evaluation: Evaluation
    candidates: list[Run]

    @property
    def is_ambiguous(self) -> bool:
        return len(self.candidates) > 1

    @property
    def run(self) -> Run | None:
        """The one whose model it is of, where that is known."""
        return self.candidates[0] if len(self.candidates) == 1 else None


def label_evaluations(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[LabelledEvaluation]:
    """Those before first, then those of runs, then others."""
    run_by_folder = runs_by_folder(runs)
    base_models = {run.settings.get("model_name") for run in runs}
    labelled = []
    for evaluation in evaluations:
        candidates = runs_of_model(evaluation.model, evaluation.folder, evaluation.output_dir, run_by_folder)
        if len(candidates) == 1:
            label = AFTER if len(runs) == 1 else candidates[0].group
        else:
            label = BEFORE if evaluation.model in base_models else evaluation.model
        labelled.append(LabelledEvaluation(label, evaluation, candidates))
    return sorted(labelled, key=_order)


def _order(labelled: LabelledEvaluation) -> int:
    if labelled.run:
        return 1
    return 0 if labelled.label == BEFORE else 2


def runs_by_folder(runs: Sequence[Run]) -> dict[Path, Run]:
    return {run.folder.resolve(): run for run in runs}


def runs_of_model(model: str, folder: Path, output_dir: str | None, run_by_folder: Mapping[Path, Run]) -> list[Run]:
    """The runs that a model may be of: one where it is known, several where its name fits them all.

    Args:
        model: as a command was given it.
        folder: where the command's results lie now.
        output_dir: where they went, as the command was given it; None where that is not known.
        run_by_folder: of `runs_by_folder`.
    """
    name, working_folder = Path(model), _working_folder(folder.resolve(), output_dir)
    if name.is_absolute() or working_folder is not None:
        run = run_by_folder.get(((working_folder or Path()) / name).resolve())
        return [run] if run else []
    here = name.resolve()
    return [run for folder, run in run_by_folder.items() if folder == here or _ends_with(folder, name)]


def _working_folder(folder: Path, output_dir: str | None) -> Path | None:
    """Where the command ran, now, should all have been moved since: its results lie in --output_dir from there. None
    where that is not known, as the option was an absolute path, or the results were moved alone."""
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
