"""Whether the next step is found among others: by the embeddings of runs, by their controls, and without embeddings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from step_jepa.experiments.results import ConditionResult, ExperimentResults
from step_jepa.pairing.pairs import EMBEDDING, NUMBERS, POSITION, TFIDF, VIEWS
from step_jepa.pairing.retrieval import ACROSS
from step_jepa.plurals import counted
from step_jepa.reporting.dots import BASELINE, CONTROL, KINDS, TRAINED, Dot, DotPlot, figure_text, kind_of, share_dot
from step_jepa.reporting.matching import runs_by_folder, runs_of_model
from step_jepa.reporting.runs import Experiment, ReportData, Run
from step_jepa.training.model_card import public

BASELINES = {
    TFIDF: "TF-IDF",
    EMBEDDING: "mean token embedding",
    NUMBERS: "shared numbers",
    POSITION: "position",
}
SHUFFLED = "shuffled_pairs"
METHOD = ("objective", "loss", "lbd", "pairs", "regulariser", "target")  # a run and its control have these in common
MISSING = "-"


@dataclass
class Retrieval:
    """What was found of the same pairs.

    title       of the plot
    chance      of finding the next step by guessing; None where it is not known
    dots        by kind ("trained", "control", "other" models, "baseline"), a line of the plot each
    rows        all measures: model, measure, scorer, value and interval, chance, pairs
    shuffled    those of controls trained on shuffled pairs, each with the METHOD of its run
    leads       label of a trained model -> its difference to the best baseline: value, low, high, against
    methods     label of a trained model -> the METHOD of its run
    templates   of the problems; None where each was written by itself
    """

    title: str
    chance: float | None = None
    dots: dict[str, list[Dot]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    rows: list[list[str]] = field(default_factory=list)
    shuffled: list[tuple[Dot, list[Any]]] = field(default_factory=list)
    leads: dict[str, dict[str, Any]] = field(default_factory=dict)
    methods: dict[str, list[Any]] = field(default_factory=dict)
    templates: int | None = None

    @property
    def plot(self) -> DotPlot:
        chance = (self.chance, "chance") if self.chance else None
        return DotPlot(self.title, [dot for kind in KINDS for dot in self.dots[kind]], chance, is_share=True)

    def shuffled_of(self, label: str) -> list[Dot]:
        """The controls on shuffled pairs that were trained as this model otherwise."""
        return [dot for dot, method in self.shuffled if method == self.methods[label]]


def retrievals(data: ReportData) -> list[Retrieval]:
    """Of pairing.json files, those of the same pairs together; and of experiments."""
    by_pairs: dict[tuple[Any, Any], Retrieval] = {}
    run_by_folder = runs_by_folder(data.runs)
    for folder, pairing in data.pairings.items():
        settings = pairing["settings"]
        for model, result in pairing["models"].items():
            retrieval = by_pairs.setdefault((settings.get("records", folder), result["pool"]), _empty(result))
            runs = runs_of_model(model, Path(folder), settings.get("output_dir"), run_by_folder)
            _add(retrieval, public(model), result, runs[0] if len(runs) == 1 else None)
    options_by_arm = {run.arm: run.options for run in data.runs if run.arm}
    of_experiments = [_of_experiment(experiment, options_by_arm) for experiment in data.experiments]
    return [each for each in (*by_pairs.values(), *of_experiments) if each.plot.dots]


def _empty(result: Mapping[str, Any]) -> Retrieval:
    pairs = f"{counted(result['pairs'], 'pair')} of {counted(result['problems'], 'problem')}"
    return Retrieval(f"Next steps found among {result['pool']} ({pairs})", templates=result.get("templates"))


def _add(retrieval: Retrieval, model: str, result: Mapping[str, Any], run: Run | None) -> None:
    """The figures of one model."""
    name, measures = run.name if run else model, result["measures"]
    retrieval.rows += _rows(name, measures)
    known = {scorer: figure for scorer, figure in measures[ACROSS].items() if figure["value"] is not None}
    figures = {scorer: _for_new_templates(figure) for scorer, figure in known.items()}
    if VIEWS not in figures:
        return
    kind = kind_of(result["run"])
    control = result["run"].get("control")
    method = [result["run"].get(option) for option in METHOD]
    label = f"{name} (control: {control})" if kind == CONTROL else name
    of_model = share_dot(label, figures[VIEWS], kind, run.group if run else None)
    retrieval.chance = figures[VIEWS]["chance"]
    retrieval.dots[kind].append(of_model)
    if control == SHUFFLED:
        retrieval.shuffled.append((of_model, method))
    lead = result["differences"].get(ACROSS, {}).get(VIEWS)
    if kind == TRAINED and lead and lead["value"] is not None:
        retrieval.leads[label] = _for_new_templates(lead)
        retrieval.methods[label] = method
    if not retrieval.dots[BASELINE]:
        free = [scorer for scorer in BASELINES if scorer in figures]
        retrieval.dots[BASELINE] = [share_dot(BASELINES[scorer], figures[scorer], BASELINE) for scorer in free]


def _for_new_templates(figure: Mapping[str, Any]) -> dict[str, Any]:
    """With the interval that is wide enough for them, where problems are written from templates."""
    ends = {end: figure.get(f"{end}_template") for end in ("low", "high")}
    return {**figure, **{end: value for end, value in ends.items() if value is not None}}


def _rows(name: str, measures: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for measure, figure_by_scorer in measures.items():
        for scorer, figure in figure_by_scorer.items():
            title = BASELINES.get(scorer, scorer.replace("_", " "))
            chance = f"{figure['chance']:.3f}" if "chance" in figure else ""
            rows.append([name, measure.replace("_", " "), title, _text(figure), chance, str(figure["n"])])
    return rows


def _text(figure: Mapping[str, Any]) -> str:
    return MISSING if figure["value"] is None else figure_text(figure["value"], figure["low"], figure["high"])


# Of experiments


def _of_experiment(experiment: Experiment, options_by_arm: Mapping[str, Mapping[str, Any]]) -> Retrieval:
    """Means of the arms, with intervals for new seeds and problems; empty where views were not measured."""
    results = ExperimentResults.from_json(experiment.results)
    retrieval = Retrieval(f"Next steps found, {results.about.name}", experiment.chances.get(ACROSS))
    if ACROSS in results.measures:
        for arm, condition in results.conditions.items():
            kind = kind_of(options_by_arm.get(arm, {}))
            retrieval.dots[kind].append(_dot_of_arm(arm, condition, kind))
    for scorer, figure in results.free.get(ACROSS, {}).items():
        label = BASELINES.get(scorer, scorer)
        retrieval.dots[BASELINE].append(share_dot(label, asdict(figure), BASELINE))
    return retrieval


def _dot_of_arm(arm: str, condition: ConditionResult, kind: str) -> Dot:
    summary = condition.measures[ACROSS]
    if summary.new_problems is None:
        return Dot(arm, summary.mean, summary.mean, summary.mean, f"{summary.mean:.1%}", kind, arm)
    low, high = max(summary.new_problems[0], 0), min(summary.new_problems[1], 1)  # it can reach beyond
    return share_dot(arm, {"value": summary.mean, "low": low, "high": high}, kind, arm)
