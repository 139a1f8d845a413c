"""Raw records to conversations with steps, as JSON lines. No model is known here."""

import codecs
import importlib
import importlib.util
import json
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from step_jepa.errors import UserError
from step_jepa.steps import (
    SplitBy,
    answer_step,
    final_answer,
    part_thinking,
    split,
    strip_annotations,
    wrap_thinking,
)

SYSTEM_PROMPT = "Reason step by step, then give the final answer."
GSM_SYMBOLIC = "gsm_symbolic"
Format = Literal["deepseek_response", "gsm8k", "messages", "stepwise", "gsm_symbolic", "prepared"]
Turn = dict[str, Any]


class Record(TypedDict):
    """A conversation whose last turn is the assistant's, cut into steps; `answer` is the short ground truth."""

    question: str
    answer: str | None
    steps: list[str]
    total_steps: int
    answer_step: int | None
    messages: list[Turn]


class Rejected(ValueError):
    """A raw record that cannot be used, and why: "what: detail"."""


@dataclass(kw_only=True)
class ReadArguments:
    """How raw records are read. Raises UserError for a number out of range."""

    format: Format | None = field(default=None, metadata={"help": "Input format; recognised by its keys if not given."})
    split_by: SplitBy = field(
        default="auto", metadata={"help": "What ends a step; auto: markers, else paragraphs, else lines."}
    )
    keep_thinking: bool = field(
        default=False, metadata={"help": "Keep the <think> tags around thinking, not just its steps."}
    )
    keep_annotations: bool = field(
        default=False, metadata={"help": "Keep GSM8K's calculator annotations, <<48/2=24>>."}
    )
    min_step_tokens: int = field(
        default=0,
        metadata={"help": "Steps of fewer tokens (here: whitespace-separated words) join a neighbour."},
    )
    max_examples: int | None = field(
        default=None,
        metadata={"help": "Stop after this many usable examples (1000 of gsm_symbolic, which is endless)."},
    )
    seed: int = field(
        default=42, metadata={"help": "Seed of gsm_symbolic. Seeds share a few problems: hold out templates."}
    )
    templates: Literal["all", "train", "test"] = field(
        default="all", metadata={"help": "Templates of gsm_symbolic; train and test have none in common."}
    )
    system_prompt: str = field(
        default=SYSTEM_PROMPT, metadata={"help": "System turn of formats that have none; empty: no such turn."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"--max_examples is {self.max_examples}; give 1 or more, or leave it out to take all")
        if self.min_step_tokens < 0:
            raise UserError(f"--min_step_tokens is {self.min_step_tokens}; give 0 or more")


@dataclass(kw_only=True)
class PrepareArguments(ReadArguments):
    """Arguments of `step-jepa prepare`."""

    input_file: str = field(
        metadata={"help": "A .jsonl or .json file, a hub data set or local folder, or gsm_symbolic (generated)."}
    )
    output_file: str = field(metadata={"help": "Where the JSON lines go; rejects go to its .rejected.jsonl."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output_file."})


def read_records(source: str, **options: Any) -> Iterator[Record]:
    """Records of any prepared or raw source; `options` are fields of ReadArguments.

    Raises UserError, when the iteration gets there, for a source that is missing or empty and for the first record
    that cannot be used.
    """
    args = ReadArguments(**options)
    for line, raw in islice(_raw_records(source, args), _limit(source, args)):
        try:
            record = to_record(raw, args)
        except Rejected as error:
            raise UserError(
                f"{source}:{line}: {error}; correct it or run step-jepa prepare, which sets such lines aside"
            ) from error
        yield record


def run(args: PrepareArguments) -> None:
    """Prepare `input_file` into `output_file`, and print what was kept.

    Records that cannot be used go to `output_file` with the suffix `.rejected.jsonl` in place of its own (out.jsonl:
    out.rejected.jsonl), as {"line", "reason", "record"}; there is no such file if there are none. Files appear whole or
    not at all. Raises UserError for unusable arguments and sources, and if no record can be used.
    """
    output, rejects = _paths(args)
    rejected: list[dict[str, Any]] = []
    lengths: list[int] = []
    kept = _sort_out(args, rejected, lengths)
    first = next(kept, None)
    if first is not None:
        _write_lines(output, map(json.dumps, chain([first], kept)))
    if rejected:
        _write_lines(rejects, (json.dumps(item, default=str) for item in rejected))
    else:
        rejects.unlink(missing_ok=True)
    if first is None:
        raise UserError(f"{args.input_file}: none of {len(rejected)} records can be used; {rejects} says why")
    Console().print(_summary(lengths, rejected))


def to_record(raw: Any, args: ReadArguments) -> Record:
    """One raw record, a dict or a line of JSON, as a conversation with steps. Raises Rejected."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise Rejected(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Rejected("not a JSON object")
    record = _READERS[args.format or _recognised(raw)](raw, args)
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"text holds half a character (a lone surrogate): {error.reason}") from error
    return record


# Formats: each makes the turns before the answer, the steps and the short answer.


def _recognised(raw: dict[str, Any]) -> Format:
    given = {key for key, value in raw.items() if value is not None}
    if isinstance(raw.get("metadata"), dict):
        given |= {f"metadata.{key}" for key in raw["metadata"]}
    for name, keys in _KEYS.items():
        if keys <= given:
            return name
    raise Rejected(f"format not recognised: keys {', '.join(raw)}")


def _from_deepseek(raw: dict[str, Any], args: ReadArguments) -> Record:
    text = _text(raw, "deepseek_response")
    answer = _short(raw.get("ground_truth")) or _short(raw.get("answer")) or final_answer(text)
    return _record(_asked(raw, args), _cut(text, args), answer)


def _from_gsm8k(raw: dict[str, Any], args: ReadArguments) -> Record:
    text = _text(raw, "answer")
    return _record(_asked(raw, args), _cut(text, args), final_answer(text))


def _from_gsm_symbolic(raw: dict[str, Any], args: ReadArguments) -> Record:
    metadata = raw.get("metadata") or {}
    if "error" in metadata:
        raise Rejected(f"template failed: {metadata['error']}")
    solution = _text(metadata, "answer_cot")
    answer, value = final_answer(solution), metadata.get("answer_value")
    if answer is None or _number(answer) != _number(value):
        raise Rejected(f"solution disagrees with its answer: {answer} and {value}")
    return _record(_asked(raw, args), _cut(solution, args), answer)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def _from_messages(raw: dict[str, Any], args: ReadArguments) -> Record:
    context, last = _conversation(raw)
    text = _text(last, "content")
    steps = _cut(text, args, last.get("reasoning_content") or "")
    return _record(context, steps, _short(raw.get("answer")) or final_answer(text))


def _from_stepwise(raw: dict[str, Any], args: ReadArguments) -> Record:
    prompt, completions = raw.get("prompt"), _strings(raw, "completions")
    context = _turns(raw, "prompt") if isinstance(prompt, list) else _asked({"question": prompt}, args)
    steps = [_annotated(step, args).strip() for step in completions if step.strip()]
    return _record(context, steps, _short(raw.get("answer")) or final_answer("\n".join(steps)))


def _from_prepared(raw: dict[str, Any], args: ReadArguments) -> Record:
    """Our own output; what follows from steps and messages is worked out anew, the messages stay as they are."""
    context, last = _conversation(raw)
    text, steps, end = _text(last, "content"), _strings(raw, "steps"), 0
    for number, step in enumerate(steps, 1):
        start = text.find(step, end)
        if not step.strip() or start < 0 or text[end:start].strip():
            raise Rejected(f"steps are not the assistant's content: step {number} does not follow")
        end = start + len(step)
    if text[end:].strip():
        raise Rejected("steps are not the assistant's content: text follows the last step")
    return {**_record(context, steps, _short(raw.get("answer"))), "messages": raw["messages"]}


# The first whose keys a record has is its format, so the particular ones stand before the general.
_KEYS: dict[Format, set[str]] = {
    "prepared": {"messages", "steps"},
    "messages": {"messages"},
    "stepwise": {"prompt", "completions"},
    "deepseek_response": {"question", "deepseek_response"},
    "gsm_symbolic": {"question", "metadata.answer_cot"},
    "gsm8k": {"question", "answer"},
}
_READERS: dict[Format, Callable[[dict[str, Any], ReadArguments], Record]] = {
    "prepared": _from_prepared,
    "messages": _from_messages,
    "stepwise": _from_stepwise,
    "deepseek_response": _from_deepseek,
    "gsm_symbolic": _from_gsm_symbolic,
    "gsm8k": _from_gsm8k,
}


def _record(context: list[Turn], steps: list[str], answer: str | None) -> Record:
    questions = [turn for turn in context if turn.get("role") == "user"]
    if not questions or not steps:
        raise Rejected("no user turn" if not questions else "no steps")
    return {
        "question": _text(questions[-1], "content"),
        "answer": answer,
        "steps": steps,
        "total_steps": len(steps),
        "answer_step": answer_step(steps),
        "messages": [*context, {"role": "assistant", "content": "\n\n".join(steps)}],
    }


def _cut(text: str, args: ReadArguments, reasoning: str = "") -> list[str]:
    try:
        parts = part_thinking(_annotated(text, args), _annotated(reasoning, args))
    except ValueError as error:
        raise Rejected(str(error)) from error
    thinking, answer = (split(part, args.split_by, args.min_step_tokens) for part in parts)
    return (wrap_thinking(thinking) if args.keep_thinking else thinking) + answer


def _annotated(text: str, args: ReadArguments) -> str:
    return text if args.keep_annotations else strip_annotations(text)


def _asked(raw: dict[str, Any], args: ReadArguments) -> list[Turn]:
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    return [*system, {"role": "user", "content": _text(raw, "question").strip()}]


def _conversation(raw: dict[str, Any]) -> tuple[list[Turn], Turn]:
    *context, last = _turns(raw, "messages")
    if last["role"] != "assistant":
        raise Rejected(f"last turn is not the assistant's: {last['role']}")
    return context, last


def _turns(raw: dict[str, Any], key: str) -> list[Turn]:
    turns = raw.get(key)
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) and "role" in t for t in turns):
        raise Rejected(f"{key} is not a list of turns, each with role and content")
    return turns


def _strings(raw: dict[str, Any], key: str) -> list[str]:
    strings = raw.get(key)
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise Rejected(f"{key} is not a list of texts")
    return strings


def _text(raw: Any, key: str) -> str:
    text = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Rejected(f"{key} is missing, empty or not text")
    return text


def _short(truth: Any) -> str | None:
    text = "" if truth is None else " ".join(str(truth).split())
    return final_answer(text) or final_answer(f"#### {text}")


# Sources: each yields (line, raw record), where a line that is still to be parsed is a str.


def _raw_records(source: str, args: ReadArguments) -> Iterator[tuple[int, Any]]:
    """Raw records with the line of the file, else their number. Raises UserError, also where there are none."""
    empty = True
    for numbered in _opened(source, args):
        empty = False
        yield numbered
    if empty:
        raise UserError(f"{source} holds no records: give a file with one JSON object a line")


def _limit(source: str, args: ReadArguments) -> int | None:
    return args.max_examples or (1000 if source == GSM_SYMBOLIC else None)


def _opened(source: str, args: ReadArguments) -> Iterable[tuple[int, Any]]:
    if source == GSM_SYMBOLIC:
        return _gsm_symbolic(args)
    if args.templates != "all":
        raise UserError(f"--templates {args.templates} is for {GSM_SYMBOLIC}; leave it out for {source}")
    path = Path(source)
    if path.is_file():
        return _array(path) if path.suffix == ".json" and _begins_array(path) else _lines(path)
    if path.suffix in (".jsonl", ".json"):
        raise UserError(f"{source}: no such file; check --input_file or --train_file and --test_file")
    return enumerate(_hub(source, args), 1)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if text := _decoded(line, f"{path}:{number}").strip():
                yield number, text


def _begins_array(path: Path) -> bool:
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _array(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        return enumerate(json.loads(_decoded(path.read_bytes(), str(path))), 1)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; correct it") from error


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; convert the file to UTF-8") from error


def _hub(source: str, args: ReadArguments) -> Iterable[Any]:
    from datasets import load_dataset

    try:
        return load_dataset(source, args.dataset_config, split=args.dataset_split)
    except Exception as error:  # the hub, the network and every loader have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: no such file, and no hub data set could be loaded: {reason}") from error


def _gsm_symbolic(args: ReadArguments) -> Iterator[tuple[int, dict[str, Any]]]:
    """Generated problems without repeats; problems of the train and test templates are never the same.

    Drawn are twenty times as many as wanted: one in five is of a test template, and few templates repeat themselves.
    """
    problems = _gsm_symbolic_problems(args.seed, 20 * (_limit(GSM_SYMBOLIC, args) or 0) + 1000)
    seen: set[str] = set()
    for index, template in enumerate(problems.task_indices):
        if args.templates == "all" or (args.templates == "test") == (template % 5 == 0):
            raw = _problem(problems, index, template)
            if raw["question"] not in seen:
                seen.add(raw["question"])
                yield index, raw


def _problem(problems: Any, index: int, template: int) -> dict[str, Any]:
    try:
        return problems[index]
    except Exception as error:  # a template may fail on the numbers it drew
        failure = f"{template}, {type(error).__name__}: {error}"
        return {"question": f"problem {index}", "metadata": {"answer_cot": "", "error": failure}}


def _gsm_symbolic_problems(seed: int, size: int) -> Any:
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{GSM_SYMBOLIC} needs the package reasoning-gym: pip install 'step-jepa[demo]'")
    with _bare_packages(Path(spec.submodule_search_locations[0])):
        module = importlib.import_module("reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic")
        problems = module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=seed, size=size))
        assert problems.generators  # imported on first use, which must be here
        return problems


@contextmanager
def _bare_packages(root: Path) -> Iterator[None]:
    """Packages of reasoning-gym whose `__init__` is not run: it imports a dozen libraries that we do not need."""

    def take_out() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == root.name]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    try:
        for folder in (root, root / "arithmetic", root / "coaching"):
            package = types.ModuleType(".".join(folder.relative_to(root.parent).parts))
            package.__path__ = [str(folder)]
            sys.modules[package.__name__] = package
        yield
    finally:
        take_out()
        sys.modules.update(before)


# Output


def _paths(args: PrepareArguments) -> tuple[Path, Path]:
    """Where records and rejects go. Raises UserError rather than let them replace a file by accident."""
    output, source = Path(args.output_file), Path(args.input_file)
    if not output.name or output.is_dir():
        raise UserError(f"--output_file {output} is a folder: name a file")
    rejects = output.with_suffix(".rejected.jsonl")
    if source.resolve() in (output.resolve(), rejects.resolve()):
        raise UserError(f"{source} would be overwritten by its own result: give another --output_file")
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists: give --overwrite to replace it, or another --output_file")
    return output, rejects


def _sort_out(args: PrepareArguments, rejected: list[dict[str, Any]], lengths: list[int]) -> Iterator[Record]:
    """The usable records; adds to `rejected` those that are not, and to `lengths` the steps of those that are."""
    limit = _limit(args.input_file, args)
    for line, raw in tqdm(_raw_records(args.input_file, args), desc="preparing", unit=" records", delay=0.5):
        try:
            record = to_record(raw, args)
        except Rejected as error:
            rejected.append({"line": line, "reason": str(error), "record": raw})
            continue
        lengths.append(record["total_steps"])
        yield record
        if len(lengths) == limit:
            return


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears whole or, if anything fails on the way, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _summary(lengths: list[int], rejected: list[dict[str, Any]]) -> Table:
    table = Table(show_header=False)
    table.add_row("read", str(len(lengths) + len(rejected)))
    table.add_row("written", str(len(lengths)))
    for reason, count in Counter(item["reason"].partition(":")[0] for item in rejected).most_common():
        table.add_row(Text(f"rejected: {reason}"), str(count))
    table.add_row("steps per example (min / median / max)", f"{min(lengths)} / {median(lengths):g} / {max(lengths)}")
    table.add_row("answers of one step (no pair to learn from)", str(lengths.count(1)))
    return table
