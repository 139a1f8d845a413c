"""What was measured of one model: on the terminal in five rows and a sentence, in pairing.md as a table."""

from collections.abc import Mapping
from typing import Any

from step_jepa import markdown
from step_jepa.pairing.cosines import MARGIN
from step_jepa.pairing.measures import ENOUGH
from step_jepa.pairing.pairs import POSITION, VIEWS
from step_jepa.pairing.retrieval import ACROSS, WITHIN
from step_jepa.plurals import counted
from step_jepa.run_files.names import OPTIONS_FILE

Figure = Mapping[str, Any]
SHOWN = (MARGIN, ACROSS, WITHIN)  # on the terminal


def summary_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What it is of, and beside the figures that decide the best of what is free."""
    about = {"model": f"LM loss {result['lm_loss']:.4f}; {_training(result['run'])}", "pairs": caption(result)}
    return about | {_words(measure): _beside_the_best(result, measure) for measure in SHOWN}


def sentence(name: str, result: Mapping[str, Any]) -> str:
    """Whether the views of a model tell the next step among those of other problems better than what is free."""
    found = result["differences"].get(ACROSS, {}).get(VIEWS)
    if found is None or found["value"] is None:
        return f"{name}: whether views tell the next step better than what is free cannot be said of these pairs."
    figures = f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] against {found['against']}"
    return f"{name}: its views {_verdict(found)} than what is free ({figures}, {_words(ACROSS)})."


def _verdict(difference: Figure) -> str:
    if difference["low"] > 0:
        return "tell the next step better"
    return "tell the next step less well" if difference["high"] < 0 else "are not shown to tell the next step better"


def _beside_the_best(result: Mapping[str, Any], measure: str) -> str:
    scorers, difference = result["measures"][measure], result["differences"].get(measure, {}).get(VIEWS)
    views = _cell(scorers[VIEWS])
    chance = f"; chance {scorers[VIEWS]['chance']:.3f}" if "chance" in scorers[VIEWS] else ""
    best = f"; {difference['against']} {_cell(scorers[difference['against']])}" if difference else ""
    return f"views {views}{best}{chance}"


def _training(run: Mapping[str, Any]) -> str:
    """What the model was trained for, in words."""
    if not run:
        return f"no {OPTIONS_FILE} says how it was trained"
    objective, horizon = run.get("objective", "unknown"), run.get("horizon", 1)
    names = objective if isinstance(objective, str) else ", ".join(objective)
    ahead = "" if horizon == 1 else f"; trained to predict {horizon} steps ahead, measured on the next"
    return f"objective {names}, control {run.get('control', 'unknown')}{ahead}"


def caption(result: Mapping[str, Any]) -> str:
    """How many pairs there are, and what that means for the intervals."""
    left_out = [f"{count} from {_words(name)}" for name, count in result["left_out"].items() if count]
    pairs = f"{counted(result['pairs'], 'pair')} of {counted(result['problems'], 'problem')}"
    parts = [f"{pairs}; left out: {', '.join(left_out) or 'none'}"]
    if not result["enough"]:
        parts.append(f"fewer than {ENOUGH} pairs: intervals are wide")
    if "templates" in result:
        parts.append(
            f"problems of {counted(result['templates'], 'template')}: intervals are over problems, which are near "
            "copies within a template, so they are too narrow for new templates"
        )
    return "; ".join(parts)


# In the file


def document(models: Mapping[str, Mapping[str, Any]]) -> str:
    """pairing.md: every figure of every model."""
    parts = ["# Held-out pairs"]
    for name, result in models.items():
        about = "\n".join(f"{title}: {words}  " for title, words in list(summary_rows(result).items())[:2])
        parts += [f"## {name}", about, sentence(name, result), markdown.table(measures_table(result))]
    return "\n\n".join(parts) + "\n"


def measures_table(result: Mapping[str, Any]) -> markdown.Rows:
    """The figures that `measure` returned, each measure's difference to its best free baseline under it."""
    table = [["measure", "scorer", "value", "95 % interval", "chance", "pairs"]]
    for measure, scorers in result["measures"].items():
        differences = result["differences"].get(measure, {})
        rows = scorers | {f"{scorer} - {figure['against']}": figure for scorer, figure in differences.items()}
        title = _words(measure)
        for scorer, figure in rows.items():
            oracle = " (oracle)" if (measure, scorer) == (WITHIN, POSITION) else ""
            table.append([title, scorer + oracle, *_cells(figure)])
            title = ""  # stands in the first row of its measure
    return table


def _cells(figure: Figure) -> list[str]:
    chance = f"{figure['chance']:.3f}" if "chance" in figure else ""
    if figure["value"] is None:
        return ["-", "-", chance, str(figure["n"])]
    return [f"{figure['value']:.3f}", f"[{figure['low']:.3f}, {figure['high']:.3f}]", chance, str(figure["n"])]


def _cell(figure: Figure) -> str:
    value, interval, *_ = _cells(figure)
    return value if value == "-" else f"{value} {interval}"


def _words(name: str) -> str:
    return name.replace("_", " ")
