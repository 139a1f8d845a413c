"""The head of the page: what was trained, what came of it, and whether the pairing was learned."""

from collections.abc import Mapping, Sequence

from step_jepa.plurals import counted
from step_jepa.reporting.dots import OTHER, TRAINED, Dot, figure_text, kind_of
from step_jepa.reporting.matching import BEFORE
from step_jepa.reporting.retrieval import BASELINES, Retrieval
from step_jepa.reporting.runs import ReportData, Run
from step_jepa.reporting.scores import ScoredEvaluation, changes
from step_jepa.rows.controls import CONTROL_MEANINGS
from step_jepa.training.model_card import public

MOST_NAMED = 3
NOT_MEASURED = (
    "Whether the pairing was learned was not measured (step-jepa pairing does); a falling JEPA loss does not prove it."
)


def title(data: ReportData) -> str:
    """What the page is about, in a line."""
    if data.experiments:
        return _listed([experiment.results["name"] for experiment in data.experiments])
    if len(data.runs) == 1:
        (run,) = data.runs
        return f"{_base(run)}, trained {_data(run)}{_method(run)}"
    if data.runs:
        return f"{len(data.runs)} runs of {_listed(list(dict.fromkeys(map(_base, data.runs))))}"
    models = [public(evaluation.model) for evaluation in data.evaluations]
    return f"Evaluations of {_listed(list(dict.fromkeys(models)))}" if models else "What embeddings know"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _base(run: Run) -> str:
    return public(run.settings.get("model_name")) if run.settings else run.name


def _data(run: Run) -> str:
    return f"on {public(run.settings['train_file'])} " if run.settings else ""


def _method(run: Run) -> str:
    options = run.options
    objective = options.get("objective", "none")
    names = [objective] if isinstance(objective, str) else objective
    if kind_of(options) == OTHER:
        return "without a JEPA term"
    control = options.get("control", "none")
    meant = "" if control == "none" else f"; a control: {CONTROL_MEANINGS.get(control, control)}"
    return f"with {' + '.join(names)}, loss {options.get('loss')}, lbd {options['lbd']}{meant}"


def how(runs: Sequence[Run]) -> str:
    """How a single run was trained; nothing of several, and of an older version's."""
    if len(runs) != 1 or not runs[0].settings:
        return ""
    run = runs[0]
    settings = run.settings
    weights = f"LoRA of rank {settings['lora']['r']}" if settings["lora"] else "all weights"
    if run.options.get("pretrain"):
        weights = "from random weights"
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in settings["data"].items() if count]
    steps = counted(run.state["global_step"], "optimisation step")
    trained = f"{steps}, {weights}, learning rate {settings['learning_rate']:g}"
    return f"{trained}, seed {settings['seed']}; {', '.join(counts)}."


# What came of it


def sentences(
    evaluations: Sequence[ScoredEvaluation], retrievals: Sequence[Retrieval], runs: Sequence[Run]
) -> list[str]:
    """On answers, where two evaluations are of the same problems; on the pairing, where a model was trained for it."""
    found = []
    if (changed := changes(evaluations)) and evaluations[0].label == BEFORE:
        gained, lost = changed
        found.append(f"Of {counted(evaluations[0].summary['n'], 'held-out problem')} {gained} gained and {lost} lost.")
    of_retrieval = [
        _of_retrieval(dot, each) for each in retrievals for dot in each.dots[TRAINED] if dot.label in each.leads
    ]
    if any(kind_of(run.options) == TRAINED and run.arm is None for run in runs):
        return [*found, *(of_retrieval or [_of_margins(evaluations)])]
    return found + of_retrieval


def _of_retrieval(trained: Dot, retrieval: Retrieval) -> str:
    """Learned is what is found more often than by any baseline and by the control, beyond the intervals."""
    lead, shuffled = retrieval.leads[trained.label], retrieval.shuffled_of(trained.label)
    parts = [f"{trained.label} finds the next step in {_share(trained)} of cases"]
    parts += [f"{dot.label} in {_share(dot)}" for dot in shuffled]
    baseline, points = BASELINES.get(lead["against"], lead["against"]), 100 * lead["value"]
    parts.append(f"the best baseline ({baseline}) is {abs(points):.0f} points {'behind' if points > 0 else 'ahead'}")
    return f"{_verdict(trained, shuffled, lead)}: {', '.join(parts)}."


def _verdict(trained: Dot, shuffled: Sequence[Dot], lead: Mapping[str, float]) -> str:
    if lead["low"] <= 0:
        return "Baselines that need no model are not shown to be beaten"
    if not shuffled:
        return "Baselines that need no model are beaten; only a control on shuffled pairs can tell by what"
    if trained.low > max(dot.high for dot in shuffled):
        return "The pairing was learned"
    return "That the pairing was learned is not shown"


def _share(dot: Dot) -> str:
    return f"{dot.value:.0%} [{dot.low:.0%}, {dot.high:.0%}]"


def _of_margins(evaluations: Sequence[ScoredEvaluation]) -> str:
    """Of one run before and after."""
    margins = [each.margin for each in evaluations if each.margin]
    if len(margins) != 2:
        return NOT_MEASURED
    old, new = margins
    moved = "grew" if new["low"] > old["high"] else "is not shown to have grown"
    return (
        f"The margin of true pairs {moved} ({figure_text(**old)} before, {figure_text(**new)} after); whether the "
        "pairing was learned, only a control and baselines can tell: step-jepa pairing."
    )
