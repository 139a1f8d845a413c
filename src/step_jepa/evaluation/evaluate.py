"""`step-jepa evaluate`: how many problems a model solves, and its language-model and JEPA loss on held-out examples."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from step_jepa import terminal
from step_jepa.batches.views import Views
from step_jepa.data.reading_options import ReadingOptions, reading_values
from step_jepa.data.records import has_solution
from step_jepa.data.splits import TEST
from step_jepa.data.template import today
from step_jepa.errors import UserError
from step_jepa.evaluation.answering import DRAWN, AnsweringOptions, collect, identity, read_problems, written_here
from step_jepa.evaluation.figures import ModelFigures, model_figures, no_figures, save_views
from step_jepa.evaluation.judging import judge, summarise
from step_jepa.evaluation.resumable import IDENTITY, Answers, begun, finished, resume, start
from step_jepa.evaluation.scoring import Scorer, centred_surprise, mean_nll, score_samples
from step_jepa.evaluation.selection import NLL, RULES, SCORE, SURPRISE, compared, select
from step_jepa.evaluation.texts import CRITERIA
from step_jepa.losses import LOSSES
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import saved_predictors
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.options import MOST_SEED, Needs, check_bounds, check_needs, option
from step_jepa.plurals import counted
from step_jepa.run_files.identity import last_modified, records_digest
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import PARTIAL_FILE, PREDICTIONS_FILE, STATE_FILE, SUMMARY_FILE, VIEWS_FILE
from step_jepa.run_files.writing import json_lines, write_json, write_whole
from step_jepa.training.jepa_options import StepJEPAOptions
from step_jepa.training.saved_options import heldout_options, take_reading_of_run

logger = logging.getLogger(__name__)
MANY = 0.25  # of the answers, cut off

_WHOLE_TEXTS = Needs("--match exact, or another one of whole texts,", lambda args: args.match != "math")


@dataclass(kw_only=True)
class EvaluateArguments(AnsweringOptions):
    """What is evaluated on what. Raises UserError for a number out of range."""

    test_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    output_dir: str = option(help=f"Where {PREDICTIONS_FILE}, {SUMMARY_FILE} and {VIEWS_FILE} go.")
    also: list[str] = option(
        default_factory=list,
        help=f"Further criteria that each answer is judged by: some of {', '.join(CRITERIA)}.",
        needs=_WHOLE_TEXTS,
    )
    select: list[str] = option(
        default_factory=lambda: ["vote"],
        help=f"Of several answers, by which rules one is taken, side by side: some of {', '.join(RULES)}; the first "
        "rule's counts.",
        needs=DRAWN,
    )
    engine: Literal["hf", "vllm"] = option(
        "hf", help="Who writes the answers: transformers, or vLLM (installed beside this)."
    )
    predictors: int = option(
        1, help="Predictor tokens of the JEPA loss, unless the model's folder holds trained ones.", least=0
    )
    objective: list[str] | None = option(
        None, help="Objectives of the held-out figures; those of the run that the model comes from, else step_jepa."
    )
    pairs: Pairs | None = option(
        None, help="Which pairs of steps the JEPA loss is taken on; as in that run, else all of them."
    )
    loss: str | None = option(None, help="Distance of the views; as in that run, else cosine.")
    max_length: int | None = option(
        1024, help="Longest row of the losses in tokens; longer rows keep whole steps only.", least=1
    )
    seed: int = option(
        42,
        help="Seed of drawn answers, of predictor rows that were never trained, of pairs = random.",
        least=0,
        most=MOST_SEED,
    )
    overwrite: bool = option(False, help="Replace the results that output_dir holds.")
    json: bool = option(False, help="JSON on stdout instead of rows.")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)
        if unknown := [name for name in self.also if name not in CRITERIA]:
            raise UserError(f"also = {unknown[0]}: give some of {', '.join(CRITERIA)}")
        unknown = [name for name in self.select if name not in RULES]
        if unknown or not self.select or len(set(self.select)) < len(self.select):
            raise UserError(f"select = {' '.join(self.select)}: give some of {', '.join(RULES)}, each once")


def run(args: EvaluateArguments) -> None:
    """Write predictions.jsonl, one row per record (see `judge`), summary.json (see `summarise`; `seconds` are those of
    this call, once the model is loaded) and views.safetensors (see `save_views`), and print
    the figures.

    Interrupted, the same call goes on where it stopped; finished, it prints what there is, or judges the answers anew
    where only that is asked for in another way. Raises UserError for unusable input, if no record has a known answer,
    rather than mix or replace results, and where another process writes into the folder."""
    with locked(Path(args.output_dir)):
        _run_alone(args)


def _run_alone(args: EvaluateArguments) -> None:
    args.chat_template_date = args.chat_template_date or _begun_on(args) or today()
    take_reading_of_run(resolve(args.model_name), args)
    options, records = _heldout_options(args), read_problems(args.test_file, TEST, args)
    folder, about, settings = Path(args.output_dir), identity(args, records), _settings(args, records, options)
    if not args.overwrite and (summary := finished(folder, about, _compared(settings))):
        (folder / PARTIAL_FILE).unlink(missing_ok=True)  # should the call have been killed just before that
        terminal.note("they were finished before, by the same command; --overwrite makes them anew")
        _show(args, summary)
        return
    answers = resume(folder, about, args.samples, overwrite=args.overwrite)
    model, tokenizer = _load_model(args, options)
    ready = time.perf_counter()
    held_out = _held_out_figures(args, model, tokenizer, records, options)
    start(folder, about, answers)
    _answer(args, model, tokenizer, records, answers)
    rows, selection = _judge_all(args, records, answers), None
    if args.drawn:
        rows, selection = _selection(args, model, tokenizer, records, rows)
    summary = {
        **summarise(rows),
        "selection": selection,
        **held_out.figures,
        "longest_solution": longest_solution(tokenizer, records),
        "cut": held_out.data.cut,
        "left_out": held_out.data.left_out,
        "seconds": time.perf_counter() - ready,
        "settings": settings,
        IDENTITY: about,
    }
    _write_results(folder, rows, held_out.views, summary)
    _show(args, summary)


def _begun_on(args: EvaluateArguments) -> str | None:
    """The day on which an earlier call began what this one goes on with: some chat templates write it."""
    return None if args.overwrite else begun(Path(args.output_dir)).get("chat_template_date")


def _heldout_options(args: EvaluateArguments) -> StepJEPAOptions:
    """How held-out figures are taken. Raises UserError."""
    folder = resolve(args.model_name)
    options = heldout_options(
        folder,
        objective=args.objective,
        pairs=args.pairs,
        loss=args.loss,
        predictors=args.predictors,
    )
    options.max_length = args.max_length
    if LOSSES[options.loss].centred and not Path(folder, STATE_FILE).exists():
        raise UserError(
            f"--loss {options.loss} needs the running means of a run with it, which {args.model_name} lacks"
        )
    return options


def _settings(
    args: EvaluateArguments, records: Sequence[Mapping[str, Any]], options: StepJEPAOptions
) -> dict[str, Any]:
    """What the results are of, as the summary has it; the objective, pairs and loss are those that were taken."""
    return {
        **{name: value for name, value in asdict(args).items() if name != "json"},
        "objective": options.objective,
        "pairs": options.pairs,
        "loss": options.loss,
        "horizon": options.horizon,
        "predictors": options.predictors,
        "trained_predictors": saved_predictors(args.model_name) is not None,
        "model_written": last_modified(resolve(args.model_name)),
        "records": records_digest(records),
    }


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change results; how records were read, their digest tells."""
    others = {"output_dir", "overwrite", *reading_values(ReadingOptions())}
    return {name: value for name, value in settings.items() if name not in others}


def _load_model(args: EvaluateArguments, options: StepJEPAOptions) -> tuple[Any, Any]:
    """The model as its own run trained it, and its tokenizer. Raises UserError."""
    loading = options.setup_arguments() | {"template": args, "model_init_kwargs": {"dtype": args.dtype}}
    model, tokenizer = setup_model_and_tokenizer(args.model_name, seed=args.seed, **loading)
    return model, tokenizer


def _held_out_figures(
    args: EvaluateArguments, model: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], options: StepJEPAOptions
) -> ModelFigures:
    """Those of the records that have a solution."""
    solved = [record for record in records if has_solution(record)]
    if not solved:
        return no_figures()
    return model_figures(model, solved, options, processing_class=tokenizer, batch_size=args.batch_size, seed=args.seed)


def _answer(
    args: EvaluateArguments, model: Any, tokenizer: Any, records: Sequence[Mapping[str, Any]], answers: Answers
) -> None:
    """Have those written that are not among the answers yet. Raises Interrupted."""
    if args.engine == "vllm":
        model.cpu()  # vLLM loads a copy
        torch.cuda.empty_cache()
    wanted = args.samples * len(records)
    if answers:
        terminal.note(f"there before: {len(answers)} of {counted(wanted, 'answer')}")
    generations = written_here(args, model, model.generation_config, tokenizer, records, answers)
    collect(Path(args.output_dir, PARTIAL_FILE), generations, answers, wanted)


def _judge_all(args: EvaluateArguments, records: Sequence[Mapping[str, Any]], answers: Answers) -> list[dict[str, Any]]:
    rows = []
    for index, record in enumerate(records):
        generations = [answers[index, sample] for sample in range(args.samples)]
        rows.append(judge(record, generations, args.match, args.also))
    return rows


def _selection(
    args: EvaluateArguments,
    model: Any,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of several answers with those that the first rule takes, and how all rules compare."""
    rules = [rule for rule in RULES if rule in args.select]
    rules.sort(key=args.select.index)
    loading: dict[str, Any] = {"template": args, "model_init_kwargs": {"dtype": args.dtype}}
    scorers: dict[str, Scorer] = {
        NLL: partial(mean_nll, model, tokenizer, batch_size=args.batch_size),
        SURPRISE: partial(centred_surprise, args.model_name, batch_size=args.batch_size, seed=args.seed, **loading),
    }
    needed = dict.fromkeys(SCORE[rule] for rule in rules if rule in SCORE)
    tokens_read = {score: score_samples(score, rows, records, scorers[score]) for score in needed}
    rows = [select(row, rules, args.match) for row in rows]
    return rows, compared(rows, tokens_read)


def _write_results(folder: Path, rows: list[dict[str, Any]], views: Views, summary: Mapping[str, Any]) -> None:
    """The summary is written last but for the tidying up: where it is, all is."""
    write_whole(folder / PREDICTIONS_FILE, json_lines(rows))
    save_views(folder, views)
    write_json(folder / SUMMARY_FILE, summary)
    (folder / PARTIAL_FILE).unlink()


def longest_solution(tokenizer: Any, records: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the longest solution, 0 where there is none: as many, and one to stop, are enough for it."""
    solutions = (record["messages"][-1]["content"] for record in records if has_solution(record))
    return max((len(tokenizer(solution)["input_ids"]) for solution in solutions), default=0)


def _show(args: EvaluateArguments, summary: Mapping[str, Any]) -> None:
    if args.json:
        terminal.show_json(summary)
    else:
        terminal.result(_rows(summary), _sentence(summary))
    _say_what_is_cut_off(summary)
    page = terminal.reporting(args.output_dir)
    where = f"{PREDICTIONS_FILE}, and with every figure {SUMMARY_FILE}, lie in {args.output_dir}"
    terminal.ends(where, page)


def _say_what_is_cut_off(summary: Mapping[str, Any]) -> None:
    """A warning where it is more than a quarter of the answers."""
    limit, longest = summary["settings"].get("max_new_tokens"), summary.get("longest_solution") or 0
    answers, cut = summary["n"] + summary["without_truth"], summary["truncated"]
    enough = f"the longest solution in the file has {longest}: --max_new_tokens {longest + 1} would be enough for it"
    too_short = bool(limit and longest >= limit)
    remedy = enough if too_short else "raise --max_new_tokens, unless the model does not know where to stop"
    if cut > MANY * answers:
        logger.warning("%d of %s cut off at %s tokens; %s", cut, counted(answers, "answer"), limit, remedy)
    elif cut and too_short:
        terminal.note(f"{counted(cut, 'answer')} cut off at {limit} tokens; {enough}")


def _sentence(summary: Mapping[str, Any]) -> str:
    settings = summary["settings"]
    problems = f"{summary['correct']} of {counted(summary['n'], 'problem')} of {settings['test_file']}"
    return f"{settings['model_name']} solves {problems}: accuracy {_accuracy(summary)}."


def _rows(summary: Mapping[str, Any]) -> dict[str, str]:
    """Those that decide; the others stand in the summary."""
    kinds = ("no_answer", "truncated", "over_generated", "without_truth")
    rows = {"answers": ", ".join(f"{summary[kind]} {kind.replace('_', ' ')}" for kind in kinds)}
    rows |= _selection_rows(summary) if summary.get("selection") else {}
    rows |= dict(_heldout_row(name, summary[name], summary["settings"]) for name in ("lm_loss", "jepa_loss"))
    paired, unpaired = (_number(summary[name]) for name in ("cosine_paired", "cosine_unpaired"))
    return rows | {"cosine of views": f"{paired} paired, {unpaired} unpaired, {counted(summary['pairs'] or 0, 'pair')}"}


def _selection_rows(summary: Mapping[str, Any]) -> dict[str, str]:
    """Where a problem has several answers."""
    selection, rows = summary["selection"], {"accuracy of single samples": f"{summary['sample_accuracy']:.1%}"}
    for rule, figures in selection["rules"].items():
        rows[f"selected by {rule}"] = f"{_accuracy(figures)}, {counted(figures['tokens_read'], 'token')} read"
    rows[f"any of {summary['settings']['samples']} right"] = _accuracy(selection["any"])
    return rows | {"tokens written": str(selection["tokens_written"])}


def _accuracy(figures: Mapping[str, Any]) -> str:
    low, high = figures["ci95"]
    return f"{figures['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _heldout_row(name: str, value: float | None, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The JEPA loss says what it is the loss of: such losses can only be compared where they are of the same pairs."""
    title, text = name.replace("_", " "), _number(value)
    if name != "jepa_loss":
        return title, text
    objectives = " + ".join(settings["objective"])
    kind = "trained predictor" if settings["trained_predictors"] else "untrained predictor"
    predictors = counted(settings["predictors"], kind)
    ahead = "" if settings["horizon"] == 1 else f", {settings['horizon']} steps ahead"
    return f"{title} ({objectives}, {settings['loss']}, pairs {settings['pairs']}{ahead})", f"{text} ({predictors})"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
