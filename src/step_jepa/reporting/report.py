"""`step-jepa report`: runs and evaluations on one page that holds all it needs, to be opened offline."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.console import Console

from step_jepa import plots
from step_jepa.errors import UserError
from step_jepa.experiments.results import (
    NOTES,
    ExperimentResults,
    comparisons_table,
    conclusions,
    conditions_table,
    costs_table,
)
from step_jepa.reporting import curves, forest, view_maps
from step_jepa.reporting.findings import Evaluation, Findings, Run, find
from step_jepa.run_files import write_whole

SAMPLES = 3  # right ones and wrong ones, of each evaluation
FIGURES = {"LM loss": "lm_loss", "JEPA loss": "jepa_loss", "cosine, paired": "cosine_paired"}
FIGURES |= {"cosine, unpaired": "cosine_unpaired"}
UNKNOWN = "unknown"

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class ReportArguments:
    """What the page is about, and where it goes."""

    runs: list[str] = field(
        metadata={"help": "Folders that train, evaluate, pairing and experiment wrote into, or one that holds such."}
    )
    output: str = field(metadata={"help": "The page, an .html file."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the page that is there."})


def run(args: ReportArguments) -> None:
    """Write the page and say where it lies. No model is loaded. Raises UserError."""
    output = Path(args.output)
    if output.is_dir():
        raise UserError(f"{output} is a folder: give --output the name of a file")
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} is there already: give another --output, or --overwrite")
    page = render(find(args.runs))
    write_whole(output, page)
    console.print(f"the report lies in {output} ({len(page.encode()) / 2**20:.1f} MB): open it in a browser")


def render(found: Findings) -> str:
    """The page. Whatever comes from data or models is escaped by the template."""
    environment = Environment(
        loader=PackageLoader("step_jepa.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    inline = _Inline()
    return environment.get_template("report.html").render(
        runs=found.runs,
        roles=found.roles(),
        pairings=_pairings(found),
        experiments=[_experiment(folder, results, inline) for folder, results in found.experiments.items()],
        figures=_evaluation_table(found),
        curves=[_curve(quantity, found.runs, inline) for quantity in curves.QUANTITIES] if found.runs else [],
        views=[_views(role, evaluation, inline) for role, evaluation in found.roles()],
        samples=[(role, *_samples(evaluation)) for role, evaluation in found.roles()],
        settings=_compared([_settings(each) for each in found.runs]),
        options=_compared([_all_options(each) for each in found.runs]),
        rows=[{"run": each.name, **each.rows} for each in found.runs if each.rows],
        without_before=[each for each in found.runs if not _before(found, each)],
        without_after=[each for each in found.runs if not _after(found, each)],
    )


class _Inline:
    """Figures -> SVG text; the ids within each are its own, as they share one page."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, figure: Figure, description: str) -> str:
        self.count += 1
        svg = plots.inline(figure, description)
        return re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>f{self.count}-", svg)


def _before(found: Findings, run: Run) -> bool:
    return any(each.model == run.settings.get("model_name") for each in found.evaluations)


def _after(found: Findings, run: Run) -> bool:
    return any(found.trained(each) is run for each in found.evaluations)


def _curve(quantity: curves.Quantity, runs: Sequence[Run], inline: _Inline) -> dict[str, Any]:
    shown = curves.lines(quantity, runs)
    description = f"{quantity.title} by optimisation step: {'; '.join(line.name for line in shown)}"
    return {
        "quantity": quantity,
        "lines": shown,
        "svg": inline(curves.chart(shown), description) if shown else None,
        "table": curves.table(shown),
    }


# Experiments


def _experiment(folder: str, results: Mapping[str, Any], inline: _Inline) -> dict[str, Any]:
    """Of each measure the two tables of results.md, and a picture of the differences."""
    typed = ExperimentResults.from_json(results)
    measures = []
    for measure in results["measures"]:
        made = [each for each in results["comparisons"] if each["measure"] == measure]
        description = f"differences of {measure} between arms, with their intervals"
        tables = conditions_table(typed, measure), comparisons_table(typed, measure)
        measures.append((measure, *tables, inline(forest.chart(made), description) if made else None))
    about = {"measures": measures, "costs": costs_table(typed), "words": conclusions(typed), "notes": NOTES}
    return {"folder": folder, "results": results, **about}


# Evaluations


def _evaluation_table(found: Findings) -> list[list[str]]:
    """Of every figure its name, and its value in each evaluation."""
    summaries = [evaluation.summary for _, evaluation in found.roles()]
    rows = [[f"held-out {title}", *(_number(each.get(key)) for each in summaries)] for title, key in FIGURES.items()]
    counts = {"answers cut off": "truncated", "answers without a final answer": "no_answer"}
    counts |= {"answers that go on too long": "over_generated"}
    return [
        ["test file", *(each["settings"]["test_file"] for each in summaries)],
        ["problems", *(str(each["n"]) for each in summaries)],
        ["accuracy", *(_accuracy(each) for each in summaries)],
        *rows,
        ["margin, paired - unpaired", *(_number(_margin(each)) for each in summaries)],
        *([title, *(str(each.get(key, "-")) for each in summaries)] for title, key in counts.items()),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _margin(summary: Mapping[str, Any]) -> float | None:
    paired, unpaired = summary.get("cosine_paired"), summary.get("cosine_unpaired")
    return None if paired is None or unpaired is None else paired - unpaired


def _accuracy(summary: Mapping[str, Any]) -> str:
    low, high = summary["ci95"]
    return f"{summary['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def _samples(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first right and the first wrong answers."""
    right, wrong = ([row for row in evaluation.predictions if row["correct"] is kind] for kind in (True, False))
    return right[:SAMPLES], wrong[:SAMPLES]


def _pairings(found: Findings) -> list[tuple[str, list[list[str]]]]:
    """(model and folder, rows of measure, scorer, value and interval, chance, pairs)."""
    return [
        (f"{model} ({folder})", [_measure(*each) for each in _scored(result)])
        for folder, pairing in found.pairings.items()
        for model, result in pairing["models"].items()
    ]


def _scored(result: Mapping[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    return ((measure, scorer, figure) for measure, own in result["measures"].items() for scorer, figure in own.items())


def _measure(measure: str, scorer: str, figure: Mapping[str, Any]) -> list[str]:
    value = "-" if figure["value"] is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    return [
        measure.replace("_", " "),
        scorer,
        value,
        f"{figure['chance']:.3f}" if "chance" in figure else "",
        str(figure["n"]),
    ]


# Views


def _views(role: str, evaluation: Evaluation, inline: _Inline) -> dict[str, Any]:
    """The maps of an evaluation's views and the tables beside them; a sentence for each that there is not."""
    if evaluation.views is None:
        return {"role": role, "folder": evaluation.folder, "views": None}
    some = view_maps.drawn(evaluation.views)
    steps, within, across = view_maps.alike(evaluation.views)
    count = len(evaluation.views["step"])
    return {
        "role": role,
        "views": {"pairs": count, "drawn": len(some["step"])},
        "maps": list(_maps(role, some, inline)),
        "steps": steps,
        "matrices": [("within a problem", _cells(within)), ("across problems", _cells(across))],
    }


def _maps(role: str, some: view_maps.Views, inline: _Inline) -> Iterable[dict[str, Any]]:
    points = 2 * len(some["step"])
    if reason := view_maps.unmappable(some):
        yield {"method": "PCA and t-SNE", "svg": None, "why_not": reason}
        return
    places, share = view_maps.pca(some)
    yield _map(role, "PCA", f"The two axes hold {share:.0%} of the variance.", places, some, inline)
    if points < view_maps.FEWEST:
        yield {
            "method": "t-SNE",
            "svg": None,
            "why_not": f"{points} views are too few for a t-SNE: evaluate on more problems",
        }
        return
    yield _map(role, "t-SNE", "How far groups lie apart means nothing.", view_maps.tsne(some), some, inline)


def _map(
    role: str, method: str, note: str, places: np.ndarray, some: view_maps.Views, inline: _Inline
) -> dict[str, Any]:
    steps = some["step"]
    description = f"{method} of {len(steps)} predicted and {len(steps)} target views, {role}"
    return {
        "method": method,
        "note": note,
        "svg": inline(view_maps.chart(places, steps), description),
        "centres": [_centres(number, steps, places) for number in np.unique(steps)],
    }


def _centres(number: int, steps: np.ndarray, places: np.ndarray) -> list[str]:
    """Of the views of one step: its index, how many pairs, the mean place of the predicted and of the target ones."""
    means = [side[steps == number].mean(0) for side in np.split(places, 2)]
    return [str(number), str((steps == number).sum()), *(f"{x:.2f}, {y:.2f}" for x, y in means)]


def _cells(matrix: np.ndarray) -> list[list[tuple[str, int]]]:
    """Of each cosine its text, and the percentage by which its cell is shaded."""
    return [
        [("-", 0) if np.isnan(value) else (f"{value:.2f}", round(60 * max(value, 0))) for value in row]
        for row in matrix
    ]


# Settings


def _settings(run: Run) -> dict[str, str]:
    """What a reader asks first, in words; run.json of an older version is not there."""
    asked = ("objective", "control", "loss", "lbd", "gamma", "predictors", "pairs")
    options = {name: _word(run.options[name]) for name in asked if name in run.options}
    told = _told(run.settings) if run.settings else {}
    return told | options | {"steps done": str(run.state["global_step"])}


def _told(settings: Mapping[str, Any]) -> dict[str, str]:
    lora = settings["lora"]
    return {
        "base model": settings["model_name"],
        "training file": settings["train_file"],
        "held-out file": settings["eval_file"] or "none",
        "implementation": settings["approach"],
        "adapter": f"LoRA, r {lora['r']}, alpha {lora['lora_alpha']}" if lora else "none: all weights are trained",
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler_type']}",
        "rows per step": str(_batch(settings)),
        "seed": str(settings["seed"]),
        "device, dtype": f"{settings['device']}, {settings['dtype']}",
        "versions": _word(settings["versions"]),
        **{f"data: {name.replace('_', ' ')}": str(count) for name, count in settings["data"].items()},
    }


def _batch(settings: Mapping[str, Any]) -> int:
    return settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * settings["world_size"]


def _all_options(run: Run) -> dict[str, str]:
    return {name: _word(value) for name, value in {**run.options, **run.settings}.items()}


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(each)}" for name, each in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _compared(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, whether runs differ) of everything that any of them says."""
    names = dict.fromkeys(name for each in runs for name in each)
    rows = [(name, [each.get(name, UNKNOWN) for each in runs]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]
