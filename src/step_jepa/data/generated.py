"""Generated problems: those of reasoning-gym, and our own chains, both without end."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from step_jepa.data import chains
from step_jepa.data.reading_options import ReadArguments
from step_jepa.demo_packages import COMMAND
from step_jepa.errors import UserError

GSM_SYMBOLIC = "gsm_symbolic"
CHAINS = "chains"
GENERATED = (GSM_SYMBOLIC, CHAINS)
GENERATED_BY_DEFAULT = 1000


def generated_rows(name: str, args: ReadArguments) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, raw record) of the generator with that name. Raises UserError where its package is missing."""
    return _gsm_symbolic(args) if name == GSM_SYMBOLIC else _chains(args)


def _gsm_symbolic(args: ReadArguments) -> Iterator[tuple[int, dict[str, Any]]]:
    """Generated problems without repeats; problems of the train and test templates are never the same.

    Drawn are twenty times as many as wanted: one in five is of a test template, and few templates repeat themselves.
    """
    wanted = args.max_examples or GENERATED_BY_DEFAULT
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
    for index, raw in enumerate(chains.problems(args.seed, args.chain_names)):
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
        raise UserError(f"{GSM_SYMBOLIC} needs the package reasoning-gym: {COMMAND}")
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
