"""The command line: `step-jepa COMMAND --options`, or options from a YAML file with `--config`."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml

from step_jepa.errors import UserError

# command -> module, its dataclasses of arguments, what it is for
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "prepare": ("prepare", ["PrepareArguments"], "raw problems -> conversations with steps"),
    "inspect steps": ("inspection", ["InspectArguments"], "how a tokenizer sees the steps"),
    "train": ("train", ["TrainArguments", "adapted.StepJEPAConfig"], "fine-tune a model"),
    "compare": ("compare", ["CompareArguments"], "both implementations on the same rows"),
    "evaluate": ("evaluate", ["EvaluateArguments"], "score a model on problems"),
    "benchmark": ("benchmark", ["BenchmarkArguments"], "time and memory against plain fine-tuning"),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit code 2 with one line for what the user can mend, 130 after Ctrl-C."""
    try:
        code = dispatch(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"step-jepa: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        print("step-jepa: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def dispatch(argv: list[str]) -> int:
    """Run the command that `argv` names; its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: step-jepa COMMAND [--config FILE.yaml] [--option value ...]\n")
        for command, (_, _, purpose) in COMMANDS.items():
            print(f"  {command:15} {purpose}")
        print("\nstep-jepa COMMAND --help lists a command's options.")
        return 0
    words = 2 if argv[0] == "inspect" else 1
    command = " ".join(argv[:words])
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}: one of {', '.join(COMMANDS)}")
    home, types, _ = COMMANDS[command]
    module = import_module(f"step_jepa.{home}")
    return module.run(*parse(command, [_dataclass(home, name) for name in types], argv[words:])) or 0


def _dataclass(home: str, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"step_jepa.{module or home}"), attribute)


def parse(command: str, types: list[Any], argv: list[str]) -> tuple[Any, ...]:
    """The dataclasses from the options; those of `--config` first, so that later ones override them."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message} (step-jepa {command} --help lists the options)")

    parser = Parser(types, prog=f"step-jepa {command}", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of options; options on the command line override it.")
    argv = _with_config(argv)
    needs_output = any(option.dest == "output_dir" for option in parser._actions)
    if needs_output and not {"-h", "--help", "--output_dir"} & {word.split("=")[0] for word in argv}:
        raise UserError("--output_dir is required: say where the results go")
    try:
        return parser.parse_args_into_dataclasses(argv)[: len(types)]
    except UserError:
        raise
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses
        raise UserError(str(error).strip().splitlines()[0]) from None


def _with_config(argv: list[str]) -> list[str]:
    """argv with the options of its `--config` file put before the others."""
    rest, path = [], None
    words = iter(argv)
    for word in words:
        if word.split("=")[0] == "--config":
            path = word.partition("=")[2] or next(words, None)
            if not path:
                raise UserError("--config needs a file")
        else:
            rest.append(word)
    return [*_options(path), *rest] if path else rest


def _options(path: str) -> list[str]:
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}): give a YAML file of options") from None
    if not isinstance(options, dict):
        raise UserError(f"{path} is no table of options: write lines such as `lbd: 0.1`")
    argv: list[str] = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            argv += [f"--{name}", *map(str, values)]
    return argv
