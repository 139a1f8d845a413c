"""What stands around the package agrees with it."""

import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
YAML = [".pre-commit-config.yaml", "CITATION.cff"]
YAML += [str(path.relative_to(ROOT)) for path in sorted((ROOT / ".github").rglob("*.yml"))]


@pytest.mark.parametrize("name", YAML)
def test_files_of_settings_can_be_read(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_the_oldest_versions_of_ci_are_those_that_are_allowed():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    oldest, newest = jobs["versions"]["strategy"]["matrix"]["include"]
    allowed = [each for each in PROJECT["dependencies"] if each.startswith(("torch>", "transformers>"))]
    assert oldest["packages"].split() == [each.replace(">=", "==") + ".*" for each in allowed]
    assert newest["packages"].split() == [each.partition(">=")[0] for each in allowed]


def test_the_version_is_one():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
