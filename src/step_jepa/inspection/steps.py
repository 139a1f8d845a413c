"""Stage steps, and `step-jepa inspect steps`: what the tokenizer makes of each step."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.tokens import IGNORED, Example, pieces
from step_jepa.errors import UserError
from step_jepa.inspection.preparation import chosen
from step_jepa.inspection.specimen import Specimen
from step_jepa.inspection.words import span, visible
from step_jepa.models.loading import load_tokenizer

COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")
LIMIT = 3


@dataclass
class StepsArguments:
    """Which conversations, by which tokenizer. Raises UserError for a number out of range."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2; it may hold only a tokenizer."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    limit: int | None = field(default=None, metadata={"help": f"How many examples; {LIMIT} by default."})
    index: int | None = field(default=None, metadata={"help": "This one alone, counted from 0."})
    max_length: int | None = field(default=None, metadata={"help": "Cut rows to whole steps within this many tokens."})
    json: bool = field(default=False, metadata={"help": "One JSON list on stdout instead of colours."})

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit = {self.limit}: give 1 or more")
        if self.index is not None and self.index < 0:
            raise UserError(f"index = {self.index}: examples are counted from 0")
        if self.index is not None and self.limit is not None:
            raise UserError("--index picks one example: leave out --limit")


def run(args: StepsArguments) -> None:
    """Print the examples. Raises UserError."""
    tokenizer: Any = load_tokenizer(args.model_name)
    limit = None if args.index is not None else args.limit or LIMIT
    data = load_and_prepare_dataset(args.train_file, tokenizer, max_length=args.max_length, limit=limit)
    examples = data.examples if args.index is None else [chosen(data.examples, args.index, args.train_file)]
    if args.json:
        print(json.dumps([described(example) for example in examples]))
        return
    console = Console(highlight=False, markup=False)
    for example in examples:
        console.rule(f"example {example.index}: {len(example.input_ids)} tokens, {len(example.steps)} steps")
        console.print(coloured(example, pieces(tokenizer, example.input_ids)))
    console.print(f"{data}\nA step's tokens are parted by |; underlined tokens are labelled.")


def described(example: Example) -> dict[str, Any]:
    """The example as JSON: `char` indexes `text`, `tokens` indexes `input_ids`; both tile the content."""
    return {
        "index": example.index,
        "text": example.text,
        "input_ids": example.input_ids,
        "labels": example.labels,
        "steps": _steps(example),
    }


def describe(specimen: Specimen) -> list[dict[str, Any]]:
    """text, char, tokens of each step: spans of the conversation's characters and of its tokens."""
    return _steps(specimen.example)


def show(specimen: Specimen) -> Text:
    """The tokens one by one, each step in a colour of its own."""
    return coloured(specimen.example, specimen.pieces[: len(specimen.example.input_ids)])


def _steps(example: Example) -> list[dict[str, Any]]:
    return [
        {"text": example.text[a:b].strip(), "char": [a, b], "tokens": list(tokens)}
        for (a, b), tokens in zip(example.chars, example.steps, strict=True)
    ]


def coloured(example: Example, pieces: Sequence[str]) -> Text:
    """The tokens of an example one by one, from the text of each."""
    view = Text()
    begun = example.steps[0][0]
    _append(view, example, pieces, range(begun), "dim")
    for number, tokens in enumerate(example.steps):
        view.append(f"\nstep {number}: ", "bold")
        _append(view, example, pieces, range(*tokens), COLOURS[number % len(COLOURS)], "|")
        view.append(f"  characters {span(example.chars[number])}, tokens {span(tokens)}", "dim")
    view.append("\n")
    _append(view, example, pieces, range(example.steps[-1][1], len(pieces)), "dim")
    return view


def _append(view: Text, example: Example, pieces: Sequence[str], places: range, style: str, divider: str = "") -> None:
    for place in places:
        labelled = example.labels[place] != IGNORED
        view.append(visible(pieces[place]), f"{style} underline" if labelled else style)
        view.append(divider, "dim")
