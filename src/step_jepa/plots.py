"""Figures: one look for all pictures; saved as PNG or SVG, or as SVG text in the colours of the page around it."""

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.figure import Figure

from step_jepa.errors import UserError

# Told apart by people who see few colours (Okabe and Ito, 2008); markers and dashes go with them.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
_INK = "#010203"  # stands for the colour of the page's text


def style() -> AbstractContextManager[Any]:
    """Make figures within it; saving them enters it by itself."""
    coloured = ("text.color", "xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor", "legend.edgecolor")
    look: dict[Any, Any] = dict.fromkeys(coloured, _INK)
    look |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "legend.frameon": False}
    look |= {"axes.grid": True, "grid.alpha": 0.25, "grid.color": "#888888", "font.size": 9}
    look |= {"svg.fonttype": "none", "svg.hashsalt": "step-jepa", "savefig.dpi": 150}
    return matplotlib.rc_context(look)


def check_output(path: str, *, overwrite: bool) -> None:
    """Call it before long work. Raises UserError for a file that is neither .png nor .svg, or that is there already."""
    if Path(path).suffix.lower() not in (".png", ".svg"):
        raise UserError(f"{path}: pictures are written as .png or .svg: give a name that ends so")
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path} is there already: give another --output, or --overwrite")


def save(figure: Figure, path: str) -> None:
    """Write the figure, on white, as its suffix says; the folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, bbox_inches="tight", facecolor="white")


class InlineFigures:
    """Figures -> SVG elements of one page, where each has ids of its own."""

    def __init__(self) -> None:
        self.count = 0

    def svg(self, figure: Figure, description: str) -> str:
        """The figure as an <svg> element on no background, its ink that of the page around it.

        Args:
            figure: made within `style`.
            description: read out to those who do not see it.
        """
        text = io.StringIO()
        with style():  # text stays text, and ids do not differ from call to call
            figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
        svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)  # as wide as the page lets it be
        svg = svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(description)}', 1)
        self.count += 1
        return re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>f{self.count}-", svg)
