"""The measures of one model as a table on the terminal."""

from typing import Any

from rich.table import Table
from rich.text import Text

from step_jepa.pairing.measures import ENOUGH
from step_jepa.pairing.pairs import POSITION
from step_jepa.pairing.retrieval import WITHIN


def measures_table(result: dict[str, Any]) -> Table:
    """The figures that `measure` returned, each measure's difference to its best free baseline under it."""
    table = Table(title="held-out pairs", caption=_caption(result))
    for column in ("measure", "scorer", "value", "95 % interval", "chance", "pairs"):
        table.add_column(column, justify="left" if column in ("measure", "scorer") else "right")
    for measure, scorers in result["measures"].items():
        differences = result["differences"].get(measure, {})
        rows = scorers | {f"{scorer} - {figure['against']}": figure for scorer, figure in differences.items()}
        title = measure.replace("_", " ")
        for scorer, figure in rows.items():
            oracle = " (oracle)" if (measure, scorer) == (WITHIN, POSITION) else ""
            table.add_row(title, scorer + oracle, *_cells(figure))
            title = ""  # stands in the first row of its measure
        table.add_section()
    return table


def _cells(figure: dict[str, Any]) -> list[str]:
    chance = f"{figure['chance']:.3f}" if "chance" in figure else ""
    if figure["value"] is None:
        return ["-", "-", chance, str(figure["n"])]
    return [f"{figure['value']:.3f}", f"[{figure['low']:.3f}, {figure['high']:.3f}]", chance, str(figure["n"])]


def _caption(result: dict[str, Any]) -> Text:
    left_out = [f"{count} from {name.replace('_', ' ')}" for name, count in result["left_out"].items() if count]
    parts = [f"{result['pairs']} pairs of {result['problems']} problems; left out: {', '.join(left_out) or 'none'}"]
    if not result["enough"]:
        parts.append(f"fewer than {ENOUGH} pairs: intervals are wide")
    if "templates" in result:
        parts.append(
            f"problems of {result['templates']} templates: intervals are over problems, which are near copies within a "
            "template, so they are too narrow for new templates"
        )
    return Text("; ".join(parts))
