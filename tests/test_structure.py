"""The package as a reader meets it: short functions, one level of comprehension, a public API that tools can see."""

import ast
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import step_jepa

SOURCE = Path(step_jepa.__file__).parent
TREES = {str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nodes(kinds):
    return [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kinds)]


def is_nested(comprehension):
    inside = chain.from_iterable(ast.walk(child) for child in ast.iter_child_nodes(comprehension))
    return len(comprehension.generators) > 1 or any(isinstance(node, COMPREHENSIONS) for node in inside)


def test_one_level_of_comprehension():
    nested = [f"{path}:{node.lineno}" for path, node in nodes(COMPREHENSIONS) if is_nested(node)]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py"))
    assert 1000 * len(nested) / lines < 1, nested


def test_functions_are_short():
    lengths = {}
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        lengths[f"{path}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 60, longest
    assert median(lengths.values()) <= 7
    assert quantiles(lengths.values(), n=10)[-1] <= 20


def test_a_trainer_is_built_only_where_something_is_trained():
    """In `train`, by the checks of `verify` that train two steps, where `benchmark` measures training steps, and where
    `train --estimate` goes through one."""
    builders = set()
    for path, node in nodes(ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name.endswith("Trainer"):
            builders.add(path)
    assert builders <= {
        "train/command.py",
        "train/standalone_trainer.py",
        "standalone.py",
        "verification/context.py",
        "benchmark/steps.py",
        "estimation/profile.py",
    }


def test_no_file_reaches_into_the_private_names_of_another():
    reached = []
    for path, node in nodes(ast.ImportFrom):
        if (node.module or "").startswith("step_jepa"):
            reached += [f"{path}: {name.name}" for name in node.names if name.name.startswith("_")]
    assert not reached


def test_public_names_load_and_are_listed():
    assert sorted(step_jepa.__all__) == step_jepa.__all__
    assert sorted(step_jepa._HOMES) == step_jepa.__all__
    for name in step_jepa.__all__:
        assert getattr(step_jepa, name).__name__ == name
    assert {*step_jepa.__all__, "__version__"} == set(dir(step_jepa))
    assert step_jepa.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        step_jepa.Nothing  # noqa: B018


SCRIPT = """
from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer, setup_model_and_tokenizer

config = StepJEPAConfig(output_dir="out", pairs="all", lbd=0.1, horizon=2)
trainer = StepJEPARepresentationTrainer("folder", config, [{"messages": []}])
reveal_type(config.pairs)
reveal_type(setup_model_and_tokenizer)
wrong = StepJEPAConfig(output_dir="out", pairs="some")
unknown = StepJEPAConfig(output_dir="out", no_such_option=1)
"""


def test_a_type_checker_sees_the_api(tmp_path):
    """A user's script: the exports have types, and what is wrong is found."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(script)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    lines = [line for line in said.splitlines() if "script.py" in line]
    assert [line.partition("script.py:")[2].partition(":")[0] for line in lines] == ["6", "7", "8", "9"], said
    assert "Literal" in lines[0]
    assert "Any" not in lines[0]
    assert "PreTrainedModel" in lines[1]
    assert 'expected "Literal' in lines[2]
    assert "no_such_option" in lines[3]


def test_floors_are_what_was_run():
    """A lower one would be a promise that nobody has tried."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    pins = [line for line in (SOURCE.parents[1] / "constraints.txt").read_text().splitlines() if "==" in line]
    run = {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin in pins)}
    asked = map(Requirement, [*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    floors = [(each.name, Version(floor.version)) for each in asked for floor in each.specifier]
    low = [name for name, floor in floors if name in run and floor.release[:2] != run[name].release[:2]]
    assert floors
    assert not low
