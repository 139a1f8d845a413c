"""`step-jepa audit`: what the past tells about each step, before any training, and how much of it is free.

What the past tells is own - alone, in nats (information.py). It has three parts:

    form    other - alone: what another problem's past tells as well. It holds an artefact: a step that is read alone
            lacks the row's first token, which models attend to when nothing else calls (arXiv 2309.17453).
    words   own - other, on tokens whose words were said before the step
    more    own - other, on all other tokens

The last two together are `specific`. Tokens are sorted by what the own past has, so `words` leans up and `more` down,
by as much, even where steps do not depend on their past. Figures are of the steps that are trained on: neither step 0,
which only the question is before, nor answers.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from rich.console import Console

from step_jepa import plots
from step_jepa.auditing.cutting import WAYS, Cut, cuts
from step_jepa.auditing.information import Information, measure
from step_jepa.auditing.overlap import Written, overlap, written
from step_jepa.auditing.verdict import level, picture, statement, tables
from step_jepa.batches import attention
from step_jepa.data.sources import read_records
from step_jepa.data.tokens import Example
from step_jepa.errors import UserError
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.statistics import bootstrap

Array = NDArray[Any]


@dataclass
class AuditArguments:
    """Which rows, by which model. Raises UserError for a number out of range and for a picture in another format."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2 (the weights in the demo extra)."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    limit: int | None = field(default=200, metadata={"help": "Take the first so many records only."})
    batch_size: int = field(default=4, metadata={"help": "Rows read at once."})
    max_length: int = field(default=1024, metadata={"help": "Cut rows to whole steps within this many tokens."})
    plain: bool = field(default=False, metadata={"help": "No chat framing, as for base models without a template."})
    output: str | None = field(default=None, metadata={"help": "Where the picture goes: a name in .png or .svg."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the picture that is there."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(default=42, metadata={"help": "Of other problems' pasts, random places and resamples."})
    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of tables."})

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: give 1 or more")
        if self.output:
            plots.check_output(self.output, overwrite=self.overwrite)


def run(args: AuditArguments) -> None:
    """Measure; print tables and what they say, or JSON (see `audit`); save the picture. Raises UserError."""
    result = audit(args)
    if args.output:
        with plots.style():
            plots.save(picture(result), args.output)
    if args.json:
        print(json.dumps(result))
        return
    console = Console(highlight=False)
    console.print(*tables(result))
    console.print("\n".join(result["statement"]), soft_wrap=True)


def audit(args: AuditArguments) -> dict[str, Any]:
    """Every figure, ready for JSON.

    settings     the arguments
    rows         how many records were read
    ways         by way of cutting (WAYS): {rows, unscored}, where it is not scored, and why; else {rows, steps_per_row,
                 all, steps, answer}: figures of all steps, by index of the step, and of answers (None without)
    level        nothing, little or much: what the past tells, with steps cut as the record has them
    statement    what the figures say, in sentences

    rows counts those with two steps beside their answer; the others are left out. Figures are

    count, tokens        steps and scored tokens
    per_token, per_step  nats, by part: past = form + specific, specific = words + more
    share                specific as a share of what another problem's past leaves open, -other
    left                 nats per token that the own past leaves open, -own
    length, tfidf, shared_numbers, only_answer
                         what is free, not of answers: mean tokens of a step, mean TF-IDF cosine with its past, mean
                         share of its numbers that its past has (None without numbers), share of steps that are answers

    Those in nats and `share` are {value, low, high}: a 95 % interval by bootstrap over problems, None where there is
    but one. Raises UserError."""
    records = list(read_records(args.train_file, max_examples=args.limit))
    options: dict[str, Any] = {"plain": args.plain, "model_init_kwargs": {"dtype": args.dtype}, "seed": args.seed}
    model, tokenizer = setup_model_and_tokenizer(args.model_name, **options)
    found = cuts(records, tokenizer, max_length=args.max_length, seed=args.seed)
    usable = len(found["record"].examples)
    if usable < 2:
        raise UserError(
            f"{args.train_file}: {usable} of {len(records)} rows have two steps beside their answer: give two such "
            "rows or more, or cut others with step-jepa prepare --split_by"
        )
    model = model.to(PartialState().device).eval()
    attention.check(model)
    ways = {way: _scored(way, cut, model, tokenizer, args) for way, cut in found.items()}
    result = {"settings": asdict(args), "rows": len(records), "ways": ways, "level": level(ways["record"]["all"])}
    return {**result, "statement": statement(result)}


def _scored(way: str, cut: Cut, model: Any, tokenizer: Any, args: AuditArguments) -> dict[str, Any]:
    """The entry of one way of cutting (see `audit`)."""
    if cut.unscored:
        return {"rows": len(cut.examples), "unscored": cut.unscored}
    reading = {"pad_id": tokenizer.pad_token_id, "batch_size": args.batch_size, "seed": args.seed}
    information = measure(model, cut.examples, name=f"steps cut {WAYS[way]}", **reading)
    return {"rows": len(cut.examples), **figures(information, cut.examples, tokenizer, args.seed)}


# Figures of one way.


def figures(information: Information, examples: Sequence[Example], tokenizer: Any, seed: int) -> dict[str, Any]:
    """The figures of one way of cutting (see `audit`)."""
    texts = [written(tokenizer, each) for each in examples]
    parts = _parts(information, texts)
    answers = np.array([-1 if each.answer is None else each.answer for each in examples])
    answer = information.step == answers[information.problem]

    def of(chosen: Array) -> dict[str, Any]:
        chosen_parts = {name: values[chosen] for name, values in parts.items()}
        return _figures_of(chosen_parts, information.problem[chosen], information.step[chosen], seed)

    free = _free_of(texts, information, answer)
    indices = np.unique(information.step[~answer]).tolist()
    return {
        "steps_per_row": float(np.mean([len(each.steps) - (each.answer is not None) for each in examples])),
        "all": of(~answer) | free[None],
        "answer": of(answer) if answer.any() else None,
        "steps": {index: of(~answer & (information.step == index)) | free[index] for index in indices},
    }


def _parts(information: Information, texts: Sequence[Written]) -> dict[str, Array]:
    """(T,) each, in nats: past = form + specific, specific = words + more; and what another's past leaves open."""
    said_by_text = [text.said() for text in texts]
    places = zip(information.problem, information.token, strict=True)
    said = np.array([said_by_text[problem][token] for problem, token in places])
    specific = information.own - information.other
    return {
        "past": information.own - information.alone,
        "form": information.other - information.alone,
        "specific": specific,
        "words": np.where(said, specific, 0),
        "more": np.where(said, 0, specific),
        "open": -information.other,
    }


def _figures_of(parts: dict[str, Array], problem: Array, step: Array, seed: int) -> dict[str, Any]:
    first = np.append(True, (np.diff(problem) != 0) | (np.diff(step) != 0)).astype(float)  # one for each step

    def interval(values: Array, weight: Array) -> dict[str, float | None]:
        value, low, high = bootstrap(values, problem, seed, weight=weight)
        several = len(np.unique(problem)) > 1
        return {"value": value, "low": low if several else None, "high": high if several else None}

    told = {name: values for name, values in parts.items() if name != "open"}
    return {
        "count": int(first.sum()),
        "tokens": len(problem),
        "per_token": {name: interval(values, np.ones(len(values))) for name, values in told.items()},
        "per_step": {name: interval(values, first) for name, values in told.items()},
        "share": interval(parts["specific"], parts["open"]),
        "left": float((parts["open"] - parts["specific"]).mean()),
    }


def _free_of(texts: Sequence[Written], information: Information, answer: Array) -> dict[int | None, dict[str, Any]]:
    """What is free, by index of the step, and of all steps under None: means over steps that are no answers, and the
    share of steps that are."""
    (problem, step), place = np.unique([information.problem, information.step], axis=1, return_index=True)
    common, is_answer = overlap(texts, problem.tolist(), step.tolist()), answer[place]
    length = np.array([np.ptp(texts[a].example.steps[b]) for a, b in zip(problem, step, strict=True)])

    def of(index: Array) -> dict[str, Any]:
        chosen = index & ~is_answer
        return {
            "length": _mean(length[chosen]),
            "tfidf": _mean(common.tfidf[chosen]),
            "shared_numbers": _mean(common.numbers[chosen & ~np.isnan(common.numbers)]),
            "only_answer": _mean(is_answer[index]),
        }

    return {None: of(step > 0)} | {index: of(step == index) for index in np.unique(step).tolist()}


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None
