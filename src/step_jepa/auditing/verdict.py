"""What the audit's figures say: in a word, in sentences, in rows, as tables, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from step_jepa import markdown, plots
from step_jepa.auditing.segmentation import SEGMENTATIONS
from step_jepa.plurals import counted

Array = NDArray[Any]

MOST_STEPS = 20  # that have figures of their own
MUCH = 0.25  # of what another problem's past leaves open
PARTS = {"form": "form", "words": "words already said", "more": "more than words"}
HATCHES = ("", "//", "..")


# What the figures say.


def dependence(figures: Mapping[str, Any]) -> str:
    """What the past tells, from `specific`: nothing, where its interval reaches 0, which it does for steps that are
    independent; much, from a quarter of what another problem's past leaves open, as where one token in four is copied
    and the others are independent; else little."""
    if figures["per_token"]["specific"]["low"] <= 0:
        return "nothing"
    return "much" if figures["share"]["value"] >= MUCH else "little"


def best_segmentations(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scored way of cutting with the highest `specific` per token, and those whose intervals reach that of it."""
    specific = {name: figures["per_token"]["specific"] for name, figures in _scored(ways).items()}
    best = max(specific, key=lambda name: specific[name]["value"])
    rivals = [name for name in specific if name != best and specific[name]["high"] >= specific[best]["low"]]
    return [best, *rivals]


def largest_part(figures: Mapping[str, Any]) -> str:
    """Of what the past tells: form, words or more."""
    return max(PARTS, key=lambda part: figures["per_token"][part]["value"])


def _scored(ways: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The figures of all steps, by way of cutting."""
    return {name: way["all"] for name, way in ways.items() if "all" in way}


def statement(result: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    return [
        *_summary(result),
        *_not_scored(result["ways"]),
        *_not_by_step(result["ways"]["record"]),
        f"Nothing: the interval reaches 0, as for independent steps. Much: {MUCH:.0%} or more, as where one token in "
        "four is copied (a copied step: 100%). Little: between.",
        "Form: what another problem's past tells as well. Some of it is an artefact: a step read alone lacks the row's "
        "first token, which models attend to when nothing else calls.",
        "Words: what is told of words and numbers said before the step, so also which of them comes next. More: of all "
        "others. Sorted by what the own past has, words leans up and more down.",
        "Not scored: step 0, and each step's first token, which nothing precedes when the step is read alone. Answers "
        "have a row of their own.",
    ]


def _summary(result: Mapping[str, Any]) -> list[str]:
    figures, reader = result["ways"]["record"]["all"], result["settings"]["model_name"]
    specific, share = _interval(figures["per_token"]["specific"]), max(0.0, figures["share"]["value"])
    sentences = [
        f"As {reader} reads it, the past says {result['level']} about the next step. A step's own past tells "
        f"{specific} nats per token more than another problem's, {share:.0%} of what that one leaves open.",
        f"{figures['left']:.2f} nats per token stay open: the less a model knows of the language, the less this says "
        "of the data.",
    ]
    if result["level"] != "nothing":
        sentences += [_about_parts(figures), *_about_segmentations(result["ways"])]
    return sentences


def _about_parts(figures: Mapping[str, Any]) -> str:
    value = {name: figure["value"] for name, figure in figures["per_token"].items()}
    parts = ", ".join(f"{value[part]:.2f} {label}" for part, label in PARTS.items())
    past = f"of {value['past']:.2f} nats per token over no past, {parts}"
    return f"It is mostly {PARTS[largest_part(figures)]}: {past}."


def _about_segmentations(ways: Mapping[str, Any]) -> list[str]:
    """Which cuts carry most, where there are several."""
    scored = _scored(ways)
    if len(scored) < 2:
        return []
    value = {name: figures["per_token"]["specific"]["value"] for name, figures in scored.items()}
    best, *others = [f"{SEGMENTATIONS[name]} ({value[name]:.2f})" for name in best_segmentations(ways)]
    rest = f"; as much within the intervals: {', '.join(others)}" if others else ", clearly more than the others"
    through = ["Random places cut through sentences, whose beginnings then tell of their ends."]
    return [f"Steps cut {best} carry most per token{rest}.", *(through if "random" in scored else [])]


def _not_scored(ways: Mapping[str, Any]) -> list[str]:
    left_out = [f"{name} ({way['unscored']})" for name, way in ways.items() if "unscored" in way]
    return [f"Cuts not scored: {', '.join(left_out)}."] if left_out else []


def _not_by_step(way: Mapping[str, Any]) -> list[str]:
    many = len(way["steps"]) == MOST_STEPS
    return [f"By step, figures are of the first {MOST_STEPS} steps; `all` is of every one."] if many else []


# Rows, on the terminal.


def shown_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What the verdict follows from."""
    way, figures = result["ways"]["record"], result["ways"]["record"]["all"]
    per_token = figures["per_token"]
    parts = ", ".join(f"{per_token[part]['value']:.2f} {label}" for part, label in PARTS.items())
    best = best_segmentations(result["ways"])
    numbers = _share(figures["shared_numbers"])
    return {
        "steps": f"{figures['count']} of {counted(way['rows'], 'row')}, {figures['length']:.1f} tokens each",
        "the past tells": f"{per_token['past']['value']:.2f} nats a token: {parts}",
        "its own past alone": f"{_interval(per_token['specific'])} nats a token; {figures['left']:.2f} stay open",
        "free": f"TF-IDF with the past {figures['tfidf']:.2f}; {numbers} of a step's numbers were said before",
        "carries most": f"steps cut as {best[0]}" + (f"; no less: {', '.join(best[1:])}" if best[1:] else ""),
    }


# Tables, in the file.


def document(result: Mapping[str, Any]) -> str:
    """What the past tells and what is free, by step, and the ways of cutting; and what all of it means."""
    record = result["ways"]["record"]
    parts = ["# What the past tells about each step", f"**{result['statement'][0]}**"]
    parts += ["## Over no past, in nats", markdown.table(_past_table(record))]
    parts += ["## What is free", markdown.table(_free_table(record))]
    parts += ["## Words + more by way of cutting, in nats", markdown.table(_segmentation_table(result))]
    parts += ["## In words", markdown.bullets(result["statement"][1:])]
    return "\n\n".join(parts) + "\n"


def _by_step(way: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {**{str(step): figures for step, figures in way["steps"].items()}, "all": way["all"]}


def _past_table(way: Mapping[str, Any]) -> markdown.Rows:
    table = [["step", "count", "a step", "a token", "= form", "+ words", "+ more", "words + more"]]
    answer = {"answer": way["answer"]} if way["answer"] else {}
    for step, figures in {**_by_step(way), **answer}.items():
        per_token = figures["per_token"]
        per_step = f"{figures['per_step']['past']['value']:.1f}"
        parts = [f"{per_token[name]['value']:.2f}" for name in ("past", *PARTS)]
        table.append([step, str(figures["count"]), per_step, *parts, _interval(per_token["specific"])])
    return table


def _free_table(way: Mapping[str, Any]) -> markdown.Rows:
    table = [["step", "tokens", "TF-IDF with the past", "numbers said before", "just the answer"]]
    for step, figures in _by_step(way).items():
        shares = [_share(figures["shared_numbers"]), _share(figures["only_answer"])]
        table.append([step, f"{figures['length']:.1f}", f"{figures['tfidf']:.2f}", *shares])
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _segmentation_table(result: Mapping[str, Any]) -> markdown.Rows:
    table = [["cut", "rows", "steps a row", "tokens a step", "a step", "a token"]]
    for name, figures in _scored(result["ways"]).items():
        way = result["ways"][name]
        rows, steps = f"{way['rows']} of {result['rows']}", f"{way['steps_per_row']:.1f}"
        specific = [_interval(figures[per]["specific"]) for per in ("per_step", "per_token")]
        table.append([name, rows, steps, f"{figures['length']:.1f}", *specific])
    return table


def _interval(figure: Mapping[str, float | None]) -> str:
    value = f"{figure['value']:.2f}"
    return value if figure["low"] is None else f"{value} [{figure['low']:.2f}, {figure['high']:.2f}]"


# Picture.


def bar_charts(result: Mapping[str, Any]) -> Figure:
    """The parts of what the past tells, in nats per token: by step, and by way of cutting."""
    ways = _scored(result["ways"])
    by_step = _by_step(result["ways"]["record"])
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(by_step), len(ways)))
    _draw_bars(left, {f"{step}\n({figures['count']})": figures for step, figures in by_step.items()})
    _draw_bars(right, ways)
    left.set(title="What the past tells, by step", xlabel="step (how many)", ylabel="nats per token")
    right.set(title="By way of cutting")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_bars(axes: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """For each group a bar for each part and a mark for words and more together, with their intervals."""
    places = np.arange(len(groups))
    per_token = [figures["per_token"] for figures in groups.values()]
    for number, (part, label) in enumerate(PARTS.items()):
        values, errors = _values_and_errors([each[part] for each in per_token])
        look = {"color": plots.COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "label": label}
        axes.bar(places + 0.2 * number - 0.3, values, 0.2, yerr=errors, error_kw={"elinewidth": 1}, **look)
    values, errors = _values_and_errors([each["specific"] for each in per_token])
    axes.errorbar(places + 0.3, values, errors, fmt="kD", markersize=4, elinewidth=1, label="words and more")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, list(groups))
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(visible=False, axis="x")


def _values_and_errors(figures: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """(N,) values and (2, N) how far their intervals reach down and up; 0 where there is none."""
    ends = [(figure["value"], figure["low"], figure["high"]) for figure in figures]
    values, low, high = np.array(ends, dtype=float).T  # None becomes nan
    return values, np.nan_to_num([values - low, high - values])
