"""`step-jepa report`: runs and evaluations on one page that holds all it needs, to be opened offline."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.options import option
from step_jepa.plots import COLOURS, InlineFigures
from step_jepa.plurals import counted
from step_jepa.reporting.answer import how, sentences, title
from step_jepa.reporting.comparisons import experiment_section
from step_jepa.reporting.curves import curve_sections
from step_jepa.reporting.matching import label_evaluations
from step_jepa.reporting.missing import lacks
from step_jepa.reporting.retrieval import retrievals
from step_jepa.reporting.runs import ReportData, Run, read_folders
from step_jepa.reporting.scores import answers_side_by_side, figure_plots, figures_table, scored
from step_jepa.reporting.settings import all_settings, main_settings
from step_jepa.reporting.trackers import Tracker, check_tracked, publish
from step_jepa.reporting.view_maps import views_section
from step_jepa.run_files.writing import write_whole

MOST_IN_HEAD = 6  # evaluations
MOST_EXPLORED = 6  # runs whose rows the explorer holds


@dataclass
class ReportArguments:
    """What the page is about, and where it goes."""

    runs: list[str] = option(
        help="Folders that train, evaluate, pairing and experiment wrote into, or one that holds such.",
        is_path=True,
    )
    output: str = option(help="The page, an .html file.")
    overwrite: bool = option(False, help="Replace the page that is there.")
    report_to: list[Tracker] = option(
        default_factory=list,
        help="Trackers to add the closing figures and the page to, where they have these runs (train --report_to).",
    )


def run(args: ReportArguments) -> None:
    """Write the page and say where it lies. No model is loaded. Raises UserError."""
    output = Path(args.output)
    _check_output(output, overwrite=args.overwrite)
    data = read_folders(args.runs)
    _say_what_was_read(data)
    check_tracked(data.runs, args.report_to)
    page = render(data)
    write_whole(output, page)
    terminal.note(f"the report lies in {output} ({len(page.encode()) / 2**20:.1f} MB): open it in a browser")
    for line in publish(data.runs, data.evaluations, output, args.report_to):
        terminal.note(line)


def _say_what_was_read(data: ReportData) -> None:
    found = {
        "run": len(data.runs),
        "evaluation": len(data.evaluations),
        "measured pairing": len(data.pairings),
        "experiment": len(data.experiments),
    }
    terminal.note(", ".join(counted(number, noun) for noun, number in found.items() if number))


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output} is a folder: give --output the name of a file")
    if output.suffix.lower() != ".html":
        raise UserError(f"{output}: the page is written as .html: give --output a name that ends so")
    if output.exists() and not overwrite:
        raise UserError(f"{output} is there already: give another --output, or --overwrite")


def render(data: ReportData) -> str:
    """The page. Whatever comes from data or models is escaped by the template."""
    environment = Environment(
        loader=PackageLoader("step_jepa.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    figures = InlineFigures()
    labelled = label_evaluations(data.evaluations, data.runs)
    evaluations, found = scored(labelled), retrievals(data)
    shown_runs = _first_of_groups(data)
    rows = explored_rows(shown_runs)
    return environment.get_template("report.html").render(
        title=title(data),
        how=how(data.runs),
        sentences=sentences(evaluations, found, data.runs),
        experiments=[experiment_section(experiment) for experiment in data.experiments],
        groups=data.groups,
        colours=COLOURS,
        few=len(evaluations) <= MOST_IN_HEAD,
        figure_plots=figure_plots(evaluations) if not data.experiments else [],
        figures_table=figures_table(evaluations) if evaluations else [],
        retrievals=found,
        answers=answers_side_by_side(evaluations),
        curves=curve_sections(data.runs, data.groups, figures),
        views=views_section(evaluations, figures),
        runs=shown_runs,
        main_settings=main_settings(shown_runs),
        all_settings=all_settings(shown_runs),
        rows=rows,
        lacks=lacks(data, labelled),
        scripts=[*(["compare.js"] if len(data.groups) > 1 else []), *(["explorer.js"] if rows else [])],
    )


def _first_of_groups(data: ReportData) -> list[Run]:
    """Seeds of an arm differ in nothing that is worth a column."""
    first: dict[str, Run] = {}
    for run in data.runs:
        first.setdefault(run.group, run)
    return list(first.values())


def explored_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the explorer shows: rows.json of the first runs that differ in it, those with pairs before others."""
    explored: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: not _has_pairs(run)):
        if run.rows and len(explored) < MOST_EXPLORED:
            explored.setdefault(json.dumps(run.rows), {"run": run.group, **run.rows})
    return list(explored.values())


def _has_pairs(run: Run) -> bool:
    rows = run.rows["rows"] if run.rows else []
    return any(row.get("pairs") for row in rows)
