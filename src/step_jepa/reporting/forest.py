"""Differences between arms, each with its interval, one below the other."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from step_jepa.plots import COLOURS, style

ROW = 0.24  # inches of a line of it


def chart(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """Of one measure, from results.json: 95 % for new seeds and new problems; the primary one is a filled square."""
    with style():
        figure = Figure(figsize=(6.4, 0.9 + ROW * len(comparisons)), layout="constrained")
        axes = figure.add_subplot(xlabel="arm minus the other, 95 % interval for new seeds and new problems")
        axes.axvline(0, color=COLOURS[-1], linewidth=1)
        for place, each in enumerate(comparisons):
            found = each["found"]
            low, high = found["new_problems"] or (found["difference"],) * 2
            axes.plot([low, high], [place, place], color=COLOURS[0])
            marker, fill = ("s", "full") if each["primary"] else ("o", "none")
            axes.plot(found["difference"], place, color=COLOURS[0], marker=marker, fillstyle=fill, markersize=5)
        names = [f"{each['found']['arm']} - {each['found']['baseline']}" for each in comparisons]
        axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
        axes.invert_yaxis()
        return figure
