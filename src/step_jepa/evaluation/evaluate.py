"""`step-jepa evaluate`: how many problems a model solves, and its language-model and JEPA loss on held-out examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from step_jepa.batches.views import Views
from step_jepa.data.read_arguments import ReadingOptions, reading_values
from step_jepa.data.records import Record, has_solution
from step_jepa.data.sources import TEST, read_records
from step_jepa.data.template import TemplateOptions, template_identity, today
from step_jepa.errors import Interrupted, UserError
from step_jepa.evaluation.engines import require_vllm, transformers_engine, vllm_engine
from step_jepa.evaluation.figures import HELDOUT, ModelFigures, model_figures, no_figures, save_views
from step_jepa.evaluation.generation import Engine, SamplingParameters, generate, prompts_and_stops
from step_jepa.evaluation.judging import Match, judge, summarise, truth_of
from step_jepa.evaluation.resumable import Answers, append, begun, finished, resume, start
from step_jepa.evaluation.texts import CRITERIA
from step_jepa.losses import LOSSES
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import saved_predictors
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.options import MOST_SEED, Needs, check_bounds, check_needs, option
from step_jepa.run_files import (
    PARTIAL_FILE,
    PREDICTIONS_FILE,
    STATE_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
    json_lines,
    last_modified,
    locked,
    records_digest,
    write_json,
    write_whole,
)
from step_jepa.training.config import StepJEPAOptions, heldout_options, take_reading_of_run

console = Console(highlight=False, markup=False, soft_wrap=True)

_WHOLE_TEXTS = Needs("--match exact, or another one of whole texts,", lambda args: args.match != "math")
_DRAWN = Needs("--samples above 1", lambda args: args.samples > 1)


@dataclass
class EvaluateArguments(TemplateOptions, ReadingOptions):
    """What is evaluated on what. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    test_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    output_dir: str = option(help=f"Where {PREDICTIONS_FILE}, {SUMMARY_FILE} and {VIEWS_FILE} go.")
    limit: int | None = option(None, help="Take the first so many examples only.", least=1)
    batch_size: int = option(16, help="Examples that are read or answered at once.", least=1)
    max_new_tokens: int = option(256, help="An answer that is longer is cut off here.", least=1)
    match: Match = option(
        "math",
        help="What is right: the same mathematics as the truth; exactly its text; a text that begins so; one whose "
        "first 10 characters are the same; a regular expression that matches the same strings.",
    )
    also: list[str] = option(
        default_factory=list,
        help=f"Further criteria that each answer is judged by: some of {', '.join(CRITERIA)}.",
        needs=_WHOLE_TEXTS,
    )
    samples: int = option(
        1, help="Answers to each problem: 1 is greedy; of more, drawn, the majority's counts.", least=1
    )
    temperature: float = option(0.7, help="Of the drawn answers, with --samples above 1.", more_than=0, needs=_DRAWN)
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
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.")
    seed: int = option(
        42,
        help="Seed of drawn answers, of predictor rows that were never trained, of pairs = random.",
        least=0,
        most=MOST_SEED,
    )
    overwrite: bool = option(False, help="Replace the results that output_dir holds.")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)
        if unknown := [name for name in self.also if name not in CRITERIA]:
            raise UserError(f"also = {unknown[0]}: give some of {', '.join(CRITERIA)}")

    @property
    def drawn(self) -> bool:
        """Whether answers are drawn, and not the likeliest."""
        return self.samples > 1


def run(args: EvaluateArguments) -> None:
    """Write predictions.jsonl, one row per record (see `judge`), summary.json (see `summarise`; `seconds` are those of
    this call, once the model is loaded) and views.safetensors (see `save_views`), and print a table.

    Interrupted, the same call goes on where it stopped; finished, it prints what there is. Raises UserError for
    unusable input, if no record has a known answer, rather than mix or replace results, and where another process
    writes into the folder."""
    with locked(Path(args.output_dir)):
        _run_alone(args)


def _run_alone(args: EvaluateArguments) -> None:
    args.chat_template_date = args.chat_template_date or _begun_on(args) or today()
    take_reading_of_run(resolve(args.model_name), args)
    options, records = _heldout_options(args), _read_problems(args)
    folder, identity, settings = Path(args.output_dir), _identity(args, records), _settings(args, records, options)
    if not args.overwrite and (summary := finished(folder, _compared(settings))):
        (folder / PARTIAL_FILE).unlink(missing_ok=True)  # should the call have been killed just before that
        _print_results(folder, summary)
        console.print("they were finished before, by the same command; --overwrite makes them anew")
        return
    answers = resume(folder, identity, overwrite=args.overwrite)
    model, tokenizer = _load_model(args, options)
    ready = time.perf_counter()
    held_out = _held_out_figures(args, model, tokenizer, records, options)
    start(folder, identity, answers)
    _answer(args, model, tokenizer, records, answers)
    rows = _judge_all(args, records, answers)
    summary = {
        **summarise(rows),
        **held_out.figures,
        "longest_solution": longest_solution(tokenizer, records),
        "cut": held_out.data.cut,
        "left_out": held_out.data.left_out,
        "seconds": time.perf_counter() - ready,
        "settings": settings,
    }
    _write_results(folder, rows, held_out.views, summary)
    _print_results(folder, summary)


def _begun_on(args: EvaluateArguments) -> str | None:
    """The day on which an earlier call began what this one goes on with: some chat templates write it."""
    return None if args.overwrite else begun(Path(args.output_dir)).get("chat_template_date")


def _read_problems(args: EvaluateArguments) -> list[Record]:
    """The records, once nothing speaks against evaluating the model on them. Raises UserError."""
    if args.engine == "vllm":
        require_vllm(args.model_name)
    records = list(read_records(args.test_file, TEST, args, max_examples=args.limit, for_evaluation=True))
    if not any(truth_of(record, args.match) for record in records):
        raise UserError(f"{args.test_file}: no record has a known answer: give each an `answer`, or --match exact")
    return records


def _identity(args: EvaluateArguments, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What two calls must have in common for the answers of one to serve the other. Answers are judged afterwards, and
    more samples go on from fewer."""
    return {
        "model_name": args.model_name,
        "model_written": last_modified(resolve(args.model_name)),
        "records": records_digest(records),
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "engine": args.engine,
        **template_identity(args),
        "sampling": [args.temperature, args.seed] if args.drawn else None,
    }


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
        **asdict(args),
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
    prompts, stops = prompts_and_stops(model, tokenizer, records, samples=args.samples)
    temperature = args.temperature if args.drawn else None
    parameters = SamplingParameters(stops, args.max_new_tokens, temperature, args.seed)
    engine = _engine(args, model, tokenizer, parameters)
    unanswered = [prompt for prompt in prompts if (prompt.index, prompt.sample) not in answers]
    generations = generate(engine, tokenizer, unanswered, parameters, batch_size=args.batch_size)
    try:
        append(Path(args.output_dir), generations, answers)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(answers)} of {len(prompts)} answers: the same command goes on from there"
        ) from None


def _engine(args: EvaluateArguments, model: Any, tokenizer: Any, parameters: SamplingParameters) -> Engine:
    if args.engine == "hf":
        return transformers_engine(model, tokenizer, parameters)
    model.cpu()  # vLLM loads a copy
    torch.cuda.empty_cache()
    return vllm_engine(args.model_name, args.dtype, parameters)


def _judge_all(args: EvaluateArguments, records: Sequence[Mapping[str, Any]], answers: Answers) -> list[dict[str, Any]]:
    rows = []
    for index, record in enumerate(records):
        generations = [answers[index, sample] for sample in range(args.samples)]
        rows.append(judge(record, generations, args.match, args.also))
    return rows


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


def _print_results(folder: Path, summary: Mapping[str, Any]) -> None:
    console.print(_table(summary))
    limit, longest = summary["settings"].get("max_new_tokens"), summary.get("longest_solution")
    if summary.get("truncated") and longest and limit and longest >= limit:
        console.print(
            f"{summary['truncated']} answers were cut off at {limit} tokens; the longest solution in the file has "
            f"{longest}: --max_new_tokens {longest + 1} would be enough for it"
        )
    console.print(f"{PREDICTIONS_FILE} and {SUMMARY_FILE} lie in {folder}")


def _table(summary: Mapping[str, Any]) -> Table:
    low, high = summary["ci95"]
    settings = summary["settings"]
    table = Table(title=Text(f"{settings['model_name']} on {settings['test_file']}"), show_header=False)
    table.add_row("correct", f"{summary['correct']} of {summary['n']}")
    table.add_row("accuracy", f"{summary['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})")
    if settings["samples"] > 1:
        table.add_row("accuracy of single samples", f"{summary['sample_accuracy']:.1%}")
    for name in ("without_truth", "no_answer", "truncated", "over_generated"):
        table.add_row(name.replace("_", " "), str(summary[name]))
    for name, share in summary.get("by", {}).items():
        table.add_row(f"right by {name}", f"{share:.1%}")
    for kind, count in summary.get("errors", {}).items():
        table.add_row(f"wrong: {kind.replace('_', ' ')}", str(count))
    for name in HELDOUT:
        table.add_row(*_heldout_row(name, summary[name], settings))
    return table


def _heldout_row(name: str, value: float | None, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The JEPA loss says what it is the loss of: such losses can only be compared where they are of the same pairs."""
    title, text = name.replace("_", " "), _number(value)
    if name != "jepa_loss":
        return title, text
    objectives = " + ".join(settings["objective"])
    predictors = f"{settings['predictors']} {'trained' if settings['trained_predictors'] else 'untrained'} predictors"
    ahead = "" if settings["horizon"] == 1 else f", {settings['horizon']} steps ahead"
    return f"{title} ({objectives}, {settings['loss']}, pairs {settings['pairs']}{ahead})", f"{text} ({predictors})"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
