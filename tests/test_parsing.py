"""Options as a user gives them: on the command line, in a YAML file, as values; their help; modules of users' own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Literal

import pytest
import yaml

from step_jepa import cli, plugins
from step_jepa.adapted import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments import help, help_pages, parsing
from step_jepa.arguments.parsing import from_values, parse, relative_to
from step_jepa.cli import dispatch
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.objectives import OBJECTIVES
from step_jepa.options import check_bounds, option
from step_jepa.reporting import report
from step_jepa.reporting.report import ReportArguments
from step_jepa.run_files.names import cache_folder
from step_jepa.run_files.reading import read_json
from step_jepa.train import command as train_command
from step_jepa.train.arguments import TrainArguments, peft_config

TRAIN = [TrainArguments, StepJEPAConfig]
NEEDED = {"train_file": "f", "model_name": "m", "output_dir": "o"}
TYPED = ["--train_file", "f", "--model_name", "m", "--output_dir", "o"]
OBJECTIVE = """
from dataclasses import dataclass

from step_jepa.objectives import OBJECTIVES
from step_jepa.objectives.step_jepa import StepJEPA


@dataclass
class Mine(StepJEPA):
    pass


OBJECTIVES["mine"] = Mine
"""


@dataclass
class Small:
    """A command of few options."""

    names: list[str] = option(help="Some names.", group="What")
    count: int = option(3, help="How many.", least=1, group="What")
    share: float | None = option(None, help="How much.")
    kind: Literal["a", "b"] = option("a", help="Which.")
    flag: bool = option(False, help="Whether.")
    other_flag: bool = option(True, help="Whether not.")
    table: dict[str, int] = option(default_factory=dict, help="What else.")
    source: str = option("chains", help="From where.", is_path=True)

    def __post_init__(self):
        check_bounds(self)


def code(*argv) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in argv])
    return stop.value.code or 0


def small(*argv: str) -> Small:
    return parse("small", [Small], list(argv))[0]


def train_of(*argv: str):
    """The arguments and the configuration that a command line of `train` gives."""
    return parse("train", TRAIN, [*TYPED, *argv])


def of_yaml(folder: Path, text: str, *argv: str):
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return train_of("--config", str(path), *argv)


@pytest.fixture
def objective_file(tmp_path, monkeypatch):
    """A user's module that registers an objective; what it leaves behind is taken back."""
    path = tmp_path / "my_objective.py"
    path.write_text(OBJECTIVE)
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield path
    OBJECTIVES.pop("mine", None)
    sys.modules.pop("my_objective", None)


# The command line


def test_every_form_of_the_command_line():
    args, config = train_of(
        *("--lora", "--lbd", "auto", "--objective", "step_jepa", "stp", "--weights", "1", "2.5"),
        *("--max-length", "77", "--no_skip_answer_step", "--learning_rate=2e-4", "--resume_from_checkpoint", "True"),
        *(
            "--lr_scheduler_kwargs",
            '{"a": 1}',
            "--model_init_kwargs",
            '{"b": "c"}',
            "--report_to",
            "none",
            "--bf16",
            "no",
        ),
        *("--optim", "sgd", "--tf32", "False", "--seed", "3", "--layer", "-2", "--debug", "underflow_overflow"),
    )
    assert (args.lora, config.lbd, config.objective, config.weights) == (True, "auto", ["step_jepa", "stp"], [1, 2.5])
    assert (config.max_length, config.skip_answer_step, config.learning_rate) == (77, False, 2e-4)
    assert (config.resume_from_checkpoint, config.lr_scheduler_kwargs) == ("True", {"a": 1})
    assert (config.model_init_kwargs, config.report_to, config.bf16) == ({"b": "c"}, [], False)
    assert (config.optim, config.tf32, config.seed, config.layer) == ("sgd", False, 3, -2)
    assert train_of("--optim_target_modules", "all-linear")[1].optim_target_modules == "all-linear"
    assert train_of("--lora", "no", "--skip_answer_step", "F")[0].lora is False
    assert train_of("--lora", "True", "--no-skip-answer-step")[1].skip_answer_step is False
    assert train_of("--lbd", "0.5", "--lbd", "0.7")[1].lbd == 0.7  # the last one counts
    assert train_of("--include_num_input_tokens_seen")[1].include_num_input_tokens_seen == "all"


@pytest.mark.parametrize(
    "words", [["a", "b"], ["--names", "a", "b"], ["--count", "2", "a", "b"], ["--flag", "a", "b"], ["a", "--flag", "b"]]
)
def test_words_that_belong_to_no_option_are_those_of_a_list_that_comes_first(words):
    made = small(*words)
    assert made.names == ["a", "b"]
    assert made.flag == ("--flag" in words)


def test_report_takes_its_runs_anywhere(monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(report, "run", lambda args: taken.append(args))
    for words in (
        ["--output", "r.html", "A", "B"],
        ["A", "B", "--output", "r.html"],
        ["--runs", "A", "B", "--output=r.html"],
    ):
        assert code("report", *words) == 0
    assert taken == [ReportArguments(runs=["A", "B"], output="r.html")] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--cuont", "2"], r"unknown: --cuont \(did you mean --count\? step-jepa small --help lists"),
        (["a", "-x"], "unknown: a -x"),
        ([], "the following arguments are required: --names"),
        (["a", "--count", "x"], "count = x: give a valid integer"),
        (["a", "--count", "0"], "count = 0: give 1 or more"),
        (["a", "--kind", "c"], "kind = c: give 'a' or 'b'"),
        (["a", "--flag=maybe"], "flag = maybe: give a valid boolean"),
        (["a", "--table", "x"], "table = x: give a table"),
        (["a", "--table", '{"b": "c"}'], "give a valid integer"),
        (["a", "--count"], "--count: expected one argument"),
        (["a", "--config", "x", "--config", "y"], "--config is given twice"),
    ],
)
def test_what_the_command_line_refuses(words, message):
    with pytest.raises(UserError, match=message):
        small(*words)


def test_a_word_that_stands_where_none_belongs_is_refused():
    with pytest.raises(UserError, match="unknown: stray"):
        train_of("--lora", "stray")


def test_what_training_arguments_refuse_is_one_line():
    with pytest.raises(UserError, match=r"^[^\n]*load_best_model_at_end[^\n]*$") as refused:
        train_of("--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "epoch")
    assert isinstance(refused.value.__cause__, ValueError)


# YAML files and values


def test_yaml_values_are_values(tmp_path):
    args, config = of_yaml(
        tmp_path,
        """
        max_length: null
        compat: []
        lora: true
        lora_target_modules: [q_proj, v_proj]
        learning_rate: 2e-4
        save_strategy: no
        bf16: no
        objective: stp
        lbd: auto
        max_steps: "7"
        run_name: 2024
        weights: [1]
        lr_scheduler_kwargs: {a: 1e-5}
        model_init_kwargs: '{"b": 1}'
        label_names: x
        """,
    )
    assert (config.max_length, config.compat, args.lora) == (None, [], True)
    assert peft_config(args).target_modules == {"q_proj", "v_proj"}
    assert (config.learning_rate, config.save_strategy, config.bf16) == (2e-4, "no", False)
    assert (config.objective, config.lbd, config.max_steps, config.run_name) == (["stp"], "auto", 7, "2024")
    assert (config.weights, config.label_names) == ([1.0], ["x"])
    assert config.lr_scheduler_kwargs == {"a": 1e-5}
    assert config.model_init_kwargs == {"b": 1}
    assert of_yaml(tmp_path, "save_strategy: 'no'\nlbd: 1e-1")[1].lbd == 0.1
    assert of_yaml(tmp_path, "lbd: 1", "--lbd", "0.5")[1].lbd == 0.5  # the command line overrides


def test_values_that_begin_with_a_dash(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("names: [-a, --flag]\nsource: '- think'\n")
    made = small("--config", str(path))
    assert (made.names, made.source, made.flag) == (["-a", "--flag"], "- think", False)


def test_what_a_file_gives_is_not_required_on_the_command_line(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump(NEEDED))
    args, config = parse("train", TRAIN, ["--config", str(path)])
    assert (args.train_file, args.model_name, config.output_dir) == ("f", "m", "o")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamda: 1", r"unknown: --lamda \(did you mean --gamma\?"),
        ("predictors: x", "predictors = x: give a valid integer"),
        ("predictors: yes", "predictors = yes"),
        ("predictors: 1.5", "predictors = 1.5"),
        ("predictors: null", "predictors = null: give a valid integer"),
        ("pairs: [all, first]", "pairs = "),
        ("pairs: few", "pairs = few: give 'first', 'all' or 'random'"),
        ("optim: fast", "optim = fast: give 'adamw_torch'"),
        ("gamma: -1", "gamma = -1.0: give 0 or more"),
        ("weight_decay: -1", "weight_decay = -1.0: give 0 or more"),
        ("config: other.yaml", "names another file of options"),
        ("[a]", "no table of options"),
        ("a: [", "cannot read"),
        ("lbd: 0.1\nseed: 3\nlbd: 0.5", r"lbd is there twice in .*options.yaml., line 3, column 1"),
        ("lr_scheduler_kwargs: {a: 1, a: 2}", "a is there twice"),
        ("lora-r: 3\nlora_r: 4", "lora_r is given twice, with - and with _"),
    ],
)
def test_what_a_file_is_refused_for(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as refused:
        of_yaml(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_values_go_the_same_way_as_words(tmp_path):
    values = {**NEEDED, "objective": ["stp"], "learning_rate": 0.1, "lora": True, "output_dir": tmp_path}
    made = from_values("train", TRAIN, values)
    assert made[0] == parse("train", TRAIN, [*TYPED, "--lora"])[0]
    assert (made[1].objective, made[1].learning_rate, made[1].output_dir) == (["stp"], 0.1, str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("predictors: 4\nlbd: 0.3\n")
    _, config = from_values("train", TRAIN, {**NEEDED, "config": recipe, "lbd": 0.2})
    assert (config.predictors, config.lbd) == (4, 0.2)
    with pytest.raises(UserError, match="--output_dir is required"):
        from_values("train", TRAIN, {})
    with pytest.raises(UserError, match=r"required: --train_file, --model_name \(step-jepa train --help"):
        from_values("train", TRAIN, {"output_dir": "o"})
    with pytest.raises(UserError, match=r"unknown: --modle_name \(did you mean --model_name"):
        from_values("train", TRAIN, {**NEEDED, "modle_name": "m"})


def test_a_bug_of_ours_in_a_dataclass_keeps_its_traceback():
    @dataclass
    class Broken:
        """Whose check is wrong."""

        count: int = option(1, help="How many.")

        def __post_init__(self):
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours") as raised:
        from_values("broken", [Broken], {})
    assert not isinstance(raised.value, UserError)


IDLE = [
    ("pairs_per_example: 2", "--pairs_per_example is read by --pairs random"),
    ("objective: stp\npairs: first\npairs_per_example: 2", "--pairs_per_example is read by --pairs random"),
    ("pairs: all\npairs_per_example: 2", "--pairs_per_example is read by --pairs random"),
    ("max_tokens_per_batch: 400\nper_device_train_batch_size: 2", "takes the place of --per_device_train_batch_size"),
    ("streaming: true\nmax_steps: 2\nnum_train_epochs: 2", "in place of --num_train_epochs"),
    ("train_all: true\ntrain_turns: all", "leave out --train_turns"),
    ("compat: [train_all]\ntrain_turns: all", "leave out --train_turns"),
    ("objective: none\npairs: all", "--pairs all needs a JEPA term"),
    ("lbd: 0\npairs: all", "--pairs all needs a JEPA term"),
    ("objective: none\npair_tokens: 100", "--pair_tokens 100 needs a JEPA term"),
    ("objective: none\nfront_pred: true", "--front_pred True needs a JEPA term"),
]


@pytest.mark.parametrize(("text", "message"), IDLE)
def test_what_nothing_reads_is_refused(tmp_path, text, message):
    values = yaml.safe_load(text)
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    with pytest.raises(UserError, match=message):
        of_yaml(tmp_path, text)
    with pytest.raises(UserError, match=message):
        train_of(*words)
    with pytest.raises(UserError, match=message):
        StepJEPAConfig(output_dir="o", use_cpu=True, **values)


def test_what_is_read_is_not_refused(tmp_path):
    assert of_yaml(tmp_path, "objective: stp\npairs: all\npairs_per_example: 2")[1].pairs_per_example == 2
    assert of_yaml(tmp_path, "objective: none\npooling: mean")[1].pooling == "mean"  # `pairing` reads views so


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--objective", "none"], ("first", "cosine", 2, 1)),
        (["--lbd", "0"], ("first", "cosine", 2, 1)),
        (["--objective", "stp"], ("all", "cosine", 2, 1)),
        (["--objective", "llm_jepa"], ("first", "infonce", 2, 1)),
        (["--objective", "stp", "step_jepa"], ("all", "infonce", 2, 1)),
        (["--max_tokens_per_batch", "400"], ("all", "infonce", 8, 1)),
        (["--streaming", "--max_steps", "9"], ("all", "infonce", 2, 3)),
        (["--seed", "1"], ("all", "infonce", 2, 1)),
    ],
)
def test_what_the_command_line_leaves_idle_of_a_file_goes_with_what_it_overrides(tmp_path, words, left):
    text = "pairs: all\nloss: infonce\nper_device_train_batch_size: 2\nnum_train_epochs: 1\n"
    _, config = of_yaml(tmp_path, text, *words)
    kept = (config.pairs, config.loss, config.per_device_train_batch_size, config.num_train_epochs)
    assert kept == left


# Paths


def test_relative_paths_in_a_file_are_read_from_its_folder(tmp_path, monkeypatch):
    for name in ("here/train.jsonl", "here/both.jsonl", "both.jsonl", "current.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    path = Path("here/options.yaml")

    def source(name: str) -> str:
        path.write_text(yaml.safe_dump({"names": ["train.jsonl"], "source": name}))
        made = small("--config", str(path))
        assert made.names == ["train.jsonl"]  # no path
        return made.source

    assert source("train.jsonl") == str(Path("here", "train.jsonl"))
    assert source("both.jsonl") == str(Path("here", "both.jsonl"))
    assert source("current.jsonl") == "current.jsonl"  # today's meaning
    assert source("../current.jsonl") == str(Path("here", "..", "current.jsonl"))
    assert source(str(tmp_path / "both.jsonl")) == str(tmp_path / "both.jsonl")
    assert [source(name) for name in ("chains", "org/model", "")] == ["chains", "org/model", ""]
    assert small("--config", str(path), "--source", "train.jsonl").source == "train.jsonl"  # not of the file


def test_the_paths_of_train_are_marked(tmp_path):
    for name in ("data.jsonl", "model"):
        (tmp_path / name).mkdir()
    given = {"train_file": "data.jsonl", "eval_file": "data.jsonl", "model_name": "model"}
    args, _ = of_yaml(tmp_path, yaml.safe_dump({**given, "resume_from_checkpoint": "model"}))
    assert args.train_file == "f"  # the command line's
    assert (args.eval_file, args.model_name) == (str(tmp_path / "data.jsonl"), "m")
    assert relative_to(tmp_path, TRAIN, given)["model_name"] == str(tmp_path / "model")


def test_nested_tables_of_options(tmp_path):
    @dataclass
    class Outer:
        """Holds a table of another command's options."""

        recipe: dict[str, str] = option(default_factory=dict, help="Options of another command.")

        @staticmethod
        def nested_paths(folder, values):
            return {**values, "recipe": relative_to(folder, [Small], values.get("recipe", {}))}

    for name in ("recipe.yaml", "data.jsonl"):
        (tmp_path / name).write_text("")
    path = tmp_path / "options.yaml"
    path.write_text("recipe: {config: recipe.yaml, source: data.jsonl, kind: recipe.yaml}\n")
    (made,) = parse("outer", [Outer], ["--config", str(path)])
    found = {"config": str(tmp_path / "recipe.yaml"), "source": str(tmp_path / "data.jsonl"), "kind": "recipe.yaml"}
    assert made.recipe == found
    path.write_text("recipe: recipe.yaml\n")
    with pytest.raises(UserError, match=r"recipe = recipe\.yaml: give a table"):
        parse("outer", [Outer], ["--config", str(path)])


# LoRA's modules


@pytest.mark.parametrize("words", [["q_proj,v_proj"], ["q_proj", "v_proj"]])
def test_modules_of_an_adapter_by_commas_or_spaces(words):
    args, _ = train_of("--lora", "--lora_target_modules", *words)
    assert peft_config(args).target_modules == {"q_proj", "v_proj"}


def test_all_linear_stays_a_word():
    assert peft_config(train_of("--lora")[0]).target_modules == "all-linear"
    assert peft_config(train_of("--lora", "--lora_target_modules", "all-linear")[0]).target_modules == "all-linear"


# Help


def test_help_shows_our_options_by_purpose(capsys):
    assert code("train", "--help") == 0
    short = capsys.readouterr().out
    assert code("train", "--help-all") == 0
    whole = capsys.readouterr().out
    headings = [line for line in short.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:4] == ["required:", "Data:", "Model:", "Run:"]
    for name in ("--train_file", "--output_dir", "--lbd", "--objective", "--logging_steps", "--lora_r"):
        assert f"  {name} " in short
    assert "Rank of the adapter. (default: 16)" in short
    assert "--pairs {first,all,random}" in short
    for name in ("--learning_rate", "--save_strategy", "--bf16"):
        assert f"  {name} " not in short
        assert f"  {name} " in whole
    assert "such as --learning_rate" in short.splitlines()[-2]
    assert short.splitlines()[-1] == "step-jepa train --help-all lists them too."
    assert "transformers.TrainingArguments:" in whole


def test_help_shows_what_needs_no_name(capsys):
    assert code("report", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: step-jepa report [RUNS ...] [--config FILE.yaml]")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tran", "did you mean train?"),
        ("inspect mas", "did you mean inspect mask"),
        ("quux", "step-jepa --help lists all"),
    ],
)
def test_a_command_that_is_misspelt(word, said, capsys):
    assert code(*word.split()) == 2
    error = capsys.readouterr().err
    assert f"no command '{word}': {said}" in error
    assert "completion" not in error  # which is not like any of them


def test_help_of_a_small_command(capsys):
    with pytest.raises(SystemExit) as stop:
        small("--help")
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.index("required:") < page.index("--names TEXT") < page.index("\nWhat:") < page.index("--count N")
    assert "\nA command of few options:" in page
    assert "--other_flag, --no_other_flag" in page
    assert "--help-all" not in page


@pytest.mark.parametrize("command", ["evaluate", "verify", "audit", "pairing"])
def test_headings_say_nothing_of_errors(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "Raises" not in capsys.readouterr().out


def test_the_first_page_of_help_needs_no_torch():
    """Nor anything else that takes time to import."""
    loads = "import sys; before = {*sys.modules}; from step_jepa.cli import _usage; _usage()"
    script = f"{loads}; print(*{{*sys.modules}} - before)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert sorted(loaded.split()) == ["step_jepa", "step_jepa.cli"]


def test_the_version_is_said(capsys):
    assert code("--version") == 0
    assert capsys.readouterr().out == f"step-jepa {version('step-jepa')}\n"


OF_THE_WHEEL = {"words_alone": "", "groups": {"Of the wheel": [{"names": ["--made_before"], "about": {"help": "."}}]}}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where pages of help are kept, and how a process that is there for a command alone prints one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(help_pages, "SHIPPED_PAGES", tmp_path / "package" / "help_pages.json")

    def printed(capsys, *words) -> str:
        assert dispatch.run_command([*words, "--help"], cli.COMMANDS, alone=True) == 0
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("command", ["train", "inspect tokens", "demo"])
def test_a_page_of_help_that_was_kept_is_the_page(command, kept, capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    page = capsys.readouterr().out
    assert kept(capsys, *command.split()) == page
    assert list(json.loads((tmp_path / "step-jepa" / "help_pages.json").read_text())["pages"]) == [command]
    monkeypatch.setattr(dispatch, "dataclasses_of", None)  # nothing of the command is loaded
    assert kept(capsys, *command.split()) == page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --modle_name m", "unknown: --modle_name (did you mean --model_name? step-jepa train --help lists"),
        ("train --learning-rat=1", "unknown: --learning-rat (did you mean --learning_rate?"),
        ("train --train-file t --output_dir=o", "the following arguments are required: --model_name (step-jepa train"),
        ("inspect tokens --no_plain", "unknown: --no_plain (did you mean --plain?"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_misspelt_or_missing_option_is_refused_before_anything_is_loaded(words, said, capsys, monkeypatch):
    name = words.partition(" --")[0]
    dispatch.page_of(name, cli.COMMANDS[name])
    monkeypatch.setattr(dispatch, "dataclasses_of", None)
    assert dispatch.run_command(words.split(), cli.COMMANDS, alone=True) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_page_of_help_has_every_name_that_is_parsed(command):
    """Those with - in place of _ are compared as if they had it."""
    parser = parsing._Parser(command, dispatch.dataclasses_of(cli.COMMANDS[command]))
    named = help.names_of(dispatch.page_of(command, cli.COMMANDS[command]))
    assert {*named} == {*parser.names, "--print_config"}


def test_a_user_without_a_home_has_a_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)


def test_plugins_make_their_own_pages(kept, capsys, monkeypatch):
    help_pages.ship({"demo": OF_THE_WHEEL})
    monkeypatch.setattr(plugins, "installed_plugins", lambda: True)
    with pytest.raises(SystemExit):  # by the parser, from what is registered
        kept(capsys, "demo")
    assert "Of the wheel" not in capsys.readouterr().out


def test_pages_of_help_are_of_this_very_source(kept, capsys, monkeypatch, tmp_path):
    """Others, and what is no page, are made anew; those of the wheel go before those of the cache."""
    page = kept(capsys, "demo")
    help_pages.ship({"demo": OF_THE_WHEEL})
    assert "Of the wheel" in kept(capsys, "demo")
    monkeypatch.setattr(help_pages, "_checksum", lambda: 1)
    assert kept(capsys, "demo") == page
    (tmp_path / "step-jepa" / "help_pages.json").write_text('{"source": 1}')
    assert kept(capsys, "demo") == page


# Modules of users' own


@pytest.mark.parametrize("place", ["first", "last", "equals"])
def test_an_imported_file_brings_its_objective(objective_file, monkeypatch, place):
    taken = []
    monkeypatch.setattr(train_command, "run", lambda args, config: taken.append(config))
    words = ["train", *TYPED, "--objective", "mine"]
    imported = {
        "first": ["--import", objective_file, *words],
        "last": [*words, "--import", objective_file],
        "equals": [*words, f"--import={objective_file}"],
    }
    assert code(*imported[place]) == 0
    assert taken[0].objective == ["mine"]
    assert plugins.named_plugins() == [str(objective_file)]  # for processes that this one starts


def test_without_the_import_the_objective_is_unknown(capsys):
    assert code("train", *TYPED, "--objective", "mine") == 2
    assert "objective = mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"), [("lbd", "objective mine: --lbd is there"), ("lora_r", "an option of train")]
)
def test_an_imported_objective_changes_no_option_of_ours(objective_file, capsys, name, said):
    own = f"    {name}: int = option(5, help='Mine.')"
    text = OBJECTIVE.replace("    pass", own).replace("\n\n\n@", "\nfrom step_jepa.options import option\n\n\n@")
    objective_file.write_text(text)
    assert code("train", "--import", objective_file, *TYPED, "--objective", "mine") == 2
    assert said in capsys.readouterr().err


def test_an_imported_module(objective_file, monkeypatch):
    monkeypatch.syspath_prepend(str(objective_file.parent))
    plugins.load_plugins(["my_objective"])
    assert "mine" in OBJECTIVES


def test_the_processes_of_an_experiment_know_an_imported_objective(objective_file, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    recipe = {
        **{"model_name": "chains", "pretrain": True, "max_steps": 1, "save_strategy": "no"},
        "config_overrides": {"model_type": "llama", "num_key_value_heads": 1, **shape},
    }
    data = {part: {"input_file": "chains", "max_examples": 4, "templates": part} for part in ("train", "test")}
    arms = {"sft": {"objective": "none"}, "mine": {"objective": "mine"}}
    path = tmp_path / "experiment.yaml"
    about = {"data": data, "recipe": recipe, "arms": arms, "primary": "mine", "seeds": [0]}
    path.write_text(yaml.safe_dump({**about, "evaluate": {"max_new_tokens": 2}}))
    out = tmp_path / "out"
    assert code("experiment", "--import", objective_file, "--config", path, "--output_dir", out) == 0
    assert read_json(out / "cells" / "mine" / "seed-0" / "cell.json")["arm"] == "mine"


def test_installed_packages_bring_theirs(objective_file, monkeypatch):
    entry = EntryPoint("mine", "my_objective", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
    plugins._load_installed.cache_clear()
    with pytest.raises(UserError, match=r"plugin mine \(my_objective\) cannot be loaded"):
        plugins.load_plugins()
    monkeypatch.syspath_prepend(str(objective_file.parent))
    plugins.load_plugins()
    assert "mine" in OBJECTIVES
    plugins._load_installed.cache_clear()


def test_what_cannot_be_imported(objective_file, capsys):
    taken = objective_file.with_name("json.py")
    taken.write_text("")
    dotted = objective_file.with_name("my.objective.py")
    dotted.write_text("")
    broken = objective_file.with_name("broken_plugin.py")
    broken.write_text("import no_such_library\n")
    for words, message in {
        ("--import", "nowhere.py"): "there is no such file",
        ("--import", "no_such_module.part"): "there is no such module",
        ("--import", taken): "json is the name of another module",
        ("--import",): "--import needs a file",
        ("--import", "../no_module"): "give a file whose name ends in .py, or a module",
        ("--import", "--lora"): "give a file whose name ends in .py, or a module",
        ("--import", dotted): "give the file a name that a module can have",
    }.items():
        assert code("train", *TYPED, *words) == 2
        assert message in capsys.readouterr().err
    for name in (str(broken), "broken_plugin"):  # the user's own error
        with pytest.raises(ModuleNotFoundError, match="no_such_library"):
            cli.main(["train", *TYPED, "--import", name])


# Errors


def test_debug_shows_where_an_error_arose(capsys):
    for words in (["--debug", "train", *TYPED], ["train", "--debug", *TYPED], ["train", *TYPED, "--debug"]):
        assert code(*words, "--gamma", "-1") == 2
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert error.splitlines()[-1] == "step-jepa: gamma = -1.0: give 0 or more"
    assert code("train", *TYPED, "--gamma", "-1") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_with_a_value_is_an_option_of_training_arguments(monkeypatch):
    taken = []
    monkeypatch.setattr(train_command, "run", lambda args, config: taken.append(config))
    assert code("train", *TYPED, "--debug", "underflow_overflow") == 0
    assert [each.value for each in taken[0].debug] == ["underflow_overflow"]


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_a_bug_while_the_trainer_is_made_keeps_its_traceback(kind, model_folder, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise kind("ours")

    monkeypatch.setattr("step_jepa.training.trainer.setup_model_and_tokenizer", broken)
    with pytest.raises(kind, match="ours") as raised:
        cli.main(["train", "--train_file", "f", "--model_name", model_folder, "--output_dir", str(tmp_path / "out")])
    assert not isinstance(raised.value, UserError)


def test_a_bug_in_the_first_step_of_a_resumed_run_keeps_its_traceback(model_folder, records, tmp_path, monkeypatch):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["train", "--train_file", file, "--model_name", model_folder, "--output_dir", tmp_path / "out", "--use_cpu"]
    words += ["--report_to", "none", "--save_steps", "1"]
    assert code(*words, "--max_steps", "1") == 0

    def broken(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(StepJEPARepresentationTrainer, "compute_loss", broken)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main([*map(str, words), "--max_steps", "2", "--resume_from_checkpoint", "True"])


def test_modules_that_a_model_does_not_have_are_refused(model_folder, tmp_path, capsys):
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "a", "answer": "b\\n#### 1"}\n')
    words = ["--train_file", file, "--model_name", model_folder, "--output_dir", tmp_path / "out", "--lora"]
    for approach in ("adapted", "standalone"):
        assert code("train", *words, "--lora_target_modules", "nothing", "--approach", approach) == 2
        assert "nothing" in capsys.readouterr().err


def test_evaluate_from_values():
    values = {"model_name": "m", "test_file": Path("t.jsonl"), "output_dir": "o", "limit": None, "overwrite": True}
    (made,) = from_values("evaluate", [EvaluateArguments], values)
    assert (made.test_file, made.limit, made.overwrite) == ("t.jsonl", None, True)
