"""Problems, and a model's answers to them: what `evaluate` and `sample` have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from step_jepa.data.reading import read_records, say_what_was_read
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.records import Record
from step_jepa.data.splits import Splits
from step_jepa.data.template import TemplateOptions, template_identity
from step_jepa.errors import Interrupted, UserError
from step_jepa.evaluation.chat_server import require_openai
from step_jepa.evaluation.engines import require_vllm, transformers_engine, vllm_engine
from step_jepa.evaluation.generation import Generation, SamplingParameters, generate, prompts_and_stops
from step_jepa.evaluation.judging import Match, truth_of
from step_jepa.evaluation.resumable import Answers, append
from step_jepa.models.builtin import resolve
from step_jepa.options import MOST_SEED, Needs, option
from step_jepa.plurals import counted
from step_jepa.run_files.identity import last_modified, records_digest

DRAWN = Needs("--samples above 1", lambda args: args.samples > 1)
_HERE = Needs("--engine hf or vllm", lambda args: args.engine != "openai")


@dataclass(kw_only=True)
class AnsweringOptions(TemplateOptions, ReadingOptions):
    """Who answers how many problems, how, and what is right."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    limit: int | None = option(None, help="Take the first so many examples only.", least=1)
    batch_size: int = option(16, help="Examples that are read or answered at once.", least=1)
    max_new_tokens: int = option(256, help="An answer that is longer is cut off here.", least=1)
    match: Match = option(
        "math",
        help="What is right: the same mathematics as the truth; exactly its text; a text that begins so; one whose "
        "first 10 characters are the same; a regular expression that matches the same strings.",
    )
    samples: int = option(
        1, help="Answers to each problem: 1 is greedy; of more, drawn, the majority's counts.", least=1
    )
    temperature: float = option(0.7, help="Of the drawn answers, with --samples above 1.", more_than=0, needs=DRAWN)
    engine: Literal["hf", "vllm", "openai"] = option(
        "hf", help="Who writes the answers: transformers, vLLM, or a server that speaks OpenAI's chat completions."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.", needs=_HERE)
    seed: int = option(42, help="Seed of drawn answers.", least=0, most=MOST_SEED)

    @property
    def drawn(self) -> bool:
        """Whether answers are drawn, and not the likeliest."""
        return self.samples > 1

    def sampling_parameters(self, stop_token_ids: list[int]) -> SamplingParameters:
        """How the answers are written."""
        return SamplingParameters(
            stop_token_ids, self.max_new_tokens, self.temperature if self.drawn else None, self.seed
        )


def read_problems(source: str, splits: Splits, args: AnsweringOptions, *, truths: bool = True) -> list[Record]:
    """The records, once nothing speaks against the engine.

    Args:
        source: as `read_records` takes it.
        splits: those that are looked for in it.
        args: how it is read.
        truths: whether one of them at least must have a known answer.

    Raises:
        UserError: the engine is not installed, or the source cannot be used.
    """
    if args.engine == "vllm":
        require_vllm(args.model_name)
    if args.engine == "openai":
        require_openai()
    records = list(read_records(source, splits, args, max_examples=args.limit, for_evaluation=True))
    if truths and not any(truth_of(record, args.match) for record in records):
        raise UserError(f"{source}: no record has a known answer: give each an `answer`, or --match exact")
    say_what_was_read(source, records)
    return records


def identity(args: AnsweringOptions, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What two calls must have in common for the answers of one to serve the other. Answers are judged afterwards, and
    more samples go on from fewer. A server may be another one, and has its own weights and chat template."""
    about = {
        "model_name": args.model_name,
        "records": records_digest(records),
        "max_new_tokens": args.max_new_tokens,
        "engine": args.engine,
        "sampling": [args.temperature, args.seed] if args.drawn else None,
    }
    if args.engine == "openai":
        return about
    written = last_modified(resolve(args.model_name))
    return {**about, "model_written": written, "dtype": args.dtype, **template_identity(args)}


def written_here(
    args: AnsweringOptions,
    model: Any,
    config: Any,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    answers: Answers,
) -> Iterator[Generation]:
    """Those that are not among the answers yet, by an engine of this machine.

    Args:
        args: how they are written.
        model: what writes them; not looked at with vLLM, which loads its own.
        config: the model's generation config.
        tokenizer: the model's.
        records: the problems.
        answers: those that there are.
    """
    prompts, stops = prompts_and_stops(config, tokenizer, records, samples=args.samples)
    parameters = args.sampling_parameters(stops)
    if args.engine == "hf":
        engine = transformers_engine(model, tokenizer, parameters)
    else:
        engine = vllm_engine(args.model_name, args.dtype, parameters)
    wanted = [prompt for prompt in prompts if (prompt.index, prompt.sample) not in answers]
    return generate(engine, tokenizer, wanted, parameters, batch_size=args.batch_size)


def collect(path: Path, generations: Iterable[Generation], answers: Answers, wanted: int) -> None:
    """Put each answer, as it comes, into the file and among the answers, until there are as many as wanted. Raises
    Interrupted."""
    try:
        append(path, generations, answers)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(answers)} of {counted(wanted, 'answer')}: the same command goes on from there"
        ) from None
