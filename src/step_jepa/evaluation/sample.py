"""`step-jepa sample`: a teacher's step-by-step answers to problems, those that are right kept as training data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from step_jepa import terminal
from step_jepa.data.records import Record, context_of
from step_jepa.data.splits import TRAIN
from step_jepa.data.template import TemplateOptions, today
from step_jepa.errors import UserError
from step_jepa.evaluation.answering import AnsweringOptions, collect, identity, read_problems, written_here
from step_jepa.evaluation.chat_server import ChatPrompt, ChatServer
from step_jepa.evaluation.generation import Generation
from step_jepa.evaluation.resumable import Answers, read_answers, write_answers
from step_jepa.evaluation.traces import GOES_ON, Keep, Traces
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_generation_config, load_tokenizer, setup_model_and_tokenizer
from step_jepa.options import Needs, changed, check_bounds, check_needs, option, option_fields
from step_jepa.plurals import counted
from step_jepa.run_files.identity import differing
from step_jepa.run_files.locking import locked
from step_jepa.run_files.writing import json_lines, write_whole
from step_jepa.training.saved_options import take_reading_of_run, view_options

_SERVER = Needs("--engine openai", lambda args: args.engine == "openai")
REMEDY = "give another --output_file, or --overwrite"


@dataclass(kw_only=True)
class SampleArguments(AnsweringOptions):
    """Who answers what, and what is kept. Raises UserError for a number out of range."""

    input_file: str = option(help="Problems with their answers, or whatever `step-jepa prepare` reads.", is_path=True)
    output_file: str = option(
        help="Where what is kept goes, as JSON lines that prepare reads; all answers go to its .answers.jsonl."
    )
    samples: int = option(5, help="Answers to each problem: 1 is greedy; more are drawn.", least=1)
    keep: Keep = option("right", help="Only what is right, or all; neither keeps what was cut off.")
    per_problem: int | None = option(None, help="Keep at most so many answers to one problem, the first ones.", least=1)
    max_new_tokens: int = option(1024, help="An answer that is longer is cut off here, and not kept.", least=1)
    base_url: str | None = option(
        None,
        help="The server's address, up to /v1; by default OpenAI's own. Its key is read from OPENAI_API_KEY.",
        needs=_SERVER,
    )
    overwrite: bool = option(False, help="Replace output_file; answers that still serve are not written anew.")
    json: bool = option(False, help="JSON on stdout instead of rows.")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_needs(self)
        framing = {each.name for each in option_fields(TemplateOptions)}
        if self.engine == "openai" and (given := [each.name for each in changed(self) if each.name in framing]):
            raise UserError(f"--{given[0]}: a server frames conversations by itself: leave it out with --engine openai")


def run(args: SampleArguments) -> None:
    """Have the problems answered, write those answers to output_file that are kept (see `Traces`), and print counts of
    what was kept and what was not.

    Interrupted, or left alone by its server, the same call goes on where it stopped; so it does with more samples, and
    with another choice of what is kept. Raises UserError for unusable input, rather than replace a file, and where
    nothing is kept."""
    output, answers_file = _paths(args)
    with locked(output.parent, f".{output.name}.lock", "give another --output_file"):
        if args.engine != "openai":
            take_reading_of_run(resolve(args.model_name), args)
        problems = read_problems(args.input_file, TRAIN, args, truths=args.keep == "right")
        answers = _all_answers(args, problems, answers_file)
        traces = _kept(args, problems, answers)
        _write(args, traces, output, answers_file)
    rows = _rows(args, problems, answers, traces)
    solved = f"{traces.solved} of {counted(len(problems), 'problem')}"
    kept = f"{counted(len(traces.kept), 'answer')} of {args.model_name} kept, of {solved}."
    if args.json:
        terminal.show_json(rows)
    else:
        terminal.result(rows, kept)
    following = terminal.typed("prepare", {"input_file": output, "output_file": output.with_suffix(".steps.jsonl")})
    terminal.ends(f"what was kept lies in {output}, all answers in {answers_file}", following)


def _paths(args: SampleArguments) -> tuple[Path, Path]:
    """Where what is kept goes, and where all answers go. Raises UserError."""
    output, source = Path(args.output_file), Path(args.input_file)
    if not output.name or output.is_dir():
        raise UserError(f"--output_file {output} is a folder: name a file")
    answers_file = output.with_suffix(".answers.jsonl")
    if source.resolve() in (output.resolve(), answers_file.resolve()):
        raise UserError(f"{source} would be overwritten: give another --output_file")
    return output, answers_file


def _all_answers(args: SampleArguments, problems: Sequence[Record], file: Path) -> Answers:
    """Those that there are, and those that were wanting. Raises UserError."""
    there, answers = read_answers(file, REMEDY) if file.exists() else ({}, {})
    args.chat_template_date = args.chat_template_date or there.get("chat_template_date") or today()
    about = identity(args, problems)
    if there and (others := differing(about, there)):
        if not args.overwrite:
            raise UserError(f"{file} holds answers begun with another {others}: {REMEDY}")
        answers = {}
    wanted = list(product(range(len(problems)), range(args.samples)))
    missing = [each for each in wanted if each not in answers]
    if not missing:
        return answers
    if Path(args.output_file).exists() and not args.overwrite:
        raise UserError(
            f"{args.output_file} exists, with {counted(len(missing), 'answer')} still to be written: {REMEDY}"
        )
    generations = _written(args, problems, answers, missing)
    write_answers(file, about, answers)
    collect(file, generations, answers, len(wanted))
    return answers


def _written(
    args: SampleArguments, problems: Sequence[Record], answers: Answers, missing: Sequence[tuple[int, int]]
) -> Iterator[Generation]:
    """Those that are missing, by the engine."""
    if args.engine == "openai":
        return _served(args, problems, missing)
    folder = resolve(args.model_name)
    framing: dict[str, Any] = {"template": args, "plain": view_options(folder).get("plain", False)}
    if args.engine == "vllm":
        config, tokenizer = load_generation_config(folder), load_tokenizer(folder, **framing)
        return written_here(args, None, config, tokenizer, problems, answers)
    weights = {"dtype": args.dtype}
    model, tokenizer = setup_model_and_tokenizer(args.model_name, model_init_kwargs=weights, **framing)
    return written_here(args, model, model.generation_config, tokenizer, problems, answers)


def _served(
    args: SampleArguments, problems: Sequence[Record], missing: Sequence[tuple[int, int]]
) -> Iterator[Generation]:
    prompts = [
        ChatPrompt(index, sample, context_of(problems[index]), problems[index].get("tools"))
        for index, sample in missing
    ]
    server = ChatServer(args.model_name, args.base_url, args.sampling_parameters([]))
    return server.answers(prompts, args.batch_size)


def _kept(args: SampleArguments, problems: Sequence[Record], answers: Answers) -> Traces:
    traces = Traces(args.match, args.keep, args.per_problem)
    for index, sample in product(range(len(problems)), range(args.samples)):
        traces.look_at(problems[index], answers[index, sample])
    return traces


def _write(args: SampleArguments, traces: Traces, output: Path, answers_file: Path) -> None:
    """Raises UserError where there is nothing to write, or something else stands there."""
    if not traces.kept:
        why = ", ".join(f"{count} {reason}" for reason, count in traces.counts.most_common())
        raise UserError(f"no answer can be kept: {why}; all of them lie in {answers_file}")
    text = json_lines(traces.kept)
    if output.exists() and not args.overwrite and output.read_text(encoding="utf-8") != text:
        raise UserError(f"{output} exists and holds something else: {REMEDY}")
    write_whole(output, text)


def _rows(args: SampleArguments, problems: Sequence[Record], answers: Answers, traces: Traces) -> dict[str, str]:
    looked_at = [answers[each] for each in product(range(len(problems)), range(args.samples))]
    rows = {
        "problems": str(len(problems)),
        "answers": f"{len(looked_at)} of {counted(sum(answer.new_tokens for answer in looked_at), 'token')}",
        "kept": f"{len(traces.kept)}, of {counted(traces.solved, 'problem')}",
    }
    for reason, count in traces.counts.most_common():
        rows[reason if reason == GOES_ON else f"not kept: {reason}"] = str(count)
    return rows
