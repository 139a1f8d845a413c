"""`step-jepa ab`: SFT, Step-JEPA, its shuffled control and its published form on a user's own data, in a given time."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from step_jepa import terminal
from step_jepa.arguments.parsing import from_values
from step_jepa.errors import UserError
from step_jepa.experiments import experiment
from step_jepa.experiments.arguments import ExperimentArguments
from step_jepa.experiments.conclusions import extremes
from step_jepa.experiments.cost import Budget, Cost, OutOfTime, Span, cost_table, timed_costs
from step_jepa.experiments.data import prepare_data
from step_jepa.experiments.executor import importing
from step_jepa.experiments.plan import planned
from step_jepa.experiments.results import ComparisonResult, ExperimentResults
from step_jepa.options import check_bounds, option
from step_jepa.plurals import counted
from step_jepa.process.clock import command_began
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import EXPERIMENT_FILE
from step_jepa.run_files.writing import write_whole

SFT, STEP_JEPA, SHUFFLED, PUBLISHED = "sft", "step_jepa", "step_jepa.shuffled_pairs", "published"
# The recommended one, as recipes/adapted.yaml, and the published one, as recipes/published.yaml
RECOMMENDED = {"objective": "step_jepa", "pairs": "all", "loss": "infonce", "lbd": 0.1}
ARMS = {
    SFT: {"objective": "none"},
    STEP_JEPA: {**RECOMMENDED, "controls": ["shuffled_pairs"]},
    PUBLISHED: {"objective": "step_jepa", "pairs": "first", "loss": "cosine", "lbd": 0.1},
}
RECIPE = {
    "lora": True,
    "num_train_epochs": 1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.05,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "logging_steps": 10,
    "save_strategy": "no",
}
FEWEST_SEEDS, MOST_SEEDS = 3, 20
FEWEST_STEPS, FEWEST_ANSWERS = 20, 50
ANSWERING = 1 / 3  # of a run's time, at most
SPARE = 0.9  # of the budget; a probe is short
PROBING = 1 / 3  # of the budget, at most
CONDITIONS = (SFT, STEP_JEPA, SHUFFLED, PUBLISHED)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds


@dataclass
class AbArguments:
    """Which model on which data, in how much time."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    test_file: str = option(help="The same, of problems that train_file does not have.", is_path=True)
    output_dir: str = option(help="Where everything goes.")
    budget: str = option("2h", help="Time for all of it, such as 90m or 2h.")
    recipe: str | None = option(None, help="YAML file of `train` options, instead of ours with LoRA.", is_path=True)
    max_new_tokens: int = option(256, help="An answer that is longer is cut off here.", least=1)
    json: bool = option(False, help="JSON on stdout instead of rows.")

    def __post_init__(self) -> None:
        check_bounds(self)


def run(args: AbArguments) -> int:
    """Choose steps, seeds and problems by a timed probe, execute the runs, and say in one sentence what came of it.

    All counts, from the start of the command: imports, reading the data, the probe. The budget ends no run that has
    begun; others are dropped. What was chosen lies in experiment.yaml, from which the same call goes on. Raises
    UserError."""
    span = Span(command_began(), seconds_of(args.budget))
    with locked(Path(args.output_dir)):
        return _run_within(args, span)


def _run_within(args: AbArguments, span: Span) -> int:
    folder = Path(args.output_dir)
    config = folder / EXPERIMENT_FILE
    if not config.exists():
        options = fitted_options(args, span)
        write_whole(config, yaml.safe_dump(options, sort_keys=False))
    (arguments,) = from_values(
        "experiment",
        [ExperimentArguments],
        {"config": str(config), "output_dir": args.output_dir, "json": args.json},
    )
    if arguments.name != _name(args):
        raise UserError(f"{config} was made for {arguments.name}: give another --output_dir")
    terminal.note(arguments.note)
    return experiment.run(arguments, may_start=Budget(span.end, len(CONDITIONS)).allows, closing=verdict)


def seconds_of(budget: str) -> float:
    """Of a time such as 90m or 2h. Raises UserError."""
    match = re.fullmatch(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smhd])", budget.strip())
    if not match:
        raise UserError(f"--budget {budget}: give a time such as 90m or 2h")
    return float(match["number"]) * UNITS[match["unit"]]


def _name(args: AbArguments) -> str:
    recipe = f" by {args.recipe}" if args.recipe else ""
    answers = f"answers of at most {args.max_new_tokens} tokens"
    return f"{args.model_name} on {args.train_file}{recipe}, tested on {args.test_file}, {answers}, in {args.budget}"


# What fits into the time


class Extent(NamedTuple):
    """Optimisation steps and answers of each run, and seeds of each condition."""

    steps: int
    answers: int
    seeds: int


def fitted_options(args: AbArguments, budget: Span) -> dict[str, Any]:
    """The options of the experiment that, with all that precedes it, takes about as long. Raises UserError where too
    little fits."""
    probing = Span(budget.start, PROBING * budget.seconds)
    importing()  # while the data is read
    options = _unfitted_options(args)
    arguments = ExperimentArguments(output_dir=args.output_dir, **options)
    folder = Path(args.output_dir)
    plan = planned(arguments, folder)
    _prepare_until(probing.end, arguments, args)
    preparing = time.monotonic() - budget.start
    terminal.note(
        f"timing a few steps and answers of each arm, until {ceil(probing.seconds)} s of {args.budget} are gone"
    )
    try:
        costs = timed_costs(plan.runs, folder, experiment.threads_of_run(arguments), deadline=probing.end)
    except OutOfTime as error:
        raise UserError(
            f"--budget {args.budget}: {error} in a third of it; imports and data took {ceil(preparing)} s: raise it"
        ) from None
    terminal.show_aside(cost_table(costs, plan.runs, workers=1))
    extent = fitted_extent(list(costs.values()), SPARE * budget.left)
    options["recipe"] |= {"max_steps": extent.steps}
    options["evaluate"] |= {"limit": extent.answers}
    note = _what_fits(args.budget, extent, costs[SFT])
    return {**options, "seeds": list(range(extent.seeds)), "note": note}


def _prepare_until(end: float, arguments: ExperimentArguments, args: AbArguments) -> None:
    """The data. Raises UserError where it is not read by then."""

    def check_time() -> None:
        if time.monotonic() > end:
            raise UserError(
                f"--budget {args.budget}: imports and reading the data took more than a third of it: raise it"
            )

    prepare_data(arguments.data, Path(args.output_dir) / "data", check_time)


def _what_fits(budget: str, extent: Extent, cost: Cost) -> str:
    """Chosen for the budget, and out of how much."""
    steps = f"{extent.steps} of {counted(cost.steps, 'optimisation step')}"
    answers = f"{extent.answers} of {counted(cost.answers, 'answer')}"
    return f"Chosen for {budget}: {extent.seeds} seeds, {steps} and {answers} a cell."


def _unfitted_options(args: AbArguments) -> dict[str, Any]:
    train_file, test_file, model_name = map(_from_anywhere, (args.train_file, args.test_file, args.model_name))
    recipe = {"config": _from_anywhere(args.recipe)} if args.recipe else RECIPE
    return {
        "name": _name(args),
        "data": {"train": {"input_file": train_file}, "test": {"input_file": test_file}},
        "recipe": {**recipe, "model_name": model_name},
        "arms": ARMS,
        "primary": STEP_JEPA,
        "evaluate": {"max_new_tokens": args.max_new_tokens},
    }


def _from_anywhere(path: str) -> str:
    """What is there, in a name that experiment.yaml can hold: paths in it are read from its own folder."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def fitted_extent(costs: Sequence[Cost], available: float) -> Extent:
    """What takes so many seconds: the recipe's steps and all answers with as many seeds as fit, 20 at most; where 3 do
    not, 3 with fewer answers and steps. Raises UserError where 20 steps do not fit."""
    whole = sum(cost.seconds for cost in costs)
    steps, answers = costs[0].steps, costs[0].answers  # the same in all conditions
    if FEWEST_SEEDS * whole <= available:
        return Extent(steps, answers, seeds=min(MOST_SEEDS, int(available / whole)))
    start = sum(cost.start for cost in costs)
    step = sum(cost.step for cost in costs)
    answer = sum(cost.answer for cost in costs)
    of_a_seed = available / FEWEST_SEEDS - start
    fitting_answers = min(answers, max(FEWEST_ANSWERS, int(ANSWERING * of_a_seed / answer)))
    fitting_steps = min(steps, int((of_a_seed - fitting_answers * answer) / step))
    if fitting_steps < min(FEWEST_STEPS, steps):
        fewest = min(FEWEST_ANSWERS, answers)
        few_steps = min(FEWEST_STEPS, steps)
        least = FEWEST_SEEDS * (start + few_steps * step + fewest * answer) / SPARE
        raise UserError(
            f"{counted(few_steps, 'step')} and {counted(fewest, 'answer')} of {len(costs)} arms "
            f"take {ceil(least / 60)}m: raise --budget"
        )
    return Extent(fitting_steps, fitting_answers, FEWEST_SEEDS)


# What came of it


def verdict(results: ExperimentResults) -> str:
    """In a few words: the difference, its interval, whether the pairing is what helps, and what more it would take."""
    by_baseline = {
        comparison.difference.baseline: comparison
        for comparison in results.comparisons
        if comparison.difference.condition == STEP_JEPA
    }
    dropped = f" Dropped for want of time: {', '.join(results.about.missing)}." if results.about.missing else ""
    if not by_baseline.keys() >= {SFT, SHUFFLED}:
        return f"Nothing can be compared yet: the same command goes on.{dropped}"
    to_sft, to_shuffled = by_baseline[SFT], by_baseline[SHUFFLED]
    figures = f"{_figures(to_sft)} against SFT, {_figures(to_shuffled)} against shuffled pairs"
    sentence = f"{_what_is_shown(to_sft, to_shuffled)}: {figures}{_what_it_would_take(to_sft)}."
    return " ".join([sentence, *extremes(results.conditions)]) + dropped


def _what_is_shown(to_sft: ComparisonResult, to_shuffled: ComparisonResult) -> str:
    if not to_sft.shows_difference:
        return "That Step-JEPA changes the accuracy is not shown"
    if to_shuffled.shows_difference:
        return "Step-JEPA changes the accuracy, and the pairing of steps has a part in it"
    return "Step-JEPA changes the accuracy, but that it is the pairing of steps is not shown"


def _figures(comparison: ComparisonResult) -> str:
    difference, interval = comparison.difference.difference, comparison.difference.new_problems
    if interval is None:
        return f"{difference:+.3f} (no interval can be made)"
    low, high = interval
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _what_it_would_take(comparison: ComparisonResult) -> str:
    """To show a difference, where none is shown."""
    if comparison.shows_difference or comparison.detectable is None:
        return ""
    seeds, problems = len(comparison.difference.seeds), comparison.difference.problems
    seen = f"; with {seeds} seeds and {problems} problems {comparison.detectable:.3f} could be seen"
    effect = comparison.difference.difference
    if not effect:
        return seen
    if comparison.seeds_needed is not None:
        return f"{seen}, and a difference of {effect:+.3f} would take {comparison.seeds_needed} seeds"
    return f"{seen}, and for a difference of {effect:+.3f} more problems are needed"
