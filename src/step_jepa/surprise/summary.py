"""What the scores of given answers tell, ready for JSON."""

from typing import Any

import numpy as np

from step_jepa.surprise import answers as told_apart
from step_jepa.surprise import localisation
from step_jepa.surprise.given import GivenAnswers
from step_jepa.surprise.scores import StepScores, of_answers


def summarise(steps: StepScores, answers: GivenAnswers, seed: int) -> dict[str, Any]:
    """Figures are {value, low, high, n} with a 95 % interval over problems.

    answers, problems, steps, predicted
                 how many; predicted are the steps that have a latent surprise
    means        mean of each score over steps
    right_against_wrong, beyond_free
                 see `answers`; empty where no answer is known to be right, or none to be wrong
    located, located_beyond_free, chance, errors, left_out
                 see `localisation`; of the answers whose first wrong step is known
    """
    return {
        "answers": len(answers.records),
        "problems": len(np.unique(answers.problem)),
        "steps": len(steps.step),
        "predicted": int(np.isfinite(steps.scores["surprise"]).sum()),
        "means": {name: _mean(values) for name, values in steps.scores.items()},
        **_of_answers(steps, answers, seed),
        **_of_steps(steps, answers, seed),
    }


def _mean(values: Any) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _of_answers(steps: StepScores, answers: GivenAnswers, seed: int) -> dict[str, Any]:
    known = np.isfinite(answers.wrong)
    scores = {name: values[known] for name, values in of_answers(steps).items()}
    judged = told_apart.Judged(scores, answers.wrong[known] == 1, answers.problem[known])
    return {
        "right_against_wrong": told_apart.right_against_wrong(judged, seed),
        "beyond_free": told_apart.beyond_free(judged, seed),
    }


def _of_steps(steps: StepScores, answers: GivenAnswers, seed: int) -> dict[str, Any]:
    labelled = localisation.labelled(steps, list(steps.scores), answers.first_error, answers.problem)
    errors = int(labelled.erroneous.sum())
    return {
        "errors": errors,
        "left_out": labelled.left_out,
        "chance": localisation.chance(labelled),
        "located": localisation.localisation(labelled, seed) if errors else {},
        "located_beyond_free": localisation.beyond_free(labelled, seed) if errors else {},
    }
