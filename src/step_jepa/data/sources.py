"""Where raw records come from: files, folders, the hub, or a generator. One by one, each with its line.

A source is named by one text: `FILE`, `GLOB`, `FOLDER`, `hub/id`, or a generator's name. Behind it may stand
`:configuration` and `[split]`, which may be a slice or a sum as `datasets` writes them:
`openai/gsm8k:main[train[:100]]`.
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from step_jepa.data.files import BY_DATASETS, DELIMITERS, JSON, file_rows, kind_of
from step_jepa.data.generated import CHAINS, GENERATED, GENERATED_BY_DEFAULT, generated_rows
from step_jepa.data.raw_record import Rejected
from step_jepa.data.read_arguments import ReadArguments, ReadingOptions
from step_jepa.data.reading import to_reading
from step_jepa.data.records import Reading, Record, noted
from step_jepa.errors import UserError
from step_jepa.run_files import file_digest

logger = logging.getLogger(__name__)
REMEDY = "step-jepa prepare has options for that"
BUILTIN = "builtin:"  # before a name: ours, whatever lies on disk
Line = int | str  # of several files with the name of the file before it
Splits = Sequence[str]
TRAIN: Splits = ("train",)
VALIDATION: Splits = ("validation", "test")
TEST: Splits = ("test", "validation")
_ADDRESS = re.compile(r"(?P<name>.*?)(:(?P<config>[^:/\\\[\]]+))?(\[(?P<split>.+)\])?", re.DOTALL)
_SLICE = re.compile(r"-?\d*%?:-?\d*%?")


@dataclass(frozen=True)
class Source:
    """Raw records that can be read again and again.

    name     what the records are called in messages
    rows     makes an iterator of (line, raw record), where a line that is still to be parsed is a str
    digest   equal for equal records
    endless  whether they cannot be counted
    """

    name: str
    rows: Callable[[], Iterator[tuple[Line, Any]]]
    digest: Callable[[], str]
    endless: bool = False


def read_records(
    source: str, wanted: Splits = TRAIN, reading: ReadingOptions | None = None, **options: Any
) -> Iterator[Record]:
    """Records of any prepared or raw source.

    Args:
        source: a file, a folder, the id of a hub data set, or the name of generated problems, which `builtin:` may
            precede; a configuration and a split may follow.
        wanted: the splits that are looked for where the source names none; the first that there is is read.
        reading: how a command reads raw records.
        **options: other fields of ReadArguments.

    Raises:
        UserError: the source is missing or empty, or a record cannot be used; when the iteration gets there.
    """
    args = ReadArguments.of(reading, **options)
    notes: Counter[str] = Counter()
    try:
        for line, raw in islice(raw_records(source, args, wanted), record_limit(source, args)):
            record = usable_record(source, line, raw, args)
            notes.update(record.notes)
            yield cast(Record, dict(record))
    finally:  # the reader may want no more
        log_notes(source, notes)


def log_notes(source: str, notes: Mapping[str, int]) -> None:
    """Say what was changed in records and what of them is not used, in a line each."""
    for note, count in noted(notes).items():
        logger.info("%s: %s: %d records (%s)", source, note, count, REMEDY)


def say_what_was_read(source: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Say how many there are, and how many steps and pairs of steps that follow one another."""
    counts = [len(record["steps"]) for record in records]
    pairs = sum(max(0, count - 1) for count in counts)
    logger.info("%s: %d records, %d steps, %d pairs of consecutive steps", source, len(records), sum(counts), pairs)


def usable_record(source: str, line: Line, raw: Any, args: ReadArguments) -> Reading:
    """The record of a line. Raises UserError, which names the line, where it cannot be used."""
    try:
        return to_reading(raw, args)
    except Rejected as error:
        raise UserError(
            f"{place(source, line)}: {error}; correct it or run step-jepa prepare, which sets such lines aside"
        ) from error


def place(source: str, line: Line) -> str:
    """What a line is called in messages."""
    return line if isinstance(line, str) else f"{source}:{line}"


def raw_records(source: str, args: ReadArguments, wanted: Splits = TRAIN) -> Iterator[tuple[Line, Any]]:
    """Raw records with the line of the file, else their number. Raises UserError, also where there are none."""
    rows = islice(open_source(source, args, wanted).rows(), args.skip, None)
    first = list(islice(rows, 1))
    if not first and args.skip:
        raise UserError(f"{source} holds no more than {args.skip} records: give a smaller --skip")
    if not first:
        raise no_records(source)
    yield from chain(first, rows)


def no_records(source: str) -> UserError:
    """What is said of an empty source."""
    return UserError(f"{source} holds no records: give a file with one JSON object a line")


def record_limit(source: str, args: ReadArguments) -> int | None:
    """How many records are wanted; None for all that there are."""
    return args.max_examples or (GENERATED_BY_DEFAULT if _generator(source) else None)


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


# What a source's name stands for


class _Address(NamedTuple):
    """A source's name in its parts, None for those that it leaves out."""

    name: str
    config: str | None
    split: str | None


def open_source(source: str, args: ReadArguments, wanted: Splits = TRAIN, *, stream: bool = False) -> Source:
    """What can be read, once it is found.

    Args:
        source: its name.
        args: how it is read.
        wanted: the splits that are looked for where none is named.
        stream: a hub data set is read as it comes, and not downloaded first.

    Raises:
        UserError: there is no such source, or it has no such split.
    """
    generator = _generator(source)
    if args.chain_names != "ordered" and generator != CHAINS:
        raise UserError(f"--chain_names {args.chain_names} is for {BUILTIN}{CHAINS}; leave it out for {source}")
    if generator:
        return Source(source, partial(generated_rows, generator, args), partial(_digest_of_generator, generator, args))
    if args.templates != "all":
        raise UserError(f"--templates {args.templates} is for {_with_prefix(GENERATED)}; leave it out for {source}")
    address = _address(source, args)
    if files := _files(address.name):
        if address.config:
            raise UserError(f"{source}: files have no configuration: leave out {address.config}")
        return _of_files(source, {"train": files}, _completed(address.split, "train"))
    if Path(address.name).is_dir():
        return _of_folder(source, address, wanted, stream=stream)
    if glob.has_magic(address.name) or _is_read_here(Path(address.name)):
        raise UserError(f"{source}: no such file; check --input_file, --train_file, --eval_file or --test_file")
    return _of_hub(source, address, wanted, stream=stream)


def _address(source: str, args: ReadArguments) -> _Address:
    """What is on disk under the whole name has no configuration and split in it."""
    found = None if _files(source) or Path(source).is_dir() else _ADDRESS.fullmatch(source)
    address = _Address(*found.group("name", "config", "split")) if found else _Address(source, None, None)
    for option, given, inside in (
        ("dataset_config", args.dataset_config, address.config),
        ("dataset_split", args.dataset_split, address.split),
    ):
        if given and inside and given != inside:
            raise UserError(f"{source} names {inside} and --{option} names {given}: leave one out")
    return _Address(address.name, address.config or args.dataset_config, address.split or args.dataset_split)


def _files(name: str) -> list[Path]:
    """The file of that name; else all that the name is a pattern of."""
    path = Path(name)
    if path.is_file():
        return [path]
    return [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]


_FileSplits = Mapping[str, Sequence[Path]]


def _of_files(source: str, splits: _FileSplits, split: str) -> Source:
    """Of files that are read here."""
    return Source(source, partial(_rows_of_split, source, splits, split), partial(_digest_of_files, splits, split))


def _rows_of_split(source: str, splits: _FileSplits, split: str) -> Iterator[tuple[Line, Any]]:
    counts = {name: partial(_count, files) for name, files in splits.items()}
    for name, start, stop in _parts(source, split, counts):
        yield from islice(_rows_of(splits[name]), start, stop)


def _digest_of_files(splits: _FileSplits, split: str) -> str:
    files = splits[split] if split in splits else chain.from_iterable(splits.values())
    return " ".join([split, *(f"{kind_of(path)} {file_digest(path)}" for path in files)])


def _rows_of(files: Sequence[Path]) -> Iterator[tuple[Line, Any]]:
    for path in files:
        for line, raw in file_rows(path):
            yield (line if len(files) == 1 else f"{path}:{line}"), raw


def _count(files: Sequence[Path]) -> int:
    return sum(1 for _ in _rows_of(files))


def _of_folder(source: str, address: _Address, wanted: Splits, *, stream: bool) -> Source:
    """A folder that `save_to_disk` wrote, or one of files, whose splits are told by their names as on the hub."""
    from datasets import load_dataset_builder

    folder = Path(address.name)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _of_saved(source, address, wanted)
    with _refusals(source, _as_split(address)):
        builder = load_dataset_builder(str(folder), address.config)
    files = builder.config.data_files or {}
    splits = _with_left_files(source, folder, {str(split): list(map(Path, paths)) for split, paths in files.items()})
    split = _chosen(source, address.split, list(splits), wanted)
    if all(map(_is_read_here, chain.from_iterable(splits.values()))):
        return _of_files(source, splits, split)
    return _loaded(source, address, split, stream=stream)


def _with_left_files(source: str, folder: Path, splits: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """`datasets` takes files of one kind alone. All that are read here are added where nothing says splits; else those
    that are in none are named. Raises UserError for files that cannot be read together."""
    from datasets.data_files import resolve_pattern

    taken = set(chain.from_iterable(splits.values()))
    left = sorted({Path(path) for path in resolve_pattern("**", str(folder)) if _is_read_here(Path(path))} - taken)
    if not left:
        return splits
    if _tells_splits(folder):
        logger.info("%s: in no split, and not read: %s", source, _names(left))
        return splits
    if others := [path for path in taken if not _is_read_here(path)]:
        raise UserError(f"{source}: {_names(others)} cannot be read together with {_names(left)}: take some out")
    return {"train": sorted([*taken, *left])}


def _tells_splits(folder: Path) -> bool:
    """Whether names of files, or the card, say which files make a split."""
    from datasets.data_files import get_data_patterns

    card = folder / "README.md"
    if card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return True
    return bool(get_data_patterns(str(folder)) != {"train": ["**"]})


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths))


def _is_read_here(path: Path) -> bool:
    return kind_of(path) in (*JSON, *DELIMITERS, *BY_DATASETS)


def _as_split(address: _Address) -> str:
    return f"for a split write {address.name}[{address.config}]"


def _of_saved(source: str, address: _Address, wanted: Splits) -> Source:
    from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk

    if address.config:
        raise UserError(f"{source}: a saved data set has no configuration; {_as_split(address)}")
    with _refusals(source):
        saved = load_from_disk(address.name)
    splits: Mapping[str, Dataset] = saved if isinstance(saved, DatasetDict) else {"train": saved}
    split = _chosen(source, address.split, list(splits), wanted)
    parts = []
    for name, start, stop in _parts(source, split, {name: partial(len, rows) for name, rows in splits.items()}):
        parts.append(splits[name].select(range(len(splits[name]))[start:stop]))
    return of_dataset(concatenate_datasets(parts), source)


def _of_hub(source: str, address: _Address, wanted: Splits, *, stream: bool) -> Source:
    from datasets import get_dataset_split_names

    names = list(wanted[:1])
    if address.split is None and wanted != TRAIN:
        with _refusals(source):
            names = get_dataset_split_names(address.name, address.config)
    return _loaded(source, address, _chosen(source, address.split, names, wanted), stream=stream)


def _loaded(source: str, address: _Address, split: str, *, stream: bool) -> Source:
    """What `datasets` reads by itself."""
    from datasets import load_dataset

    options = {"streaming": True} if stream else {}
    with _refusals(source):
        return of_dataset(load_dataset(address.name, address.config, split=split, **options), source)


def of_dataset(data: Any, name: str) -> Source:
    """Of a data set of `datasets`, of known length or not."""
    from datasets.fingerprint import generate_fingerprint

    endless = not hasattr(data, "__len__")
    return Source(name, partial(numbered, data), partial(generate_fingerprint, data), endless)


def numbered(records: Iterable[Any]) -> Iterator[tuple[Line, Any]]:
    """Records with their numbers, from 1."""
    yield from enumerate(records, 1)


@contextmanager
def _refusals(source: str, remedy: str = "") -> Iterator[None]:
    """What the hub, the network and loaders raise, all their own, becomes a UserError that names the source; and
    the remedy, where there is no such configuration."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = "no such file, and no hub data set could be loaded"
        if Path(source).is_dir():
            what = "no data set could be loaded"
        reason = " ".join(str(error).split()) or type(error).__name__
        if remedy and "BuilderConfig" in reason:
            reason += f"; {remedy}"
        if source in GENERATED:  # a folder has its name
            reason += f"; {BUILTIN}{source} is generated"
        raise UserError(f"{source}: {what}: {reason}") from error


def _chosen(source: str, named: str | None, names: list[str], wanted: Splits) -> str:
    """The split that is read, perhaps a slice: the one that is named, else the first of those that are wanted, else the
    only one; which one is said where there was a choice, and where it is none of these."""
    taken = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if named is not None:
        return _completed(named, taken)
    if taken is None:
        raise UserError(
            f"{source} has no split {wanted[0]}, it has {', '.join(names)}: name one, as {source}[{names[0]}]"
        )
    if len(names) > 1 or taken not in wanted:
        logger.info("%s: the split %s is read", source, taken)
    return taken


def _completed(named: str | None, split: str | None) -> str:
    """A slice that names no split is one of the split that would be read without it."""
    assert named or split
    return f"{split}[{named}]" if named and split and _SLICE.fullmatch(named) else named or str(split)


def _parts(
    source: str, split: str, counts: Mapping[str, Callable[[], int]]
) -> list[tuple[str, int | None, int | None]]:
    """(split, first row, row after the last) of each part of what may be a slice or a sum.

    Args:
        source: what messages call it.
        split: what is read.
        counts: counts the rows of each split that there is.
    """
    from datasets import ReadInstruction

    if split in counts:
        return [(split, None, None)]
    named = [part.partition("[")[0].strip() for part in split.split("+")]
    if unknown := [name for name in named if name not in counts]:
        raise UserError(f"{source} has no split {unknown[0]}: it has {', '.join(counts)}")
    with _refusals(source):
        parts = ReadInstruction.from_spec(split).to_absolute({name: counts[name]() for name in named})
    return [(part.splitname, part.from_, part.to) for part in parts]


def _digest_of_generator(name: str, args: ReadArguments) -> str:
    try:
        return f"{name} {asdict(args)} {version('reasoning-gym')}"
    except PackageNotFoundError:
        return f"{name} {asdict(args)}"
