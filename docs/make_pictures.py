"""Draws the pictures of the pages on results from the tables beside them: python docs/make_pictures.py

With a page of `report`, also its head, as a browser shows it:
    PYTHONPATH=tests python docs/make_pictures.py demo/report.html
"""

import base64
import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from step_jepa import plots

DOCS = Path(__file__).resolve().parent
INTERVAL = re.compile(r"(?P<value>[-+.\d]+)(?: \[(?P<low>[-.\d]+), (?P<high>[-.\d]+)\])?")


def dots(table: str, titles: Mapping[str, str], picture: str, arms: Sequence[str] = ()) -> None:
    """A panel for each column, with its title; one row for each line of the table (or of these arms) that has figures,
    with their intervals."""
    lines = list(csv.DictReader((DOCS / "results" / table).open(encoding="utf-8")))
    lines = [line for line in lines if not arms or line["arm"] in arms]
    lines = [line for line in lines if all(INTERVAL.match(line[column]) for column in titles)]
    with plots.style():
        height = 0.25 * len(lines) + 0.7
        figure = Figure(figsize=(5, height * len(titles)), layout="constrained")  # narrow: read on phones, too
        panels = figure.subplots(len(titles), squeeze=False)[:, 0]
        for axes, (column, title) in zip(panels, titles.items(), strict=True):
            axes.set_title(title, loc="left")
            axes.set_yticks(range(len(lines)), [line["arm"] for line in reversed(lines)])
            _draw(axes, lines, column)
        plots.save(figure, str(DOCS / "pictures" / picture))


def _draw(axes: Axes, lines: Sequence[Mapping[str, str]], column: str) -> None:
    for place, line in enumerate(reversed(lines)):
        found = INTERVAL.match(line[column])
        assert found is not None
        value, low, high = (float(found[name] or found["value"]) for name in ("value", "low", "high"))
        axes.plot([low, high], [place, place], color=_colour(line["arm"]), linewidth=2)
        axes.plot(value, place, "o", color=_colour(line["arm"]), markersize=5)


def _colour(arm: str) -> str:
    """Of an arm, of its control, of what is free."""
    if arm.startswith("free"):
        return plots.COLOURS[-1]
    return plots.COLOURS[1] if "." in arm else plots.COLOURS[0]


def head(page: Path, picture: str) -> None:
    """What a reader of the page sees above its sections."""
    from axe import headless, look, served  # selenium and a browser

    with headless() as browser, served(page.parent) as address:
        look(browser, f"{address}/{page.name}", 800, "light")
        height = browser.execute_script(
            "return document.querySelector('header nav').getBoundingClientRect().bottom + 16"
        )
        clip = {"x": 0, "y": 0, "width": 800, "height": height, "scale": 1.5}
        taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    (DOCS / "pictures" / picture).write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    found = "share of next steps found among 32"
    dots("pairing_arms.csv", {"retrieval across": found}, "learned.png")
    cells = ["sft", "llm_jepa", "llm_jepa.shuffled_pairs", "sft_no_end", "llm_jepa_no_end"]
    criteria = {"exact match": "exact match", "starts with": "starts with (as published)"}
    dots("nl_rx_small_arms.csv", criteria, "nl_rx_small.png", [*cells, "llm_jepa_no_end.shuffled_pairs"])
    dots("chains_2x2_arms.csv", {"accuracy": "accuracy"}, "chains_2x2.png")
    surprise = {
        "own_located_beyond": "first wrong steps found, beyond all free scores",
        "own_located": "found by surprise alone",
    }
    dots("surprise_arms.csv", surprise, "surprise.png")
    dots("smollm2_arms.csv", {"retrieval across": found}, "smollm2.png")
    for page in sys.argv[1:]:
        head(Path(page).resolve(), "report.png")
