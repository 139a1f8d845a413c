"""Where raw records come from: a file, the hub, or a generator. Yields them one by one, with their line."""

import codecs
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from step_jepa.data import chains
from step_jepa.data.records import ReadArguments, Record, Rejected, to_record
from step_jepa.errors import UserError

GSM_SYMBOLIC = "gsm_symbolic"
CHAINS = "chains"
GENERATED = (GSM_SYMBOLIC, CHAINS)  # endless
BUILTIN = "builtin:"  # before a name: ours, whatever lies on disk


def read_records(source: str, **options: Any) -> Iterator[Record]:
    """Records of any prepared or raw source.

    Args:
        source: a file, the id of a hub data set, or the name of generated problems, which `builtin:` may precede.
        **options: fields of ReadArguments.

    Raises:
        UserError: the source is missing or empty, or a record cannot be used; when the iteration gets there.
    """
    args = ReadArguments(**options)
    for line, raw in islice(raw_records(source, args), record_limit(source, args)):
        try:
            record = to_record(raw, args)
        except Rejected as error:
            raise UserError(
                f"{source}:{line}: {error}; correct it or run step-jepa prepare, which sets such lines aside"
            ) from error
        yield record


# Each source yields (line, raw record), where a line that is still to be parsed is a str.


def raw_records(source: str, args: ReadArguments) -> Iterator[tuple[int, Any]]:
    """Raw records with the line of the file, else their number. Raises UserError, also where there are none."""
    empty = True
    for numbered in islice(_open(source, args), args.skip, None):
        empty = False
        yield numbered
    if empty and args.skip:
        raise UserError(f"{source} holds no more than {args.skip} records: give a smaller --skip")
    if empty:
        raise UserError(f"{source} holds no records: give a file with one JSON object a line")


def record_limit(source: str, args: ReadArguments) -> int | None:
    """How many records are wanted; None for all that there are."""
    return args.max_examples or (1000 if _generator(source) else None)


def builtin_name(name: str, known: Collection[str], *, on_disk: bool) -> str | None:
    """The one of ours that a name stands for: what lies on disk wins, unless `builtin:` precedes the name.

    Args:
        name: of a model or of data.
        known: names that are ours.
        on_disk: whether the name is that of something on disk.

    Returns:
        The name without `builtin:`; None where it stands for nothing of ours.

    Raises:
        UserError: `builtin:` precedes anything else.
    """
    if not name.startswith(BUILTIN):
        return name if name in known and not on_disk else None
    if name.removeprefix(BUILTIN) not in known:
        raise UserError(f"{name}: give one of {_with_prefix(known)}")
    return name.removeprefix(BUILTIN)


def _with_prefix(names: Iterable[str]) -> str:
    return " and ".join(f"{BUILTIN}{name}" for name in names)


def _generator(source: str) -> str | None:
    """The one of GENERATED that the source is."""
    return builtin_name(source, GENERATED, on_disk=Path(source).exists())


def _open(source: str, args: ReadArguments) -> Iterable[tuple[int, Any]]:
    generator = _generator(source)
    if generator == GSM_SYMBOLIC:
        return _gsm_symbolic(args)
    if generator == CHAINS:
        return _chains(args)
    if args.templates != "all":
        raise UserError(f"--templates {args.templates} is for {_with_prefix(GENERATED)}; leave it out for {source}")
    path = Path(source)
    if path.is_file():
        return _array_items(path) if path.suffix == ".json" and _begins_array(path) else _lines(path)
    if path.suffix in (".jsonl", ".json"):
        raise UserError(f"{source}: no such file; check --input_file, --train_file, --eval_file or --test_file")
    return enumerate(_hub(source, args), 1)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if text := _decoded(line, f"{path}:{number}").strip():
                yield number, text


def _begins_array(path: Path) -> bool:
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _array_items(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        return enumerate(json.loads(_decoded(path.read_bytes(), str(path))), 1)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; correct it") from error
    except RecursionError:
        raise UserError(f"{path}: arrays or objects within one another a thousand times: correct it") from None


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
        if source in GENERATED:  # a folder has its name
            reason += f"; {BUILTIN}{source} is generated"
        raise UserError(f"{source}: no such file, and no hub data set could be loaded: {reason}") from error


def _gsm_symbolic(args: ReadArguments) -> Iterator[tuple[int, dict[str, Any]]]:
    """Generated problems without repeats; problems of the train and test templates are never the same.

    Drawn are twenty times as many as wanted: one in five is of a test template, and few templates repeat themselves.
    """
    wanted = record_limit(BUILTIN + GSM_SYMBOLIC, args) or 0
    problems = _gsm_symbolic_problems(args.seed, 20 * wanted + 1000)
    seen: set[str] = set()
    for index, template in enumerate(problems.task_indices):
        if not _has_wanted_template(template, args):
            continue
        raw = _problem(problems, index, template)
        if raw["question"] not in seen:
            seen.add(raw["question"])
            yield index, raw


def _chains(args: ReadArguments) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, raw in enumerate(chains.problems(args.seed)):
        if _has_wanted_template(raw["template"], args):
            yield index, raw


def _has_wanted_template(template: int, args: ReadArguments) -> bool:
    """One template in five is for testing, by its number alone."""
    part = "test" if template % 5 == 0 else "train"
    return args.templates in ("all", part)


def _problem(problems: Any, index: int, template: int) -> dict[str, Any]:
    try:
        return {**problems[index], "template": template}
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

    def take_modules_out() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == root.name]
        return {name: sys.modules.pop(name) for name in names}

    before = take_modules_out()
    try:
        for folder in (root, root / "arithmetic", root / "coaching"):
            package = types.ModuleType(".".join(folder.relative_to(root.parent).parts))
            package.__path__ = [str(folder)]
            sys.modules[package.__name__] = package
        yield
    finally:
        take_modules_out()
        sys.modules.update(before)
