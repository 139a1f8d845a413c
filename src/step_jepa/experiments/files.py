"""The results of an experiment as files: results.json, results.csv and results.md."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean

from step_jepa import markdown
from step_jepa.experiments.conclusions import conclusions
from step_jepa.experiments.results import ExperimentResults
from step_jepa.experiments.run import RunResult, Seconds
from step_jepa.experiments.tables import comparisons_table, conditions_table, costs_table
from step_jepa.run_files.names import RESULTS_CSV, RESULTS_FILE, RESULTS_TEXT
from step_jepa.run_files.writing import write_json, write_whole

NOTES = {
    "new seeds and problems": "by variance components; p and Holm's p belong to it; decide by it",
    "new seeds": "on these very problems: a paired t over seeds, which says nothing of other problems",
    "bootstrap": "percentiles over seeds and problems, drawn independently; too narrow with few seeds",
    "sign flips": "p of the exact test over seeds, on these very problems; none where so few cannot reject at 5 %",
    "free": "what needs no view, by bootstrap over problems; `embedding` is of the baseline arm's models",
    "p, Holm": "over all comparisons here but the primary one, which was named beforehand and stands alone",
    "could be seen": "the difference that they show with 80 % power, given their variances, as the first by Holm; the "
    "primary one alone",
    "seeds needed": "for a difference as large as the observed one, which is itself uncertain",
}


def write_results(results: ExperimentResults, runs: Sequence[RunResult], folder: Path) -> None:
    """results.json, results.csv (a row for each run) and results.md."""
    write_json(folder / RESULTS_FILE, results.to_json())
    write_whole(folder / RESULTS_CSV, _csv(runs, results.measures))
    write_whole(folder / RESULTS_TEXT, _markdown(results))


def _csv(runs: Sequence[RunResult], measures: Sequence[str]) -> str:
    text = io.StringIO()
    figures = list(runs[0].figures)
    seconds = [each.name for each in fields(Seconds)]
    heads = ["arm", "seed", *measures, *figures, "steps", "tokens", "flops", *(f"seconds_{name}" for name in seconds)]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(heads)
    for run in runs:
        scores = [mean(run.measures[measure]) for measure in measures]
        costs = [run.steps, run.tokens, run.flops, run.seconds.train, run.seconds.answer, run.seconds.all]
        rows.writerow([run.condition, run.seed, *scores, *(run.figures[name] for name in figures), *costs])
    return text.getvalue()


def _markdown(results: ExperimentResults) -> str:
    about = results.about
    parts = [f"# {about.name}", f"{about.date}. `{about.command}`. {about.machine}.", about.power]
    if about.missing:
        parts.append(f"Not finished, and left out: {', '.join(about.missing)}.")
    for measure in results.measures:
        parts += [f"## {measure}", markdown.table(conditions_table(results, measure))]
        parts += [markdown.table(comparisons_table(results, measure))]
    parts += ["## Losses and costs", markdown.table(costs_table(results))]
    parts += ["## In words", markdown.bullets([*conclusions(results), *about.closing])]
    notes = [f"**{name}**: {meaning}" for name, meaning in NOTES.items()]
    parts += ["## How to read it", markdown.bullets(notes)]
    return "\n\n".join(parts) + "\n"
