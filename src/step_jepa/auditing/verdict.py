"""What the audit's figures say: in a word, in sentences, as tables, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from step_jepa import plots
from step_jepa.auditing.cutting import WAYS

Array = NDArray[Any]

MUCH = 0.25  # of what another problem's past leaves open
PARTS = {"form": "form", "words": "words already said", "more": "more than words"}
HATCHES = ("", "//", "..")


# What the figures say.


def level(told: Mapping[str, Any]) -> str:
    """What the past tells, from `specific`: nothing, where its interval reaches 0, which it does for steps that are
    independent; much, from a quarter of what another problem's past leaves open, as where one token in four is copied
    and the others are independent; else little."""
    if told["per_token"]["specific"]["low"] <= 0:
        return "nothing"
    return "much" if told["share"]["value"] >= MUCH else "little"


def carry_most(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scored way of cutting with the highest `specific` per token, and those whose intervals reach its own."""
    found = {way: scored["all"]["per_token"]["specific"] for way, scored in ways.items() if "all" in scored}
    best = max(found, key=lambda way: found[way]["value"])
    return [best, *(way for way in found if way != best and found[way]["high"] >= found[best]["low"])]


def kind(told: Mapping[str, Any]) -> str:
    """The largest part of what the past tells: form, words or more."""
    return max(PARTS, key=lambda part: told["per_token"][part]["value"])


def statement(result: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    told = result["ways"]["record"]["all"]
    figures = told["per_token"]
    reader, more, share = result["settings"]["model_name"], _interval(figures["specific"]), told["share"]["value"]
    found = [
        f"As {reader} reads it, the past says {result['level']} about the next step. A step's own past tells {more} "
        f"nats per token more than another problem's, {max(0.0, share):.0%} of what that one leaves open.",
        f"{told['left']:.2f} nats per token stay open: the less a model knows of the language, the less this says of "
        "the data.",
    ]
    if result["level"] != "nothing":
        parts = ", ".join(f"{figures[part]['value']:.2f} {said}" for part, said in PARTS.items())
        past = f"of {figures['past']['value']:.2f} nats per token over no past, {parts}"
        found += [f"It is mostly {PARTS[kind(told)]}: {past}.", *_carriers(result["ways"])]
    found += _unscored(result["ways"])
    return [
        *found,
        f"Nothing: the interval reaches 0, as for independent steps. Much: {MUCH:.0%} or more, as where one token in "
        "four is copied (a copied step: 100%). Little: between.",
        "Form: what another problem's past tells as well. Some of it is an artefact: a step read alone lacks the row's "
        "first token, which models attend to when nothing else calls.",
        "Words: what is told of words and numbers said before the step, so also which of them comes next. More: of all "
        "others. Sorted by what the own past has, words leans up and more down.",
        "Not scored: step 0, and each step's first token, which nothing precedes when the step is read alone. Answers "
        "have a row of their own.",
    ]


def _carriers(ways: Mapping[str, Any]) -> list[str]:
    """Which cuts carry most, where there are several."""
    if sum("all" in found for found in ways.values()) < 2:
        return []
    best, *others = [
        f"{WAYS[way]} ({ways[way]['all']['per_token']['specific']['value']:.2f})" for way in carry_most(ways)
    ]
    rest = f"; as much within the intervals: {', '.join(others)}" if others else ", clearly more than the others"
    through = ["Random places cut through sentences, whose beginnings then tell of their ends."]
    return [f"Steps cut {best} carry most per token{rest}.", *(through if "all" in ways["random"] else [])]


def _unscored(ways: Mapping[str, Any]) -> list[str]:
    left_out = [f"{way} ({found['unscored']})" for way, found in ways.items() if "unscored" in found]
    return [f"Cuts not scored: {', '.join(left_out)}."] if left_out else []


# Tables.


def tables(result: Mapping[str, Any]) -> list[Table]:
    """What the past tells and what is free, by step, and the ways of cutting."""
    return [_told(result["ways"]["record"]), _free(result["ways"]["record"]), _ways(result)]


def _by_step(way: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {**{str(step): told for step, told in way["steps"].items()}, "all": way["all"]}


def _told(way: Mapping[str, Any]) -> Table:
    columns = ("step", "count", "a step", "a token", "= form", "+ words", "+ more", "words + more")
    table = _table("what the past tells over no past, in nats", columns)
    for step, told in {**_by_step(way), **({"answer": way["answer"]} if way["answer"] else {})}.items():
        figures = told["per_token"]
        values = [figures[name]["value"] for name in ("past", *PARTS)]
        per_step = f"{told['per_step']['past']['value']:.1f}"
        table.add_row(step, str(told["count"]), per_step, *map("{:.2f}".format, values), _interval(figures["specific"]))
    return table


def _free(way: Mapping[str, Any]) -> Table:
    columns = ("step", "tokens", "TF-IDF with the past", "numbers said before", "just the answer")
    table = _table("what is free", columns)
    for step, told in _by_step(way).items():
        shares = ("-" if told[name] is None else f"{told[name]:.0%}" for name in ("shared_numbers", "only_answer"))
        table.add_row(step, f"{told['length']:.1f}", f"{told['tfidf']:.2f}", *shares)
    return table


def _ways(result: Mapping[str, Any]) -> Table:
    columns = ("cut", "rows", "steps\na row", "tokens\na step", "a step", "a token")
    table = _table("words + more by way of cutting, in nats", columns)
    for way, found in result["ways"].items():
        if "all" in found:
            told = found["all"]
            counts = (f"{found['rows']} of {result['rows']}", f"{found['steps_per_row']:.1f}", f"{told['length']:.1f}")
            table.add_row(way, *counts, *(_interval(told[per]["specific"]) for per in ("per_step", "per_token")))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _interval(figure: Mapping[str, float | None]) -> str:
    value = f"{figure['value']:.2f}"
    return value if figure["low"] is None else f"{value} [{figure['low']:.2f}, {figure['high']:.2f}]"


# Picture.


def picture(result: Mapping[str, Any]) -> Figure:
    """The parts of what the past tells, in nats per token: by step, and by way of cutting."""
    ways = {way: scored["all"] for way, scored in result["ways"].items() if "all" in scored}
    by_step = _by_step(result["ways"]["record"])
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(by_step), len(ways)))
    _draw(left, {f"{step}\n({told['count']})": told for step, told in by_step.items()})
    _draw(right, ways)
    left.set(title="What the past tells, by step", xlabel="step (how many)", ylabel="nats per token")
    right.set(title="By way of cutting")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw(axes: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """For each group a bar for each part and a mark for words and more together, with their intervals."""
    places = np.arange(len(groups))
    per_token = [told["per_token"] for told in groups.values()]
    for number, (part, said) in enumerate(PARTS.items()):
        values, errors = _ends([figures[part] for figures in per_token])
        look = {"color": plots.COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "label": said}
        axes.bar(places + 0.2 * number - 0.3, values, 0.2, yerr=errors, error_kw={"elinewidth": 1}, **look)
    values, errors = _ends([figures["specific"] for figures in per_token])
    axes.errorbar(places + 0.3, values, errors, fmt="kD", markersize=4, elinewidth=1, label="words and more")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, list(groups))
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(visible=False, axis="x")


def _ends(figures: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """(N,) values and (2, N) how far their intervals reach down and up; 0 where there is none."""
    values, low, high = np.array([list(figure.values()) for figure in figures], dtype=float).T  # None becomes nan
    return values, np.nan_to_num([values - low, high - values])
