"""`step-jepa report`: runs and evaluations on one page that holds all it needs, to be opened offline."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from step_jepa.errors import UserError
from step_jepa.options import option
from step_jepa.plots import InlineFigures
from step_jepa.reporting.comparisons import experiment_section
from step_jepa.reporting.curves import QUANTITIES, curve_section
from step_jepa.reporting.matching import label_evaluations, not_evaluated_after, not_evaluated_before
from step_jepa.reporting.runs import ReportData, read_folders
from step_jepa.reporting.scores import evaluation_table, pairing_tables, samples
from step_jepa.reporting.settings import all_settings, main_settings
from step_jepa.reporting.view_maps import views_section
from step_jepa.run_files import write_whole

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class ReportArguments:
    """What the page is about, and where it goes."""

    runs: list[str] = option(
        help="Folders that train, evaluate, pairing and experiment wrote into, or one that holds such.", is_path=True
    )
    output: str = option(help="The page, an .html file.")
    overwrite: bool = option(False, help="Replace the page that is there.")


def run(args: ReportArguments) -> None:
    """Write the page and say where it lies. No model is loaded. Raises UserError."""
    output = Path(args.output)
    _check_output(output, overwrite=args.overwrite)
    page = render(read_folders(args.runs))
    write_whole(output, page)
    console.print(f"the report lies in {output} ({len(page.encode()) / 2**20:.1f} MB): open it in a browser")


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
    evaluations = label_evaluations(data.evaluations, data.runs)
    return environment.get_template("report.html").render(
        runs=data.runs,
        evaluations=evaluations,
        evaluation_table=evaluation_table(evaluations),
        pairing_tables=pairing_tables(data.pairings),
        experiments=[experiment_section(folder, results, figures) for folder, results in data.experiments.items()],
        curves=[curve_section(quantity, data.runs, figures) for quantity in QUANTITIES] if data.runs else [],
        views=[views_section(labelled, figures) for labelled in evaluations],
        samples=[samples(labelled) for labelled in evaluations],
        main_settings=main_settings(data.runs),
        all_settings=all_settings(data.runs),
        rows=[{"run": run.name, **run.rows} for run in data.runs if run.rows],
        without_before=not_evaluated_before(data.evaluations, data.runs),
        without_after=not_evaluated_after(evaluations, data.runs),
    )
