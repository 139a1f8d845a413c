"""`step-jepa inspect` in a terminal: walk through examples, stage by stage."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from step_jepa.data.tokens import Example
from step_jepa.inspection.preparation import Preparation, RowArguments, chosen
from step_jepa.inspection.stages import STAGES

HELP = f"Enter on, b back, n/p next/previous example, 1-{len(STAGES)} a stage, q leave"
MOVES = {"": 1, "b": -1, "n": len(STAGES), "p": -len(STAGES)}
JUMPS = [str(number) for number in range(1, len(STAGES) + 1)]


@dataclass
class MenuArguments(RowArguments):
    """Where to begin. The model and the file are asked for where they are not given."""

    model_name: str = field(default="", metadata={"help": "Hub id, folder, or smollm2; asked for if not given."})
    train_file: str = field(default="", metadata={"help": "Prepared or raw records; asked for if not given."})


def run(args: MenuArguments) -> None:
    """Walk until the user leaves. Raises UserError."""
    console = Console(highlight=False, markup=False)
    try:
        args.model_name = args.model_name or Prompt.ask("Model (hub id, folder, or smollm2)", console=console)
        args.train_file = args.train_file or Prompt.ask("File of records", console=console)
        preparation = Preparation(args)
        examples = preparation.examples()
        chosen(examples, args.index, args.train_file)
        walk(preparation, examples, args.index, console, lambda: _asked(console))
    except EOFError:  # Ctrl-D
        console.print()


def _asked(console: Console) -> str:
    choices = [*MOVES, *JUMPS, "q"]
    return Prompt.ask(HELP, console=console, choices=choices, show_choices=False, default="", show_default=False)


def walk(
    preparation: Preparation, examples: list[Example], index: int, console: Console, ask: Callable[[], str]
) -> None:
    """Show the stages that the answers of `ask` lead to, from the first one of an example, until one is q."""
    place: int | None = index * len(STAGES)
    while place is not None:
        number, stage = divmod(place, len(STAGES))
        console.rule(f"example {number}, of 0 to {len(examples) - 1}")
        console.print(list(STAGES.values())[stage].show(preparation.specimen(examples[number])))
        console.print(_bar(stage))
        place = moved(place, ask(), len(examples))


def _bar(stage: int) -> Text:
    """All stages, with brackets around the one that is shown."""
    names = [f" {number} {name} " for number, name in zip(JUMPS, STAGES, strict=True)]
    names[stage] = f"[{names[stage].strip()}]"
    return Text.assemble(*((name, "bold reverse" if place == stage else "dim") for place, name in enumerate(names)))


def moved(place: int, answer: str, count: int) -> int | None:
    """Where an answer leads among the stages of `count` examples, numbered through; None: out. Beyond either end it
    leads nowhere."""
    if answer == "q":
        return None
    wanted = place + MOVES[answer] if answer in MOVES else place - place % len(STAGES) + JUMPS.index(answer)
    return wanted if 0 <= wanted < count * len(STAGES) else place
