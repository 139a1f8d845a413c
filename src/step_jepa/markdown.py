"""Tables and lists of the .md files that commands leave beside their figures."""

from collections.abc import Sequence

Rows = list[list[str]]  # of a table, the heads first


def table(rows: Rows) -> str:
    """A table, its first row the heads."""
    heads, *others = rows
    return "\n".join(_row(row) for row in [heads, ["---"] * len(heads), *others])


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def _row(row: Sequence[str]) -> str:
    cells = [text.replace("|", r"\|").replace("\n", " ") for text in row]
    return f"| {' | '.join(cells)} |"
