"""Prints docs/options.md from the options themselves: python docs/make_options.py > docs/options.md"""

from dataclasses import Field

from step_jepa import cli
from step_jepa.arguments.help import OTHERS, groups_of, placeholder, shown
from step_jepa.cli import dispatch
from step_jepa.options import default_of

HEAD = """\
# Options

Made from the code (`python docs/make_options.py`). `train` also takes the options of
[`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments),
such as `--learning_rate`, `--max_steps` and `--bf16`. Every command takes `--config FILE.yaml`, `--import FILE.py`,
`--print_config`, `--quiet` and `--debug`.
What became of the options of LLM-JEPA's programs: [from LLM-JEPA](from-llm-jepa.md).
"""


def page() -> str:
    """A section for each command, a table for each of its groups."""
    commands = ["train", *(command for command in cli.COMMANDS if command != "train")]
    return "\n".join([HEAD, *map(_section, commands)])


def _section(command: str) -> str:
    purpose = cli.COMMANDS[command][2]
    groups = groups_of(dispatch.dataclasses_of(cli.COMMANDS[command]))
    tables = [_table(heading, options) for heading, options in groups.items() if heading != OTHERS]
    return "\n".join([f"## {command}\n", f"{purpose[0].upper()}{purpose[1:]}.\n", *tables])


def _table(heading: str, options: list[tuple[Field, object]]) -> str:
    rows = [
        f"| `--{field.name}` | {_code('' if hint is bool else placeholder(hint))} | {_code(shown(default_of(field)))} "
        f"| {_cell(field.metadata.get('help', ''))} |"
        for field, hint in options
    ]
    return "\n".join([f"### {heading}\n", "| option | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


if __name__ == "__main__":
    print(page().rstrip())
