"""Where raw records come from: files, folders, the hub, or a generator. One by one, each with its line.

A source is named by one text: `FILE`, `GLOB`, `FOLDER`, `hub/id`, or a generator's name. Behind it may stand
`:configuration` and `[split]`, which may be a slice or a sum as `datasets` writes them:
`openai/gsm8k:main[train[:100]]`.
"""

import glob
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from step_jepa.data.builtin_names import BUILTIN, builtin_name, with_prefix
from step_jepa.data.files import BY_DATASETS, DELIMITERS, JSON, file_rows, kind_of
from step_jepa.data.generated import CHAINS, GENERATED, generated_rows
from step_jepa.data.loader_errors import loader_errors
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.splits import TRAIN, Splits, chosen_split, completed_split, parts_of_split
from step_jepa.errors import UserError
from step_jepa.run_files.identity import file_digest

logger = logging.getLogger(__name__)
Line = int | str  # of several files with the name of the file before it
_ADDRESS = re.compile(r"(?P<name>.*?)(:(?P<config>[^:/\\\[\]]+))?(\[(?P<split>.+)\])?", re.DOTALL)


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


def generator_of(source: str) -> str | None:
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
    generator = generator_of(source)
    if args.chain_names != "ordered" and generator != CHAINS:
        raise UserError(f"--chain_names {args.chain_names} is for {BUILTIN}{CHAINS}; leave it out for {source}")
    if generator:
        return Source(source, partial(generated_rows, generator, args), partial(_digest_of_generator, generator, args))
    if args.templates != "all":
        raise UserError(f"--templates {args.templates} is for {with_prefix(GENERATED)}; leave it out for {source}")
    address = _address(source, args)
    if files := _files(address.name):
        if address.config:
            raise UserError(f"{source}: files have no configuration: leave out {address.config}")
        return _of_files(source, {"train": files}, completed_split(address.split, "train"))
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
    for name, start, stop in parts_of_split(source, split, counts):
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
    with loader_errors(source, _as_split(address)):
        builder = load_dataset_builder(str(folder), address.config)
    files = builder.config.data_files or {}
    splits = _with_left_files(source, folder, {str(split): list(map(Path, paths)) for split, paths in files.items()})
    split = chosen_split(source, address.split, list(splits), wanted)
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
    with loader_errors(source):
        saved = load_from_disk(address.name)
    splits: Mapping[str, Dataset] = saved if isinstance(saved, DatasetDict) else {"train": saved}
    split = chosen_split(source, address.split, list(splits), wanted)
    parts = []
    for name, start, stop in parts_of_split(source, split, {name: partial(len, rows) for name, rows in splits.items()}):
        parts.append(splits[name].select(range(len(splits[name]))[start:stop]))
    return of_dataset(concatenate_datasets(parts), source)


def _of_hub(source: str, address: _Address, wanted: Splits, *, stream: bool) -> Source:
    from datasets import get_dataset_split_names

    names = list(wanted[:1])
    if address.split is None and wanted != TRAIN:
        with loader_errors(source):
            names = get_dataset_split_names(address.name, address.config)
    return _loaded(source, address, chosen_split(source, address.split, names, wanted), stream=stream)


def _loaded(source: str, address: _Address, split: str, *, stream: bool) -> Source:
    """What `datasets` reads by itself."""
    from datasets import load_dataset

    options = {"streaming": True} if stream else {}
    with loader_errors(source):
        return of_dataset(load_dataset(address.name, address.config, split=split, **options), source)


def of_dataset(data: Any, name: str) -> Source:
    """Of a data set of `datasets`, of known length or not."""
    from datasets.fingerprint import generate_fingerprint

    endless = not hasattr(data, "__len__")
    return Source(name, partial(numbered, data), partial(generate_fingerprint, data), endless)


def numbered(records: Iterable[Any]) -> Iterator[tuple[Line, Any]]:
    """Records with their numbers, from 1."""
    yield from enumerate(records, 1)


def _digest_of_generator(name: str, args: ReadArguments) -> str:
    try:
        return f"{name} {asdict(args)} {version('reasoning-gym')}"
    except PackageNotFoundError:
        return f"{name} {asdict(args)}"
