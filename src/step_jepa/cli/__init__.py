"""The command line: `step-jepa COMMAND --options`, or options from a YAML file with `--config`.

Nothing is imported here that `step-jepa --help` does without: it prints at once.
"""

import sys

HELP = {"-h", "--help", "--help-all"}
# command -> module (and its function, where that is not `run`), its dataclasses of arguments, what it is for
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "prepare": ("data.prepare", ["PrepareArguments"], "raw problems -> conversations with steps"),
    "sample": ("evaluation.sample", ["SampleArguments"], "a teacher's right answers to problems -> training data"),
    "inspect": (
        "inspection.commands:run_menu",
        ["MenuArguments"],
        "walk through examples, stage by stage, in a terminal",
    ),
    "inspect steps": ("inspection.commands:run_steps", ["StepsArguments"], "how a tokenizer sees the steps"),
    "inspect tokens": ("inspection.commands:run_tokens", ["TokensArguments"], "a training row, token by token"),
    "inspect mask": (
        "inspection.commands:run_mask",
        ["MaskArguments"],
        "who sees whom in it, in words or as a picture",
    ),
    "inspect pipeline": ("inspection.commands:run_pipeline", ["PipelineArguments"], "all stages of one example"),
    "audit": ("auditing.audit", ["AuditArguments"], "what the past tells about each step, before training"),
    "train": ("train.command", ["TrainArguments", "adapted.train_config()"], "fine-tune a model"),
    "verify": ("verification.verify", ["VerifyArguments"], "check all of it on your own model, tokenizer and rows"),
    "compare": ("verification.compare", ["CompareArguments"], "both implementations on the same rows"),
    "evaluate": ("evaluation.evaluate", ["EvaluateArguments"], "score a model on problems"),
    "pairing": ("pairing.command", ["PairingArguments"], "does the predicted view know the next step"),
    "surprise": ("surprise.command", ["SurpriseArguments"], "how far each step is from the expected; what that tells"),
    "experiment": ("experiments.experiment", ["ExperimentArguments"], "arms x seeds, and what their differences say"),
    "ab": ("experiments.ab", ["AbArguments"], "does Step-JEPA help your model on your data, in the time you give"),
    "report": ("reporting.report", ["ReportArguments"], "runs and evaluations on one page, to be opened offline"),
    "card": ("cli.card", ["CardArguments"], "a model's README.md with the figures of evaluations; both to a hub"),
    "recipes": ("cli.recipes", ["RecipesArguments"], "list, print or copy recipes and experiments that are shipped"),
    "completion": ("cli.completion", ["CompletionArguments"], "a script for a shell to complete commands and options"),
    "demo": ("cli.demo", ["DemoArguments"], "all of it on SmolLM2 and generated problems, before and after"),
    "benchmark": ("benchmark.command", ["BenchmarkArguments"], "time and memory against plain fine-tuning"),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit code 2 with one line for what the user can mend, 130 after Ctrl-C, 143 after SIGTERM."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in HELP or words == ["inspect", "--help"] or _menu_without_terminal(words):
        try:
            print(_usage(), flush=True)
        except BrokenPipeError:  # the reader has seen enough
            sys.stderr.close()  # where Python would complain of it at its end
        sys.exit(0)
    from step_jepa.cli.dispatch import run_command

    sys.exit(run_command(words, COMMANDS, alone=argv is None))


def _usage() -> str:
    lines = [f"  {command:17} {purpose}" for command, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: step-jepa COMMAND [--config FILE.yaml] [--option value ...]\n",
            *lines,
            "\nstep-jepa COMMAND --help lists its options; step-jepa inspect asks for its own; step-jepa --version.",
            "With every command: --import FILE.py (or MODULE) loads objectives and the like of your own first, --quiet "
            "shows figures and warnings alone, --debug shows where an error arose.",
        ]
    )


def _menu_without_terminal(argv: list[str]) -> bool:
    return argv == ["inspect"] and not (sys.stdin.isatty() and sys.stdout.isatty())
