"""What was measured, as tables and as a picture."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.table import Table

from step_jepa import plots, terminal

WORDS = {
    "sft": "plain fine-tuning",
    "one_pass_first": "Step-JEPA, first pair",
    "one_pass_all": "Step-JEPA, all pairs",
    "trl": "TRL, like for like",
    "trl_defaults": "TRL, its defaults",
}
Figures = Mapping[str, Mapping[str, Any]]  # name -> figures


def print_passes(result: Figures) -> None:
    """Forward and backward passes."""
    table = Table(title="forward and backward of the same rows")
    for column in ("", "seconds", "x SFT", "tokens, x SFT", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in result.items():
        table.add_row(
            name,
            f"{figures['seconds']:.2f}",
            f"{figures['ratio_to_sft']:.2f}",
            _number(figures.get("token_ratio"), 2),
            _number(figures["peak_mb"], 0),
        )
    terminal.show(table)


def print_steps(result: Figures, baseline: str, length: int | None) -> None:
    """Training steps. The token ratio is of an arm's tokens to the baseline's with padding."""
    of_length = "" if length is None else f" of {length} tokens each"
    table = Table(title=f"training steps on the same rows{of_length}")
    table.add_column("", no_wrap=True)
    for column in ("seconds", f"x {baseline}", "token ratio", "tokens", "padded", "peak MB"):
        table.add_column(column, justify="right")
    for name, figures in result.items():
        table.add_row(
            name,
            f"{figures['seconds']:.3g}",
            f"{figures[f'ratio_to_{baseline}']:.2f}",
            f"{figures['token_ratio']:.2f}",
            f"{figures['tokens']:,}",
            f"{figures['padded_tokens']:,}",
            _number(figures["peak_mb"], 0),
        )
    terminal.show(table)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def picture(results: Mapping[int, Figures]) -> Figure:
    """Seconds, and memory where it was measured, against length, both on logarithmic axes."""
    names = list(next(iter(results.values())))
    titles = {"seconds": "seconds of a training step", "peak_mb": "peak memory above the model, MB"}
    known = [key for key in titles if all(figures[key] is not None for figures in _all(results))]
    with plots.style():
        figure = Figure(figsize=(4.2 * len(known), 3.4), layout="constrained")
        axes = figure.subplots(1, len(known), squeeze=False)[0]
        for axis, key in zip(axes, known, strict=True):
            for place, name in enumerate(names):
                _curve(axis, place, name, {length: result[name][key] for length, result in results.items()})
            axis.set(title=titles[key], xlabel="tokens of a row", xscale="log", yscale="log")
            axis.set_xticks(list(results), [f"{length:,}" for length in results], minor=False)
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:,g}")
        axes[0].legend()
    return figure


def _all(results: Mapping[int, Figures]) -> list[Mapping[str, Any]]:
    every: list[Mapping[str, Any]] = []
    for result in results.values():
        every += result.values()
    return every


def _curve(axis: Any, place: int, name: str, values: Mapping[int, float]) -> None:
    look = {"color": plots.COLOURS[place], "marker": plots.MARKERS[place], "linestyle": plots.DASHES[place]}
    axis.plot(list(values), list(values.values()), label=WORDS[name], markersize=4, **look)
