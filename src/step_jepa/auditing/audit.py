"""`step-jepa audit`: what the past tells about each step, before any training, and how much of it is free.

What the past tells is in context - isolated, in nats (information.py). It has three parts:

    form    mismatched - isolated: what another problem's past tells as well. It holds an artefact: a step that is read
            alone lacks the row's first token, which models attend to when nothing else calls (arXiv 2309.17453).
    words   in context - mismatched, on tokens whose words stand before the step
    more    in context - mismatched, on all other tokens

The last two together are `specific`. Tokens are sorted by what the step's own past has, so `words` leans up and `more`
down, by as much, even where steps do not depend on their past. Figures are of the steps that are trained on: neither
step 0, which only the question is before, nor answers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from step_jepa import plots, terminal
from step_jepa.auditing.information import Information, measure_information
from step_jepa.auditing.overlap import ExampleText, overlap, with_offsets
from step_jepa.auditing.segmentation import SEGMENTATIONS, Segmentation, segment
from step_jepa.auditing.verdict import MOST_STEPS, bar_charts, dependence, document, shown_rows, statement
from step_jepa.batches import attention
from step_jepa.data.example import Example
from step_jepa.data.reading import read_records, say_what_was_read
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.plurals import counted
from step_jepa.run_files.writing import write_whole
from step_jepa.statistics.bootstrap import bootstrap

Array = NDArray[Any]
TABLES = ".md"


@dataclass
class AuditArguments(TemplateOptions, ReadingOptions):
    """Which rows, by which model. Raises UserError for a number out of range and for a picture in another format."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    limit: int | None = option(200, help="Take the first so many records only.", least=1)
    batch_size: int = option(4, help="Rows read at once.", least=1)
    max_length: int = option(1024, help="Cut rows to whole steps within this many tokens.", least=1)
    plain: bool = option(False, help="No chat framing, as for base models without a template.")
    output: str | None = option(None, help="Where the picture goes: a .png or .svg. The tables go beside it, in .md.")
    overwrite: bool = option(False, help="Replace the picture and the tables that are there.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.")
    seed: int = option(42, help="Of other problems' pasts, random places and resamples.", least=0, most=MOST_SEED)
    json: bool = option(False, help="JSON on stdout instead of rows.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.output:
            plots.check_output(self.output, overwrite=self.overwrite)
            _check_tables(Path(self.output).with_suffix(TABLES), overwrite=self.overwrite)


def run(args: AuditArguments) -> None:
    """Measure; print what decides, or JSON (see `audit`); save the picture, and the tables. Raises UserError."""
    result = audit(args)
    where = "the figures of each step: --output audit.png draws them, and writes their tables beside it"
    if args.output:
        with plots.style():
            plots.save(bar_charts(result), args.output)
        tables = Path(args.output).with_suffix(TABLES)
        write_whole(tables, document(result))
        where = f"the picture lies in {args.output}, the tables in {tables}"
    if args.json:
        terminal.show_json(result)
    else:
        terminal.result(shown_rows(result), result["statement"][0])
    terminal.ends(where, terminal.training(args.model_name, args.train_file))


def _check_tables(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: give another --output, or --overwrite")


def audit(args: AuditArguments) -> dict[str, Any]:
    """Every figure, ready for JSON.

    settings     the arguments
    rows         how many records were read
    ways         by way of cutting (SEGMENTATIONS): {rows, unscored}, where it is not scored, and why; else {rows,
                 steps_per_row, all, steps, answer}: figures of all steps, by index of the step (of the first
                 MOST_STEPS), and of answers (None without)
    level        nothing, little or much: what the past tells, with steps cut as the record has them
    statement    what the figures say, in sentences

    rows counts those with two steps beside their answer; the others are left out. Figures are

    count, tokens        steps and scored tokens
    per_token, per_step  nats, by part: past = form + specific, specific = words + more
    share                specific as a share of what another problem's past leaves open, -mismatched
    left                 nats per token that the step's own past leaves open, -in context
    length, tfidf, shared_numbers, only_answer
                         what is free, not of answers: mean tokens of a step, mean TF-IDF cosine with its past, mean
                         share of its numbers that its past has (None without numbers), share of steps that are answers

    Those in nats and `share` are {value, low, high}: a 95 % interval by bootstrap over problems, None where there is
    but one.

    Raises:
        UserError: for records that cannot be read, or fewer than two of them with two steps.
    """
    records = list(read_records(args.train_file, reading=args, max_examples=args.limit))
    say_what_was_read(args.train_file, records)
    model, tokenizer = _load(args)
    segmentations = segment(records, tokenizer, max_length=args.max_length, seed=args.seed)
    _check_usable(len(segmentations["record"].examples), len(records), args.train_file)
    model = model.to(PartialState().device).eval()
    flat = attention.obstacle(model) is None
    attention.check(model, flat=flat)
    ways = {name: _score(name, cut, model, tokenizer, args, flat=flat) for name, cut in segmentations.items()}
    level = dependence(ways["record"]["all"])
    result = {"settings": asdict(args), "rows": len(records), "ways": ways, "level": level}
    return {**result, "statement": statement(result)}


def _load(args: AuditArguments) -> tuple[Any, Any]:
    """Model and tokenizer."""
    framing: dict[str, Any] = {"plain": args.plain, "template": args}
    options: dict[str, Any] = {**framing, "model_init_kwargs": {"dtype": args.dtype}, "seed": args.seed}
    return setup_model_and_tokenizer(args.model_name, **options)


def _check_usable(usable: int, rows: int, file: str) -> None:
    """Raises UserError where too few rows of the file can be used."""
    if usable < 2:
        raise UserError(
            f"{file}: two steps beside the answer are in {usable} of {counted(rows, 'row')}: give two such rows or "
            "more, or cut others with step-jepa prepare --split_by"
        )


def _score(
    name: str, cut: Segmentation, model: Any, tokenizer: Any, args: AuditArguments, *, flat: bool
) -> dict[str, Any]:
    """The entry of one way of cutting (see `audit`)."""
    if cut.unscored:
        return {"rows": len(cut.examples), "unscored": cut.unscored}
    reading = {"pad_id": tokenizer.pad_token_id, "flat": flat, "batch_size": args.batch_size, "seed": args.seed}
    information = measure_information(model, cut.examples, name=f"steps cut {SEGMENTATIONS[name]}", **reading)
    return {"rows": len(cut.examples), **figures(information, cut.examples, tokenizer, args.seed)}


# Figures of one way of cutting.


class _Parts(NamedTuple):
    """What the past tells of each scored token, (T,) each, in nats: past = form + specific, specific = words + more."""

    past: Array
    form: Array
    specific: Array
    words: Array
    more: Array


def figures(information: Information, examples: Sequence[Example], tokenizer: Any, seed: int) -> dict[str, Any]:
    """The figures of one way of cutting (see `audit`)."""
    texts = [with_offsets(tokenizer, example) for example in examples]
    parts = _parts(information, texts)
    answers = np.array([-1 if example.answer is None else example.answer for example in examples])
    is_answer = information.step == answers[information.problem]

    def of(chosen: Array) -> dict[str, Any]:
        return _figures_of(chosen, parts, information, seed)

    indices = np.unique(information.step[~is_answer])[:MOST_STEPS].tolist()
    free = _free_by_step(texts, information, is_answer, indices)
    steps_per_row = [len(example.steps) - (example.answer is not None) for example in examples]
    return {
        "steps_per_row": float(np.mean(steps_per_row)),
        "all": of(~is_answer) | free[None],
        "answer": of(is_answer) if is_answer.any() else None,
        "steps": {index: of(~is_answer & (information.step == index)) | free[index] for index in indices},
    }


def _parts(information: Information, texts: Sequence[ExampleText]) -> _Parts:
    repeats = [text.repeats() for text in texts]
    places = zip(information.problem, information.token, strict=True)
    repeated = np.array([repeats[problem][token] for problem, token in places])
    specific = information.in_context - information.mismatched
    return _Parts(
        past=information.in_context - information.isolated,
        form=information.mismatched - information.isolated,
        specific=specific,
        words=np.where(repeated, specific, 0),
        more=np.where(repeated, 0, specific),
    )


def _figures_of(chosen: Array, parts: _Parts, information: Information, seed: int) -> dict[str, Any]:
    """Over the chosen tokens, (T,) bool; all tokens of a step are chosen, or none."""
    problem, step = information.problem[chosen], information.step[chosen]
    begins_step = np.append(True, (np.diff(problem) != 0) | (np.diff(step) != 0)).astype(float)
    several_problems = len(np.unique(problem)) > 1
    nats = {name: values[chosen] for name, values in parts._asdict().items()}
    mismatched_open = -information.mismatched[chosen]

    def interval(values: Array, weight: Array) -> dict[str, float | None]:
        value, low, high = bootstrap(values, problem, seed, weight=weight)
        return {"value": value, "low": low if several_problems else None, "high": high if several_problems else None}

    return {
        "count": int(begins_step.sum()),
        "tokens": len(problem),
        "per_token": {name: interval(values, np.ones(len(values))) for name, values in nats.items()},
        "per_step": {name: interval(values, begins_step) for name, values in nats.items()},
        "share": interval(nats["specific"], mismatched_open),
        "left": float((mismatched_open - nats["specific"]).mean()),
    }


def _free_by_step(
    texts: Sequence[ExampleText], information: Information, is_answer: Array, indices: Sequence[int]
) -> dict[int | None, dict[str, Any]]:
    """What is free, by these indices of steps, and of all steps under None: means over steps that are no answers, and
    the share of steps that are."""
    (problem, step), first = np.unique([information.problem, information.step], axis=1, return_index=True)
    shared, answer = overlap(texts, problem.tolist(), step.tolist()), is_answer[first]
    spans = [texts[example].example.steps[index] for example, index in zip(problem, step, strict=True)]
    length = np.array([stop - start for start, stop in spans])

    def of(steps: Array) -> dict[str, Any]:
        chosen = steps & ~answer
        return {
            "length": _mean(length[chosen]),
            "tfidf": _mean(shared.tfidf[chosen]),
            "shared_numbers": _mean(shared.numbers[chosen & ~np.isnan(shared.numbers)]),
            "only_answer": _mean(answer[steps]),
        }

    return {None: of(step > 0)} | {index: of(step == index) for index in indices}


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None
