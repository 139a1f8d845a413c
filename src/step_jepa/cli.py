"""The command line: `step-jepa COMMAND --options`, or options from a YAML file with `--config`."""

import logging
import os
import sys
import traceback
import warnings
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from typing import Any

from step_jepa import ranks
from step_jepa.errors import Interrupted, UserError

OUR_BUG, RANK_LOST = 1, 3  # exit codes
LOST = "start again with --resume_from_checkpoint True, which goes on from the last checkpoint"

_FIRST = os.environ.get("RANK", "0") == "0"

HELP = ("-h", "--help", "--help-all")
# command -> module (and its function, where that is not `run`), its dataclasses of arguments, what it is for
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "prepare": ("data.prepare", ["PrepareArguments"], "raw problems -> conversations with steps"),
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
    "train": ("train", ["TrainArguments", "adapted.train_config()"], "fine-tune a model"),
    "verify": ("verification.verify", ["VerifyArguments"], "check all of it on your own model, tokenizer and rows"),
    "compare": ("verification.compare", ["CompareArguments"], "both implementations on the same rows"),
    "evaluate": ("evaluation.evaluate", ["EvaluateArguments"], "score a model on problems"),
    "pairing": ("pairing.command", ["PairingArguments"], "does the predicted view know the next step"),
    "experiment": ("experiments.experiment", ["ExperimentArguments"], "arms x seeds, and what their differences say"),
    "ab": ("experiments.ab", ["AbArguments"], "does Step-JEPA help your model on your data, in the time you give"),
    "report": ("reporting.report", ["ReportArguments"], "runs and evaluations on one page, to be opened offline"),
    "recipes": (
        "recipes",
        ["RecipesArguments"],
        "list, print or copy recipes and experiments that are shipped",
    ),
    "demo": ("demo", ["DemoArguments"], "all of it on SmolLM2 and generated problems, before and after"),
    "benchmark": ("benchmark.command", ["BenchmarkArguments"], "time and memory against plain fine-tuning"),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit code 2 with one line for what the user can mend, 130 after Ctrl-C, 143 after SIGTERM
    or SIGUSR1. Of several processes, the first one that fails says why."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's, about itself
    if _FIRST:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("step_jepa").setLevel(logging.INFO)
    debug = False
    try:
        argv, modules = _without_imports(sys.argv[1:] if argv is None else argv)
        argv, debug = _without_debug(argv)
        code = dispatch(argv, modules)
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        code = _exit_code(error)
        if code == OUR_BUG and not ranks.several():
            raise
        _trace(debug or code == OUR_BUG)
        _say(_reason(error))
    if ranks.several() and code != 0:
        ranks.end(code)
    sys.exit(code)


def _exit_code(error: Exception) -> int:
    if isinstance(error, UserError):
        return error.exit_code
    if ranks.is_lost(error):
        return RANK_LOST
    return 2 if isinstance(error, OSError) else OUR_BUG


def _reason(error: Exception) -> str:
    """In one line, with the rank where there are several and it is not what all of them were told."""
    if isinstance(error, Interrupted):
        return str(error)
    if isinstance(error, UserError):
        return f"{ranks.named()}{error}"
    words = str(error).strip().partition("\n")[0]
    if ranks.is_lost(error):
        return f"{ranks.named()}another rank is gone, killed or out of reach ({words:.80}): {LOST}"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return f"{ranks.named()}{error.strerror or error}: {error.filename or 'give another place'}"
    return f"{ranks.named()}{type(error).__name__}: {words}"


def _trace(shown: bool) -> None:
    if shown and ranks.speaks():
        traceback.print_exc()


def _say(message: str) -> None:
    """One line on stderr, from one of several processes."""
    if ranks.speaks():
        print(f"step-jepa: {message}", file=sys.stderr)


def dispatch(argv: list[str], modules: list[str]) -> int:
    """Run the command that `argv` names, the modules of --import loaded; its exit code."""
    if not argv or argv[0] in HELP or argv == ["inspect", "--help"] or _menu_without_terminal(argv):
        print(_usage())
        return 0
    length = 2 if argv[0] == "inspect" and argv[1:] and not argv[1].startswith("-") else 1
    command, words = " ".join(argv[:length]), argv[length:]
    if command not in COMMANDS:
        meant = "".join(f"did you mean {other}? " for other in get_close_matches(command, COMMANDS, n=1))
        raise UserError(f"no command {command!r} ({meant}there are {', '.join(COMMANDS)})")
    place, types, _ = COMMANDS[command]
    home, _, function = place.partition(":")
    import_module("step_jepa.plugins").load_plugins(modules)  # before the dataclasses, which know what is registered
    module, parse = import_module(f"step_jepa.{home}"), import_module("step_jepa.parsing").parse
    run = getattr(module, function or "run")
    return run(*parse(command, [_dataclass(home, name) for name in types], words)) or 0


def _usage() -> str:
    lines = [f"  {command:17} {purpose}" for command, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: step-jepa COMMAND [--config FILE.yaml] [--option value ...]\n",
            *lines,
            "\nstep-jepa COMMAND --help lists a command's options; step-jepa inspect asks for its own.",
            "With every command: --import FILE.py (or MODULE) loads objectives and the like of your own first, --debug "
            "shows where an error arose.",
        ]
    )


def _menu_without_terminal(argv: list[str]) -> bool:
    return argv == ["inspect"] and not (sys.stdin.isatty() and sys.stdout.isatty())


def _without_imports(argv: list[str]) -> tuple[list[str], list[str]]:
    """The other words, and what `--import` names. Raises UserError."""
    rest, modules = [], []
    words = iter(argv)
    for word in words:
        option, _, value = word.partition("=")
        if option != "--import":
            rest.append(word)
        elif value or (value := next(words, "")):
            modules.append(value)
        else:
            raise UserError("--import needs a file ending in .py, or a module")
    return rest, modules


def _without_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The other words, and whether `--debug` stands among them; with a value it is TrainingArguments' option."""
    ours = [
        word == "--debug" and (argv[0] != "train" or after.startswith("-")) for word, after in pairwise([*argv, "--"])
    ]
    return [word for word, taken in zip(argv, ours, strict=True) if not taken], any(ours)


def _dataclass(home: str, name: str) -> Any:
    """A dataclass of a command's module or, with a dot, of another one; with () what a function there returns."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(f"step_jepa.{module or home}"), attribute.removesuffix("()"))
    return found() if attribute.endswith("()") else found
