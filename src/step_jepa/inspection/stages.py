"""The stages of an example, in order: each is described as JSON, and shown in a terminal."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from step_jepa.data.example import IGNORED, Example
from step_jepa.data.offsets import Span
from step_jepa.inspection.example import InspectedExample
from step_jepa.inspection.mask import describe_mask, describe_region, show_mask
from step_jepa.rows.branches import View

STEP_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")

# text: the conversation as the chat template writes it


def describe_text(inspected: InspectedExample) -> str:
    """The rendered conversation."""
    return inspected.example.text


def show_text(inspected: InspectedExample) -> Text:
    """The same, the steps in bold."""
    example, shown = inspected.example, Text()
    first, last = example.chars[0][0], example.chars[-1][1]
    for passage, style in (
        (example.text[:first], "dim"),
        (example.text[first:last], "bold"),
        (example.text[last:], "dim"),
    ):
        shown.append("\n".join(map(visible, passage.split("\n"))), style)
    return shown


# steps: what the tokenizer makes of each step


def describe_steps(inspected: InspectedExample) -> list[dict[str, Any]]:
    """text, char, tokens of each step: spans of the conversation's characters and of its tokens."""
    return steps_of(inspected.example)


def steps_of(example: Example) -> list[dict[str, Any]]:
    """As `describe_steps`, for an example without a row."""
    steps = []
    for chars, tokens in zip(example.chars, example.steps, strict=True):
        text = example.text[slice(*chars)].strip()
        steps.append({"text": text, "char": list(chars), "tokens": list(tokens)})
    return steps


def show_steps(inspected: InspectedExample) -> Text:
    """The tokens one by one, each step in a colour of its own."""
    return colour_steps(inspected.example, inspected.token_texts)


def colour_steps(example: Example, token_texts: Sequence[str]) -> Text:
    """As `show_steps`, for an example without a row.

    Args:
        example: the conversation.
        token_texts: the text of each of its tokens; what a row has beyond them is not shown.
    """
    shown = Text()
    first, last = example.steps[0][0], example.steps[-1][1]

    def append(tokens: range, style: str, divider: str = "") -> None:
        for token in tokens:
            labelled = example.labels[token] != IGNORED
            shown.append(visible(token_texts[token]), f"{style} underline" if labelled else style)
            shown.append(divider, "dim")

    append(range(first), "dim")
    for number, tokens in enumerate(example.steps):
        shown.append(f"\nstep {number}: ", "bold")
        append(range(*tokens), STEP_COLOURS[number % len(STEP_COLOURS)], "|")
        shown.append(f"  characters {format_span(example.chars[number])}, tokens {format_span(tokens)}", "dim")
    shown.append("\n")
    append(range(last, len(example.input_ids)), "dim")
    return shown


# tokens: the row, token by token


def describe_tokens(inspected: InspectedExample) -> list[dict[str, Any]]:
    """Of each token of the row: index in the row, text, id, position, labelled, region, and views, the states that are
    read there ("target 2", or "-1 x target 2" with its weight in the view's sum)."""
    row, views = inspected.row, _views_at(inspected)
    return [
        {
            "index": index,
            "text": inspected.token_texts[index],
            "id": row.input_ids[index],
            "position": row.position_ids[index],
            "labelled": row.labels[index] != IGNORED,
            "region": region,
            "views": views[index],
        }
        for index, region in enumerate(region_names(inspected))
    ]


def _views_at(inspected: InspectedExample) -> dict[int, list[str]]:
    """The views that are read at each token of the row."""
    views = defaultdict(list)
    for pair in inspected.row.pairs:
        for index, weight in pair.predicted:
            views[index].append(weighted(f"predicted {pair.step}", weight))
        for index, weight in pair.target:
            views[index].append(weighted(f"target {pair.step}", weight))
    return views


def show_tokens(inspected: InspectedExample) -> RenderableType:
    """The same as a table; of a long row, the tokens that its mask is shown of."""
    shown = table("index#", "text", "id#", "position#", "labelled", "region", "view")
    region, chosen = None, set(inspected.visibility.tokens)
    for token in describe_tokens(inspected):
        if token["index"] not in chosen:
            continue
        if token["region"] != region:
            shown.add_section()
        region = token["region"]
        shown.add_row(
            str(token["index"]),
            f'"{visible(token["text"])}"',
            str(token["id"]),
            str(token["position"]),
            "yes" if token["labelled"] else "",
            region,
            ", ".join(token["views"]),
        )
    note = inspected.visibility.note
    return Group(shown, f"{note}: --json has all") if note else shown


# spans: the regions of the trunk


def describe_spans(inspected: InspectedExample) -> list[dict[str, Any]]:
    """name, start, stop of each region of the trunk, and how many of its tokens are labelled."""
    spans = []
    for region in inspected.regions:
        if not region.is_branch:
            labelled = sum(inspected.row.labels[index] != IGNORED for index in region.indices)
            spans.append({**describe_region(region), "labelled": labelled})
    return spans


def show_spans(inspected: InspectedExample) -> Table:
    """The same as a table, with their text."""
    shown = table("region", "tokens", "labelled", "text")
    for region in describe_spans(inspected):
        tokens = (region["start"], region["stop"])
        labelled = f"{region['labelled']} of {tokens[1] - tokens[0]}"
        shown.add_row(region["name"], format_span(tokens), labelled, excerpt(inspected, tokens))
    return shown


# branches: what is appended to the trunk


def describe_branches(inspected: InspectedExample) -> list[dict[str, Any]]:
    """name, start, stop of each branch, the position of its first token, and prefix, the trunk tokens that it sees."""
    row = inspected.row
    branches = []
    for region in inspected.regions:
        if region.is_branch:
            first = region.indices.start
            place = {"position": row.position_ids[first], "prefix": row.visible_length[first]}
            branches.append(describe_region(region) | place)
    return branches


def show_branches(inspected: InspectedExample) -> RenderableType:
    """The same as a table, with their text."""
    branches = describe_branches(inspected)
    if not branches:
        return "No branch is appended to the trunk: the row is as long as in plain fine-tuning."
    shown = table("branch", "tokens", "positions", "trunk seen", "text")
    for branch in branches:
        tokens = (branch["start"], branch["stop"])
        length = tokens[1] - tokens[0]
        positions = (branch["position"], branch["position"] + length)
        trunk_seen = format_span((0, branch["prefix"])) if branch["prefix"] else "nothing"
        shown.add_row(
            branch["name"], format_span(tokens), format_span(positions), trunk_seen, excerpt(inspected, tokens)
        )
    return shown


# views: the pairs that are to come together, and the states that they are read from


def describe_views(inspected: InspectedExample) -> list[dict[str, Any]]:
    """Of each pair: objective, step (the target's), and predicted and target, each a list of the states in its sum:
    index in the row, and weight."""
    return [
        {
            "objective": inspected.objective,
            "step": pair.step,
            "predicted": _states(pair.predicted),
            "target": _states(pair.target),
        }
        for pair in inspected.row.pairs
    ]


def _states(view: View) -> list[dict[str, Any]]:
    return [{"index": index, "weight": weight} for index, weight in view]


def show_views(inspected: InspectedExample) -> RenderableType:
    """The same as a table, with the tokens at which they are read."""
    if not inspected.row.pairs:
        return f"Objective {inspected.objective} has no pair of views here: the row trains the language model alone."
    names = region_names(inspected)

    def read_at(view: View) -> str:
        lines = []
        for index, weight in view:
            text = visible(inspected.token_texts[index])
            lines.append(weighted(f'{index} "{text}" of {names[index]}', weight))
        return "\n".join(lines)

    shown = table("pair#", "predicted: read at", "target: read at")
    for number, pair in enumerate(inspected.row.pairs):
        shown.add_row(str(number), read_at(pair.predicted), read_at(pair.target))
    return shown


@dataclass(frozen=True)
class Stage:
    """How it is described as JSON, and shown in a terminal."""

    describe: Callable[[InspectedExample], Any]
    show: Callable[[InspectedExample], RenderableType]


STAGES = {
    "text": Stage(describe_text, show_text),
    "steps": Stage(describe_steps, show_steps),
    "tokens": Stage(describe_tokens, show_tokens),
    "spans": Stage(describe_spans, show_spans),
    "branches": Stage(describe_branches, show_branches),
    "mask": Stage(describe_mask, show_mask),
    "views": Stage(describe_views, show_views),
}


# How tokens, spans and tables are written


def visible(text: str) -> str:
    """What cannot be printed as an escape, so that it neither breaks a line nor moves the cursor."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def format_span(span: Span) -> str:
    """4:7 is 4, 5 and 6."""
    start, stop = span
    return f"{start}:{stop}"


def excerpt(inspected: InspectedExample, span: Span) -> Text:
    """The text of these tokens of the row, on one line, which a table may cut."""
    joined = "".join(inspected.token_texts[slice(*span)])
    return Text(visible(joined), no_wrap=True, overflow="ellipsis")


def table(*columns: str) -> Table:
    """An empty table with these heads; a name that ends in # is a column of numbers."""
    empty = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        empty.add_column(name.rstrip("#"), justify="right" if name.endswith("#") else "left")
    return empty


def region_names(inspected: InspectedExample) -> list[str]:
    """Of each token of the row."""
    names = []
    for region in inspected.regions:
        names += [region.name] * len(region.indices)
    return names


def weighted(state: str, weight: float) -> str:
    """One state of a view's sum."""
    return state if weight == 1 else f"{weight:+.3g} x {state}"
