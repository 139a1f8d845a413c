"""One conversation as the model reads it.

All spans are half-open; the steps tile the trained content without gap or overlap.
"""

from dataclasses import dataclass, field, replace

from step_jepa.data.offsets import Span

IGNORED = -100


@dataclass(frozen=True)
class Turn:
    """One message rendered as a conversation of its own.

    input_ids  its tokens
    content    token span of the content: from the first to the last token that holds a character of it
    """

    input_ids: list[int]
    content: Span


@dataclass(frozen=True)
class Turns:
    """The last user turn and the answer, each alone: the two views of LLM-JEPA (arXiv 2509.14252)."""

    user: Turn
    assistant: Turn


@dataclass(frozen=True)
class Example:
    """One conversation as the model reads it: the trunk of a training row.

    text       the rendered conversation
    input_ids  its tokens
    labels     the same ids on trained contents and their end-of-turn tokens, IGNORED elsewhere
    steps      token span of each step of the last assistant turn
    chars      character span of each step in `text`
    user       token span of the last user turn's content; None where the template rewrites it or there is none
    contents   per step, the index after its last token that holds non-whitespace of it; by default its stop.
               steps[k][0] < contents[k] <= steps[k][1], unless the step has no token
    answer     index of the step that is the final answer; None where the last step is not, or was cut away
    turns      the last user turn and the answer alone; None unless asked for, where the template rewrites either, and
               where either is longer than max_length
    index      place in its data set
    """

    text: str
    input_ids: list[int]
    labels: list[int]
    steps: list[Span]
    chars: list[Span]
    user: Span | None
    contents: list[int] = field(default_factory=list)
    answer: int | None = None
    turns: Turns | None = None
    index: int = 0

    @property
    def filled_steps(self) -> list[int]:
        """Indices of the steps that have tokens of their own; a step may share its only token with its neighbour."""
        return [step for step, (start, stop) in enumerate(self.steps) if start < stop]

    def __post_init__(self) -> None:
        if not self.contents:
            object.__setattr__(self, "contents", [stop for _, stop in self.steps])


def truncate(example: Example, max_length: int | None) -> Example:
    """The example with as many whole steps as fit into `max_length` tokens, possibly none.

    A row that was cut carries no end-of-turn label: the model must not learn to stop there. The turns, which make sense
    as wholes only, go where either is longer."""
    if max_length is None:
        return example
    turns = example.turns
    if turns and max(len(turns.user.input_ids), len(turns.assistant.input_ids)) > max_length:
        example = replace(example, turns=None)
    return example if len(example.input_ids) <= max_length else _cut(example, max_length)


def _cut(example: Example, max_length: int) -> Example:
    kept = [span for span in example.steps if span[1] <= max_length]
    length = kept[-1][1] if kept else 0
    return replace(
        example,
        input_ids=example.input_ids[:length],
        labels=example.labels[:length],
        steps=kept,
        chars=example.chars[: len(kept)],
        contents=example.contents[: len(kept)],
        answer=example.answer if example.answer in range(len(kept)) else None,
    )
