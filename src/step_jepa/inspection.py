"""`step-jepa inspect steps`: what the tokenizer makes of each step, as JSON or in colours."""

import json
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from step_jepa.dataset import load_and_prepare_dataset
from step_jepa.errors import UserError
from step_jepa.models import load_tokenizer
from step_jepa.tokens import IGNORED, Example

COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


@dataclass
class InspectArguments:
    """Which conversations, by which tokenizer."""

    model_name: str = field(metadata={"help": "Hub id or folder; it may hold only a tokenizer."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    limit: int | None = field(default=3, metadata={"help": "How many examples."})
    max_length: int | None = field(default=None, metadata={"help": "Cut rows to whole steps within this many tokens."})
    json: bool = field(default=False, metadata={"help": "One JSON list on stdout instead of colours."})

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit = {self.limit}: give 1 or more")


def run(args: InspectArguments) -> None:
    """Print the examples."""
    tokenizer = load_tokenizer(args.model_name)
    data = load_and_prepare_dataset(args.train_file, tokenizer, max_length=args.max_length, limit=args.limit)
    if args.json:
        print(json.dumps([describe(index, example) for index, example in enumerate(data.examples)]))
        return
    console = Console(highlight=False)
    for index, example in enumerate(data.examples):
        console.rule(f"example {index}: {len(example.input_ids)} tokens, {len(example.steps)} steps")
        console.print(coloured(example, tokenizer))
    console.print(f"{data}\nA step's tokens share a colour and are parted by |; underlined tokens are labelled.")


def describe(index: int, example: Example) -> dict[str, Any]:
    """The example as JSON: `char` indexes `text`, `tokens` indexes `input_ids`; both tile the content."""
    steps = [
        {"text": example.text[a:b].strip(), "char": [a, b], "tokens": list(span)}
        for (a, b), span in zip(example.chars, example.steps, strict=True)
    ]
    return {
        "index": index,
        "text": example.text,
        "input_ids": example.input_ids,
        "labels": example.labels,
        "steps": steps,
    }


def coloured(example: Example, tokenizer: Any) -> Text:
    """The tokens one by one, each step in a colour of its own."""
    view = Text()
    owner = {place: number for number, span in enumerate(example.steps) for place in range(*span)}
    for place, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
        step = owner.get(place)
        style = "dim" if step is None else COLOURS[step % len(COLOURS)]
        piece = tokenizer.decode([token]).replace("\n", "\\n")
        view.append(piece, f"{style} underline" if label != IGNORED else style)
        view.append("|" if step is not None else "", "dim")
        if place + 1 in owner and owner.get(place + 1) != step:
            view.append(f"\nstep {owner[place + 1]}: ", "bold")
    return view
