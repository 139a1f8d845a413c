"""Draws the pictures of the pages on results from the tables beside them: python docs/make_pictures.py"""

import csv
import re
from pathlib import Path

from matplotlib.figure import Figure

from step_jepa import plots

DOCS = Path(__file__).resolve().parent
INTERVAL = re.compile(r"(?P<value>[-+.\d]+)(?: \[(?P<low>[-.\d]+), (?P<high>[-.\d]+)\])?")


def dots(table: str, column: str, picture: str, title: str) -> None:
    """One row for each line of the table that has a figure, with its interval."""
    lines = csv.DictReader((DOCS / "results" / table).open(encoding="utf-8"))
    rows = [(line["arm"], found) for line in lines if (found := INTERVAL.match(line[column]))]
    with plots.style():
        figure = Figure(figsize=(7, 0.27 * len(rows) + 0.8))
        axes = figure.subplots()
        for place, (arm, found) in enumerate(reversed(rows)):
            value, low, high = (float(found[name] or found["value"]) for name in ("value", "low", "high"))
            axes.plot([low, high], [place, place], color=_colour(arm), linewidth=2)
            axes.plot(value, place, "o", color=_colour(arm), markersize=5)
        axes.set_yticks(range(len(rows)), [arm for arm, _ in reversed(rows)])
        axes.set_title(title, loc="left")
        plots.save(figure, str(DOCS / "pictures" / picture))


def _colour(arm: str) -> str:
    """Of an arm, of its control, of what is free."""
    if arm.startswith("free"):
        return plots.COLOURS[-1]
    return plots.COLOURS[1] if "." in arm else plots.COLOURS[0]


if __name__ == "__main__":
    found = "share of next steps that are found among 32 (blue: arms, orange: their controls, grey: free)"
    dots("pairing_arms.csv", "retrieval across", "learned.png", found)
