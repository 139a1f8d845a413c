"""What the finished cells of an experiment say: results.json, results.csv and results.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from step_jepa import statistics
from step_jepa.experiments.design import Comparison
from step_jepa.pairing.measures import bootstrap
from step_jepa.run_files import RESULTS_FILE, write_json, write_whole
from step_jepa.statistics import ALPHA, Components, Difference, Interval

EXTREME = 0.02
COSTS = ("steps", "tokens", "flops")
SECONDS = ("train", "answer", "all")


@dataclass(frozen=True)
class Compared:
    """A comparison on a measure; holm is its p-value after Holm over all comparisons of the experiment, detectable and
    seeds_needed follow from its own variances. None where they cannot be had."""

    measure: str
    primary: bool
    found: Difference
    holm: float | None
    detectable: float | None
    seeds_needed: int | None
    sentence: str
    sign_flips: str


def tables(cells: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """measure -> arm -> seed -> a score for each problem."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {measure: {} for measure in measures}
    for cell in cells:
        for measure in measures:
            found[measure].setdefault(cell["arm"], {})[cell["seed"]] = cell["measures"][measure]
    return found


def summarise(
    cells: Sequence[Mapping[str, Any]],
    measures: Sequence[str],
    comparisons: Sequence[Comparison],
    primary: Comparison,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json: `about`, arms (summaries of each measure, mean figures and costs), comparisons, and
    free: measure -> free baseline -> {value, low, high}, beside the primary comparison's baseline."""
    by_measure = tables(cells, measures)
    arms = {
        arm: _arm(arm, [cell for cell in cells if cell["arm"] == arm], by_measure) for arm in by_measure[measures[0]]
    }
    made = [
        (measure, comparison, statistics.difference(by_measure[measure], comparison.arm, comparison.baseline))
        for measure in measures
        for comparison in comparisons
    ]
    adjusted = statistics.holm({f"{measure}: {comparison}": found.p for measure, comparison, found in made})
    compared = [
        _compared(
            measure,
            comparison == primary and measure == measures[0],
            found,
            adjusted[f"{measure}: {comparison}"],
            len(made),
        )
        for measure, comparison, found in made
    ]
    return {
        **about,
        "measures": list(measures),
        "arms": arms,
        "free": _free([cell for cell in cells if cell["arm"] == primary.baseline], measures),
        "comparisons": [asdict(each) for each in compared],
    }


def _arm(arm: str, cells: Sequence[Mapping[str, Any]], by_measure: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: [cell["figures"][name] for cell in cells] for name in cells[0]["figures"]}
    return {
        "measures": {measure: asdict(statistics.summary(table, arm)) for measure, table in by_measure.items()},
        "figures": {name: None if None in values else mean(values) for name, values in figures.items()},
        **{name: mean(cell[name] for cell in cells) for name in COSTS},
        "seconds": {name: mean(cell["seconds"][name] for cell in cells) for name in SECONDS},
    }


def _free(cells: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Most know no model, so that seeds are no source of chance: the interval resamples problems."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for measure in measures:
        of_seeds = [cell["free"].get(measure.removesuffix("_to_base"), {}) for cell in cells]
        for scorer in of_seeds[0] if of_seeds else {}:
            scores = np.mean([each[scorer] for each in of_seeds], 0)
            figure = dict(zip(("value", "low", "high"), bootstrap(scores, np.arange(len(scores)), 42), strict=True))
            found.setdefault(measure, {})[scorer] = figure
    return found


def _compared(measure: str, primary: bool, found: Difference, holm: float | None, comparisons: int) -> Compared:
    varies = found.components is not None and sum(asdict(found.components).values()) > 0
    seen: Components | None = found.components if varies else None
    return Compared(
        measure=measure,
        primary=primary,
        found=found,
        holm=holm,
        detectable=statistics.detectable(seen, len(found.seeds), found.problems, comparisons=comparisons)
        if seen
        else None,
        seeds_needed=statistics.seeds_needed(seen, found.problems, found.difference, comparisons=comparisons)
        if seen and found.difference
        else None,
        sentence=statistics.sentence(found, holm, comparisons),
        sign_flips=statistics.sign_flip_sentence(found),
    )


def arms_table(results: Mapping[str, Any], measure: str) -> list[list[str]]:
    """Means over seeds and problems with their intervals, and what is free beside them; the heads first."""
    rows = [["arm", "seeds", "mean", "sd over seeds", "95 %, new seeds", "95 %, new seeds and problems"]]
    for arm, found in results["arms"].items():
        summary = found["measures"][measure]
        row = [arm, str(summary["seeds"]), f"{summary['mean']:.4f}", _number(summary["sd"])]
        rows.append([*row, *(_interval(summary[name]) for name in ("same_problems", "new_problems"))])
    for scorer, figure in results["free"].get(measure, {}).items():
        interval = _interval((figure["low"], figure["high"])) + " (new problems)"
        rows.append([f"free: {scorer}", "", f"{figure['value']:.4f}", "", "", interval])
    return rows


def costs_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Of every arm the means over seeds of losses, answers and costs; the heads first."""
    rows = [["arm", "LM loss", "answers cut off", "steps", "tokens", "FLOPs", "s of training"]]
    for arm, found in results["arms"].items():
        figures = found["figures"]
        row = [arm, _number(figures["lm_loss"]), f"{figures['truncated']:.1f}", f"{found['steps']:.0f}"]
        rows.append([*row, f"{found['tokens']:.3g}", f"{found['flops']:.3g}", f"{found['seconds']['train']:.0f}"])
    return rows


def comparisons_table(results: Mapping[str, Any], measure: str) -> list[list[str]]:
    """Paired differences; the first interval, p and Holm's p are for new seeds and new problems; the heads first."""
    rows = [["difference", "value", "95 %, new seeds and problems", "p", "p, Holm", "95 %, new seeds", "bootstrap"]]
    rows[0] += ["sign flips", "could be seen", "seeds needed"]
    for each in results["comparisons"]:
        found = each["found"]
        if each["measure"] == measure:
            row = [f"{found['arm']} - {found['baseline']}" + (" (primary)" if each["primary"] else "")]
            row += [f"{found['difference']:+.4f}", _interval(found["new_problems"]), _p(found["p"]), _p(each["holm"])]
            row += [_interval(found["same_problems"]), _interval(found["bootstrap"]), _p(found["sign_flip_p"])]
            rows.append([*row, _number(each["detectable"]), _count(each["seeds_needed"])])
    return rows


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _number(value: float | None) -> str:
    return "-" if value is None or not isfinite(value) else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def write(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """results.json, results.csv (a row for each cell) and results.md."""
    write_json(folder / RESULTS_FILE, results)
    write_whole(folder / "results.csv", _csv(cells, results["measures"]))
    write_whole(folder / "results.md", _markdown(results))


def _csv(cells: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    figures = list(cells[0]["figures"])
    rows.writerow(["arm", "seed", *measures, *figures, *COSTS, *(f"seconds_{name}" for name in SECONDS)])
    for cell in cells:
        scores = [mean(cell["measures"][measure]) for measure in measures]
        seconds = [cell["seconds"][name] for name in SECONDS]
        costs = [cell[name] for name in COSTS]
        rows.writerow(
            [cell["arm"], cell["seed"], *scores, *(cell["figures"][name] for name in figures), *costs, *seconds]
        )
    return text.getvalue()


def _markdown(results: Mapping[str, Any]) -> str:
    parts = [
        f"# {results['name']}",
        f"{results['date']}. `{results['command']}`. {results['machine']}.",
        results["power"],
    ]
    if results["missing"]:
        parts.append(f"Not finished, and left out: {', '.join(results['missing'])}.")
    for measure in results["measures"]:
        parts += [f"## {measure}", _as_markdown(arms_table(results, measure))]
        parts += [_as_markdown(comparisons_table(results, measure))]
    parts += ["## Losses and costs", _as_markdown(costs_table(results))]
    parts += ["## In words", "\n".join(f"- {line}" for line in words(results))]
    parts += ["## How to read it", "\n".join(f"- **{name}**: {meaning}" for name, meaning in NOTES.items())]
    return "\n\n".join(parts) + "\n"


NOTES = {
    "new seeds and problems": "by variance components; p and Holm's p belong to it; decide by it",
    "new seeds": "on these very problems: a paired t over seeds, which says nothing of other problems",
    "bootstrap": "percentiles over seeds and problems, drawn independently; too narrow with few seeds",
    "sign flips": "p of the exact test over seeds, on these very problems; none where so few cannot reject at 5 %",
    "free": "what needs no view, by bootstrap over problems; `embedding` is of the baseline arm's models",
    "p, Holm": "over all comparisons here",
    "could be seen": "the difference that they show with 80 % power, given their variances, as the first by Holm",
    "seeds needed": "for a difference as large as the observed one, which is itself uncertain",
}


def words(results: Mapping[str, Any]) -> list[str]:
    """A sentence for the primary comparison and for every one that shows a difference; how many do not; and one where
    accuracy is at its floor or ceiling."""
    primary = [each for each in results["comparisons"] if each["primary"]]
    others = [each for each in results["comparisons"] if not each["primary"]]
    shown = [each for each in others if shows_difference(each)]
    said = [f"Primary. {each['measure']}, {each['sentence']} {each['sign_flips'].capitalize()}" for each in primary]
    said += [f"{each['measure']}, {each['sentence']}" for each in shown]
    if count := len(others) - len(shown):
        said.append(f"No difference is shown by {count} of the other {len(others)} comparisons; see their intervals.")
    return extremes(results) + said


def shows_difference(comparison: Mapping[str, Any]) -> bool:
    """Whether one of `comparisons` rejects, after Holm."""
    return comparison["holm"] is not None and comparison["holm"] <= ALPHA


def extremes(results: Mapping[str, Any]) -> list[str]:
    """Whether all arms solve next to nothing, or next to everything."""
    scores = [arm["measures"]["accuracy"]["mean"] for arm in results["arms"].values() if "accuracy" in arm["measures"]]
    if scores and max(scores) < EXTREME:
        return [
            "Every arm solves next to nothing, where no difference can be seen: take easier problems, or train longer."
        ]
    if scores and min(scores) > 1 - EXTREME:
        return ["Every arm solves next to everything, where no difference can be seen: take harder problems."]
    return []


def _as_markdown(rows: Sequence[Sequence[str]]) -> str:
    heads, *rest = rows
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [heads, ["---"] * len(heads), *rest])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
