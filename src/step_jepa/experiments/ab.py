"""`step-jepa ab`: SFT, Step-JEPA and its shuffled control on a user's own data, as much as fits into the time given."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from step_jepa.errors import UserError
from step_jepa.experiments import experiment
from step_jepa.experiments.cost import Cost, probe
from step_jepa.experiments.data import prepare_data
from step_jepa.experiments.plan import ExperimentArguments, planned
from step_jepa.experiments.results import extremes, shows_difference
from step_jepa.parsing import parse
from step_jepa.run_files import EXPERIMENT_FILE, RESULTS_FILE, write_whole

SFT, STEP_JEPA, SHUFFLED = "sft", "step_jepa", "step_jepa.shuffled_pairs"
ARMS = {
    SFT: {"objective": "none"},
    STEP_JEPA: {"objective": "step_jepa", "pairs": "all", "lbd": 0.1, "controls": ["shuffled_pairs"]},
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
ANSWERING = 1 / 3  # of a cell's time, at most
SPARE = 0.9  # of the budget; a probe is short

console = Console(highlight=False, soft_wrap=True)


@dataclass
class AbArguments:
    """Which model on which data, in how much time."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    test_file: str = field(metadata={"help": "The same, of problems that train_file does not have."})
    output_dir: str = field(metadata={"help": "Where everything goes."})
    budget: str = field(default="2h", metadata={"help": "Time for all of it, such as 90m or 2h."})
    recipe: str | None = field(
        default=None, metadata={"help": "YAML file of `train` options, instead of LoRA as in the README."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "An answer that is longer is cut off here."})


def run(args: AbArguments) -> int:
    """Choose steps, seeds and problems by a timed probe, run the cells, and say in one sentence what came of it.

    What was chosen lies in experiment.yaml, from which the same call goes on. Raises UserError."""
    config = Path(args.output_dir, EXPERIMENT_FILE)
    if not config.exists():
        options = fitted(args, seconds(args.budget))
        write_whole(config, yaml.safe_dump(options, sort_keys=False))
    arguments = _read(config, args)
    if arguments.name != _name(args):
        raise UserError(f"{config} was made for {arguments.name}: give another --output_dir")
    code = experiment.run(arguments)
    if code == 0:
        console.print(
            Text(verdict(json.loads(Path(args.output_dir, RESULTS_FILE).read_text(encoding="utf-8"))), style="bold")
        )
    return code


def seconds(budget: str) -> float:
    """Of a time such as 90m or 2h. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", budget.strip())
    if not found:
        raise UserError(f"--budget {budget}: give a time such as 90m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _read(config: Path, args: AbArguments) -> ExperimentArguments:
    words = ["--config", str(config), "--output_dir", args.output_dir]
    return parse("experiment", [ExperimentArguments], words)[0]


def _name(args: AbArguments) -> str:
    recipe = f" by {args.recipe}" if args.recipe else ""
    answers = f"answers of at most {args.max_new_tokens} tokens"
    return f"{args.model_name} on {args.train_file}{recipe}, tested on {args.test_file}, {answers}, in {args.budget}"


def fitted(args: AbArguments, budget: float) -> dict[str, Any]:
    """The options of the experiment that takes about so many seconds, with the probe. Raises UserError where too little
    fits."""
    began = time.perf_counter()
    recipe = {"config": args.recipe} if args.recipe else RECIPE
    options: dict[str, Any] = {
        "name": _name(args),
        "data": {"train": {"input_file": args.train_file}, "test": {"input_file": args.test_file}},
        "recipe": {**recipe, "model_name": args.model_name},
        "arms": ARMS,
        "primary": STEP_JEPA,
        "evaluate": {"max_new_tokens": args.max_new_tokens},
    }
    arguments = ExperimentArguments(output_dir=args.output_dir, **options)
    folder = Path(args.output_dir)
    plan = planned(arguments, folder)
    prepare_data(arguments.data, folder / "data")
    console.print("timing a few steps and answers of each arm")
    costs = probe(plan.cells, folder, experiment.threads(arguments))
    steps, answers, seeds = fit(list(costs.values()), SPARE * (budget - (time.perf_counter() - began)))
    options["recipe"] |= {"max_steps": steps}
    options["evaluate"] |= {"limit": answers}
    return {**options, "seeds": list(range(seeds))}


def fit(costs: Sequence[Cost], available: float) -> tuple[int, int, int]:
    """(steps, answers, seeds) that take so many seconds: the recipe's steps and all answers with as many seeds as fit,
    20 at most; where 3 do not, 3 with fewer answers and steps. Raises UserError where 20 steps do not fit."""
    whole = sum(cost.seconds for cost in costs)
    if FEWEST_SEEDS * whole <= available:
        return costs[0].steps, costs[0].answers, min(MOST_SEEDS, int(available / whole))
    start, step, answer = (sum(getattr(cost, name) for cost in costs) for name in ("start", "step", "answer"))
    each = available / FEWEST_SEEDS - start
    answers = min(costs[0].answers, max(FEWEST_ANSWERS, int(ANSWERING * each / answer)))
    steps = min(costs[0].steps, int((each - answers * answer) / step))
    if steps < min(FEWEST_STEPS, costs[0].steps):
        fewest = min(FEWEST_ANSWERS, costs[0].answers)
        least = FEWEST_SEEDS * (start + FEWEST_STEPS * step + fewest * answer) / SPARE
        raise UserError(
            f"{FEWEST_STEPS} steps and {fewest} answers of {len(costs)} arms take {ceil(least / 60)}m: raise --budget"
        )
    return steps, answers, FEWEST_SEEDS


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence: the difference, its interval, whether the pairing is what helps, and what more it would take."""
    found = {each["found"]["baseline"]: each for each in results["comparisons"] if each["found"]["arm"] == STEP_JEPA}
    to_sft, to_shuffled = found[SFT], found[SHUFFLED]
    helps, pairing = shows_difference(to_sft), shows_difference(to_shuffled)
    if helps:
        said = "Step-JEPA changes the accuracy"
        said += (
            ", and the pairing of steps has a part in it"
            if pairing
            else ", but that it is the pairing of steps is not shown"
        )
    else:
        said = "That Step-JEPA changes the accuracy is not shown"
    said += f": {_figures(to_sft)} against SFT, {_figures(to_shuffled)} against shuffled pairs{_more(to_sft)}."
    return " ".join([said, *extremes(results)])


def _figures(comparison: Mapping[str, Any]) -> str:
    found = comparison["found"]
    interval = found["new_problems"]
    if interval is None:
        return f"{found['difference']:+.3f} (no interval can be made)"
    return f"{found['difference']:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _more(comparison: Mapping[str, Any]) -> str:
    if shows_difference(comparison) or comparison["detectable"] is None:
        return ""
    seeds, found = len(comparison["found"]["seeds"]), comparison["found"]
    said = f"; with {seeds} seeds and {found['problems']} problems {comparison['detectable']:.3f} could be seen"
    if not found["difference"]:
        return said
    if comparison["seeds_needed"] is not None:
        return f"{said}, and a difference of {found['difference']:+.3f} would take {comparison['seeds_needed']} seeds"
    return f"{said}, and for a difference of {found['difference']:+.3f} more problems are needed"
