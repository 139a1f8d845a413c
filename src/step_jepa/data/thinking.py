"""A response, parted into its thinking and its answer: the tags around either are frame, not text. Pure strings."""

import re

_EMPTY_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
_THINK = ("<think>", "</think>")
# Pairs of tags that a response may begin with, besides.
_THINKING = (
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
_ANSWER = (("<|begin_of_solution|>", "<|end_of_solution|>"), ("<answer>", "</answer>"), ("<solution>", "</solution>"))


def part_thinking(text: str, reasoning: str = "") -> tuple[str, str]:
    """Part a response into (thinking, answer), without the tags around them; no or empty thinking is "".

    Thinking is what comes before `</think>` (the opening tag may be missing: some chat templates write it into the
    prompt), what stands between other tags of its kind at the start, or it is given apart from the text, as
    `reasoning`. Raises ValueError where the two cannot be told apart.
    """
    inside, after = _parted(text)
    thinking, given = trimmed(inside), _unframed(trimmed(reasoning))
    if thinking and given and thinking != given:
        raise ValueError("thinking is given twice, inside the response and apart from it")
    answer = _without_answer_tags(trimmed(after))
    if not answer:
        raise ValueError("the response holds no answer (cut off?)")
    return thinking or given, answer


def wrap_thinking(steps: list[str]) -> list[str]:
    r"""Put the wrapper around thinking steps: joined by blank lines they are "<think>\n...\n</think>"."""
    if not steps:
        return []
    wrapped = list(steps)
    wrapped[0] = "<think>\n" + wrapped[0]
    wrapped[-1] += "\n</think>"
    return wrapped


def trimmed(text: str) -> str:
    """Without the whitespace around it; where all lines are indented, as in code, the first keeps its indentation."""
    lines = [line for line in text.split("\n") if line.strip()]
    is_block = len(lines) > 1 and all(line.startswith(("  ", "\t")) for line in lines)
    return _EMPTY_LINES.sub("", text).rstrip() if is_block else text.strip()


def _parted(text: str) -> tuple[str, str]:
    """What stands between the tags of thinking, and what comes after them. Raises ValueError."""
    begin, end = _tags_at_start(text, _THINKING) or _THINK
    closed = end in text
    before, _, after = text.partition(end) if closed else ("", "", text)
    preamble, _, inside = before.rpartition(begin)
    if begin in after and not closed:
        raise ValueError(f"{begin} is never closed (cut off?)")
    if preamble.strip() or begin in after or end in after:
        raise ValueError(f"the response is not one {begin} block followed by an answer")
    return inside, after


def _without_answer_tags(text: str) -> str:
    """Tags around part of an answer are text."""
    tags = _tags_at_start(text, _ANSWER)
    if tags is None:
        return text
    begin, end = tags
    if end not in text:
        raise ValueError(f"{begin} is never closed (cut off?)")
    return trimmed(text.removeprefix(begin).removesuffix(end)) if text.endswith(end) else text


def _unframed(reasoning: str) -> str:
    begin, end = _tags_at_start(reasoning, (_THINK, *_THINKING)) or ("", "")
    return trimmed(reasoning.removeprefix(begin).removesuffix(end))


def _tags_at_start(text: str, tags: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    return next((pair for pair in tags if text.lstrip().startswith(pair[0])), None)
