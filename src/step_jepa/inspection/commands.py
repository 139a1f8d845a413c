"""What users call: `step-jepa inspect steps`, `tokens`, `mask`, `pipeline`, and `inspect` alone, a menu."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from step_jepa import plots, terminal
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.example import Example
from step_jepa.data.offsets import pieces
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.inspection.example import Inspector, RowArguments, example_at, inspect_example
from step_jepa.inspection.mask import describe_mask, show_mask
from step_jepa.inspection.picture import draw
from step_jepa.inspection.stages import STAGES, colour_steps, describe_tokens, show_tokens, steps_of
from step_jepa.models.loading import load_tokenizer
from step_jepa.options import check_bounds, option
from step_jepa.plurals import counted


def _console() -> Console:
    """For a user's texts, in which nothing is markup."""
    return terminal.console(soft_wrap=False)


# inspect steps

EXAMPLES_SHOWN = 3  # by default
ANOTHER = "--index N shows another one"


@dataclass
class StepsArguments(TemplateOptions, ReadingOptions):
    """Which conversations, by which tokenizer. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2; it may hold only a tokenizer.", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    limit: int | None = option(None, help=f"How many examples; {EXAMPLES_SHOWN} by default.", least=1)
    index: int | None = option(None, help="This one alone, counted from 0.", least=0)
    plain: bool = option(False, help="No chat framing, as --plain of train.")
    max_length: int | None = option(None, help="Cut rows to whole steps within this many tokens.", least=1)
    json: bool = option(False, help="One JSON list on stdout instead of colours.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.index is not None and self.limit is not None:
            raise UserError("--index picks one example: leave out --limit")


def run_steps(args: StepsArguments) -> None:
    """Print the examples; as JSON a list of what `describe_example` has. Raises UserError."""
    tokenizer = load_tokenizer(args.model_name, plain=args.plain, template=args)
    limit = None if args.index is not None else args.limit or EXAMPLES_SHOWN
    data = load_and_prepare_dataset(args.train_file, tokenizer, max_length=args.max_length, limit=limit, reading=args)
    terminal.note(f"{args.train_file}: {data}")
    examples = data.examples if args.index is None else [example_at(args.index, data.examples, args.train_file)]
    if args.json:
        terminal.show_json([describe_example(example) for example in examples])
    else:
        _show_steps(examples, tokenizer)
    _end(ANOTHER if args.index is not None else "", args)


def _show_steps(examples: Sequence[Example], tokenizer: Any) -> None:
    console = _console()
    for example in examples:
        tokens, steps = counted(len(example.input_ids), "token"), counted(len(example.steps), "step")
        console.rule(f"example {example.index}: {tokens}, {steps}")
        console.print(colour_steps(example, pieces(tokenizer, example.input_ids)))
    console.print("A step's tokens are parted by |; underlined tokens are labelled.")


def _end(where: str, args: StepsArguments | RowArguments) -> None:
    following = {"model_name": args.model_name, "train_file": args.train_file}
    terminal.ends(where, terminal.typed("verify", following))


def describe_example(example: Example) -> dict[str, object]:
    """The example as JSON: `char` indexes `text`, `tokens` indexes `input_ids`; both tile the content."""
    return {
        "index": example.index,
        "text": example.text,
        "input_ids": example.input_ids,
        "labels": example.labels,
        "steps": steps_of(example),
    }


# inspect tokens


@dataclass
class TokensArguments(RowArguments):
    """Which row."""

    json: bool = option(False, help="JSON on stdout instead of a table.")


def run_tokens(args: TokensArguments) -> None:
    """Print the tokens; as JSON {"index", "tokens"}, as `describe_tokens` has them. Raises UserError."""
    inspected = inspect_example(args)
    if args.json:
        terminal.show_json({"index": args.index, "tokens": describe_tokens(inspected)})
    else:
        console = _console()
        console.rule(f"example {args.index}: the row's tokens, and where views are read")
        console.print(show_tokens(inspected))
    _end(ANOTHER, args)


# inspect mask


@dataclass
class MaskArguments(RowArguments):
    """Which row's mask, and where its picture goes."""

    output: str | None = option(None, help="Draw it token by token, as F.png or F.svg.")
    overwrite: bool = option(False, help="Replace the picture that is there.")
    json: bool = option(False, help="JSON on stdout instead of words and colours.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            plots.check_output(self.output, overwrite=self.overwrite)


def run_mask(args: MaskArguments) -> None:
    """Print the masks, and draw them; as JSON {"index"} and what `describe_mask` has. Raises UserError."""
    inspected = inspect_example(args)
    if args.output:
        with plots.style():
            plots.save(draw(inspected), args.output)
    if args.json:
        terminal.show_json({"index": args.index, **describe_mask(inspected)})
    else:
        console = _console()
        console.rule(f"example {args.index}: a row looks, a column is seen")
        console.print(show_mask(inspected))
    drawn = f"the picture, token by token, lies in {args.output}"
    _end(drawn if args.output else f"{ANOTHER}; --output mask.png draws it token by token", args)


# inspect pipeline


@dataclass
class PipelineArguments(RowArguments):
    """Which example."""

    json: bool = option(False, help="JSON on stdout instead of tables.")


def run_pipeline(args: PipelineArguments) -> None:
    """Print the stages one after another; as JSON {"index"} and, by its name, each stage as it is described. Raises
    UserError."""
    inspected = inspect_example(args)
    if args.json:
        described = {name: stage.describe(inspected) for name, stage in STAGES.items()}
        terminal.show_json({"index": args.index, **described})
    else:
        console = _console()
        for number, (name, stage) in enumerate(STAGES.items(), 1):
            console.rule(f"{number} {name}, example {args.index}")
            console.print(stage.show(inspected))
    _end(ANOTHER, args)


# inspect: the menu. Screens are numbered through: those of example 0, then those of example 1, one for each stage.

HELP = f"Enter on, b back, n/p next/previous example, 1-{len(STAGES)} a stage, q leave"
MOVES = {"": 1, "b": -1, "n": len(STAGES), "p": -len(STAGES)}
STAGE_NUMBERS = [str(number) for number in range(1, len(STAGES) + 1)]


@dataclass
class MenuArguments(RowArguments):
    """Where to begin. The model and the file are asked for where they are not given."""

    model_name: str = option("", help="Hub id, folder, or smollm2; asked for if not given.", is_path=True)
    train_file: str = option("", help="Prepared or raw records; asked for if not given.", is_path=True)


def run_menu(args: MenuArguments) -> None:
    """Walk through examples until the user leaves. Raises UserError."""
    console = _console()
    try:
        args.model_name = args.model_name or Prompt.ask("Model (hub id, folder, or smollm2)", console=console)
        args.train_file = args.train_file or Prompt.ask("File of records", console=console)
        inspector = Inspector(args)
        examples = inspector.examples()
        example_at(args.index, examples, args.train_file)  # before the first screen
        walk(inspector, examples, args.index, console, lambda: _ask(console))
        _end("", args)
    except EOFError:  # Ctrl-D
        console.print()


def _ask(console: Console) -> str:
    choices = [*MOVES, *STAGE_NUMBERS, "q"]
    return Prompt.ask(HELP, console=console, choices=choices, show_choices=False, default="", show_default=False)


def walk(
    inspector: Inspector, examples: Sequence[Example], index: int, console: Console, ask: Callable[[], str]
) -> None:
    """Show the stages that the answers of `ask` lead to, from the first one of an example, until one is q."""
    stages = list(STAGES.values())
    screen: int | None = index * len(stages)
    while screen is not None:
        number, stage = divmod(screen, len(stages))
        console.rule(f"example {number}, of 0 to {len(examples) - 1}")
        console.print(stages[stage].show(inspector.inspect(examples[number])))
        console.print(_bar(stage))
        screen = next_screen(screen, ask(), len(examples))


def _bar(shown: int) -> Text:
    """The names of all stages, with brackets around the one that is shown."""
    bar = Text()
    for stage, name in enumerate(STAGES):
        title = f"{stage + 1} {name}"
        if stage == shown:
            bar.append(f"[{title}]", "bold reverse")
        else:
            bar.append(f" {title} ", "dim")
    return bar


def next_screen(screen: int, answer: str, examples: int) -> int | None:
    """The screen that an answer leads to, of so many examples; None to leave. What lies beyond either end is not
    moved to."""
    if answer == "q":
        return None
    first = screen - screen % len(STAGES)  # of the same example
    wanted = screen + MOVES[answer] if answer in MOVES else first + STAGE_NUMBERS.index(answer)
    return wanted if 0 <= wanted < examples * len(STAGES) else screen
