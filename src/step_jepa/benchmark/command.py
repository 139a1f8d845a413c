"""`step-jepa benchmark`: time and memory against plain fine-tuning.

Without more, forward and backward of every variant (passes.py). `--against trl` and `--lengths` measure whole training
steps (steps.py) and the memory that they need (memory.py).
"""

from typing import Any

from step_jepa import plots, terminal
from step_jepa.benchmark.arguments import BenchmarkArguments
from step_jepa.benchmark.memory import peak_mb
from step_jepa.benchmark.passes import measure_passes
from step_jepa.benchmark.report import picture, print_passes, print_steps
from step_jepa.benchmark.steps import Bench, arms_of, figures, measure


def run(args: BenchmarkArguments) -> None:
    """Measure and print. Raises UserError."""
    if args.against == "sft" and args.lengths is None:
        result = measure_passes(args)
        _give(args, result, lambda: print_passes(result))
        return
    names = arms_of(args)
    with Bench(args) as bench:
        if args.lengths is None:
            steps = _measured(bench, names, None)
            _give(args, steps, lambda: print_steps(steps, names[0], None))
            return
        results = {length: _measured(bench, names, length) for length in args.row_lengths}
    if args.output is not None:
        plots.save(picture(results), args.output)
    _give(args, results, lambda: _print_lengths(results, names[0]))


def _measured(bench: Bench, names: list[str], length: int | None) -> dict[str, dict[str, Any]]:
    """The figures of each arm."""
    measurements = measure(bench, names, length)
    result = {name: figures(measurements, name, names[0]) for name in names}
    if bench.args.memory and bench.device.type == "cpu":
        for name in names:
            result[name]["peak_mb"] = peak_mb(bench.args, name, length)
    return result


def _print_lengths(results: dict[int, dict[str, dict[str, Any]]], baseline: str) -> None:
    for length, result in results.items():
        print_steps(result, baseline, length)


def _give(args: BenchmarkArguments, result: dict[Any, Any], print_table: Any) -> None:
    if args.json:
        terminal.show_json(result)
    else:
        print_table()
    where = f"the picture lies in {args.output}" if args.output else ""
    terminal.ends(where, terminal.training(args.model_name, args.train_file or "TRAIN.jsonl"))
