"""`step-jepa demo`: the whole way on a small real model, by the commands that a user would type, and what it did."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from step_jepa import train
from step_jepa.adapted import StepJEPAConfig
from step_jepa.data import prepare
from step_jepa.data.sources import BUILTIN, GSM_SYMBOLIC
from step_jepa.errors import UserError
from step_jepa.evaluation import evaluate
from step_jepa.parsing import parse
from step_jepa.reporting import report
from step_jepa.run_files import SUMMARY_FILE

console = Console(highlight=False)
FIGURES = {
    "held-out LM loss": "lm_loss",
    "held-out JEPA loss": "jepa_loss",
    "cosine, paired views": "cosine_paired",
    "cosine, unpaired views": "cosine_unpaired",
}


@dataclass
class DemoArguments:
    """How large, and where."""

    output_dir: str = field(metadata={"help": "Where everything goes."})
    recipe: str = field(default="recipes/demo.yaml", metadata={"help": "Recipe of the training run."})
    model_name: str = field(default="smollm2", metadata={"help": "Model to fine-tune; smollm2 is in the demo extra."})
    train_problems: int = field(default=96, metadata={"help": "Generated problems to train on."})
    test_problems: int = field(default=40, metadata={"help": "Held-out problems, of other templates."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest answer."})
    max_steps: int | None = field(default=None, metadata={"help": "Optimisation steps, instead of the recipe's."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier demo wrote into output_dir."})


def run(args: DemoArguments) -> None:
    """Prepare, evaluate, train, evaluate, report; then a table of before and after. Raises UserError."""
    folder, again = Path(args.output_dir), ["--overwrite"] if args.overwrite else []
    if not Path(args.recipe).exists():
        raise UserError(f"{args.recipe} is not here: run the demo in the project's folder, or give --recipe")
    for name, count in (("train", args.train_problems), ("test", args.test_problems)):
        options = [
            "--input_file",
            BUILTIN + GSM_SYMBOLIC,
            "--output_file",
            f"{folder}/{name}.jsonl",
            "--templates",
            name,
        ]
        _call(prepare, "prepare", [prepare.PrepareArguments], [*options, "--max_examples", str(count), *again])
    scoring = ["--test_file", f"{folder}/test.jsonl", "--max_new_tokens", str(args.max_new_tokens), *again]
    before = ["--model_name", args.model_name, "--output_dir", f"{folder}/before"]
    after = ["--model_name", f"{folder}/model", "--output_dir", f"{folder}/after"]
    recipe = ["--config", args.recipe, "--model_name", args.model_name, "--train_file", f"{folder}/train.jsonl"]
    steps = ["--max_steps", str(args.max_steps)] if args.max_steps else []
    _call(evaluate, "evaluate", [evaluate.EvaluateArguments], [*before, *scoring])
    options = [*recipe, "--eval_file", f"{folder}/test.jsonl", "--output_dir", f"{folder}/model", *steps, *again]
    _call(train, "train", [train.TrainArguments, StepJEPAConfig], options)
    _call(evaluate, "evaluate", [evaluate.EvaluateArguments], [*after, *scoring])
    page = f"{folder}/report.html"
    _call(report, "report", [report.ReportArguments], [str(folder), "--output", page, *again])
    console.print(_table(folder))
    console.print(
        f"{folder}/train.jsonl, test.jsonl: the problems; before/, after/: predictions.jsonl, summary.json and views;\n"
        f"model/: the fine-tuned model, which plain transformers loads, and trainer_state.json with the curves;\n"
        f"{page}: all of it on one page"
    )


def _call(module: Any, command: str, types: list[Any], options: list[str]) -> None:
    console.rule(f"[bold]step-jepa {' '.join([command, *options])}", align="left")
    module.run(*parse(command, types, options))


def _table(folder: Path) -> Table:
    before, after = (json.loads((folder / name / SUMMARY_FILE).read_text()) for name in ("before", "after"))
    history = json.loads((folder / "model" / "trainer_state.json").read_text())["log_history"]
    seconds = next(1 / entry["train_steps_per_second"] for entry in history if "train_steps_per_second" in entry)
    table = Table(title=f"{after['n']} held-out problems, templates that training never saw")
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
