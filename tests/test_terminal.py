"""What the terminal shows: figures on stdout, all else on stderr."""

import logging
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from conftest import tiny_model
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer, terminal
from step_jepa.adapted import train_config
from step_jepa.arguments.parsing import parse
from step_jepa.cli import COMMANDS, main
from step_jepa.errors import UserError
from step_jepa.evaluation.evaluate import _say_what_is_cut_off
from step_jepa.plurals import counted
from step_jepa.train.arguments import TrainArguments
from step_jepa.training.progress import Progress, duration, number, outcome, sentence, shown_figures
from step_jepa.training.saved_options import own_options


def code(*argv) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv)])
    return stop.value.code


@pytest.fixture
def spoken(monkeypatch):
    """A command's set-up is undone afterwards."""
    monkeypatch.setattr(logging.getLogger("step_jepa"), "level", logging.INFO)
    yield
    terminal.set_up(quiet=False, alone=False)


# Training


@pytest.mark.parametrize(
    ("value", "signed", "shown"),
    [
        (0.864, False, ".86"),
        (0.8, False, ".80"),
        (0.0871, False, ".087"),
        (0.019, True, "+.019"),
        (-0.019, True, "-.019"),
        (5.5512, False, "5.55"),
        (10.05, False, "10.05"),
        (float("nan"), False, "nan"),
    ],
)
def test_two_digits_are_shown(value, signed, shown):
    assert number(value, signed=signed) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(9.6, "0:10"), (130, "2:10"), (3730, "1:02:10")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown


PLAIN = {"loss": 5.5, "lm_loss": 5.5, "grad_norm": 1.0}
BOTH = {"loss": 0.86, "lm_loss": 0.84, "jepa_loss": 0.087, "learning_rate": 1e-4}
HELD_OUT = {"eval_loss": 0.9, "eval_lm_loss": 0.8, "eval_jepa_loss": 0.1} | {
    "eval_runtime": 1,
    "eval_samples_per_second": 2,
}


@pytest.mark.parametrize(
    ("logs", "margin", "line"),
    [
        (BOTH, 0.019, "loss .86  lm .84  jepa .087  margin +.019"),
        (BOTH, None, "loss .86  lm .84  jepa .087"),
        (PLAIN, None, "loss 5.50"),
        (HELD_OUT, 0.2, "held out  loss .90  lm .80  jepa .10  margin +.20"),
        ({name.replace("eval_", "eval_easy_"): value for name, value in HELD_OUT.items()}, None, "held out (easy)  "),
        ({"diagnostics_jepa_loss": 1.0, "diagnostics_centred_margin": 0.1}, 0.1, ""),
        ({"train_runtime": 3.0, "train_samples_per_second": 2.0, "train_loss": 1.0}, None, ""),
    ],
)
def test_a_log_is_one_short_line(logs, margin, line):
    assert "  ".join(shown_figures(logs, margin)).startswith(line)
    assert bool(line) == bool(shown_figures(logs, margin))


def test_training_shows_a_line_for_each_log_and_nothing_else(records, tokenizer, tmp_path, capsys):
    config = StepJEPAConfig(
        str(tmp_path), lbd=0.5, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4, use_cpu=True,
        save_strategy="no", report_to="none", per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, records[:4], processing_class=tokenizer)
    assert [type(each) for each in trainer.callback_handler.callbacks].count(Progress) == 1
    capsys.readouterr()
    trainer.train()
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("step ")]
    figures = r"loss [\d.]+  lm [\d.]+  jepa [\d.]+  margin [+-][\d.]+"
    assert re.fullmatch(rf"step 2/4  {figures}  eta 0:\d\d", lines[0])
    assert re.fullmatch(rf"step 4/4  {figures}", lines[1])
    assert re.fullmatch(rf"step 4/4  held out  {figures}", lines[2])
    assert len(lines) == 3
    found = outcome(trainer.state)
    assert (found["steps"], list(found["held_out"])) == (4, ["eval_"])
    losses = r"loss [\d.]+  lm [\d.]+  jepa [\d.]+"
    assert re.fullmatch(rf"4 steps in 0:\d\d; last  {losses}; held out  {losses}", sentence(found))


def test_an_interrupted_training_leaves_no_bar_open(records, tokenizer, tmp_path, monkeypatch):
    """As in a notebook, whose later bars would not be shown."""
    config = StepJEPAConfig(
        str(tmp_path), max_steps=4, eval_strategy="steps", eval_steps=1, use_cpu=True, report_to="none",
        per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, records[:4], processing_class=tokenizer)
    predict = trainer.prediction_step

    def interrupted(*args, **kwargs):
        if any(not bar.disable for bar in terminal._bars):
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    monkeypatch.setattr(trainer, "prediction_step", interrupted)
    enable_progress_bar()  # a command of an earlier test may have put them out
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert not any(not bar.disable for bar in terminal._bars)
    assert is_progress_bar_enabled()  # those of transformers


@pytest.mark.usefixtures("spoken")
def test_transformers_shows_no_bars_beside_those_of_a_command(monkeypatch):
    monkeypatch.setattr(terminal, "LIBRARIES", ())  # their logs stay as they are
    try:
        terminal.adopt_libraries()
        assert not is_progress_bar_enabled()
    finally:
        enable_progress_bar()


def test_a_command_within_another_says_no_next_one(capsys):
    with terminal.as_part():
        terminal.result({}, "2 records are written.")
        terminal.ends("they lie there", "step-jepa train")
    terminal.ends("", "step-jepa evaluate")
    assert capsys.readouterr() == ("", "2 records are written.\nthey lie there\nnext: step-jepa evaluate\n")


@pytest.mark.parametrize(("number", "said"), [(0, "0 batches"), (1, "1 batch"), (1234, "1,234 batches")])
def test_numbers_of_things(number, said):
    assert counted(number, "batch", "batches") == said
    assert counted(2, "step") == "2 steps"


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    terminal.note("read")
    list(terminal.bar(range(3), label="reading", unit="row"))
    state = SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=2)
    Progress().on_log(None, state, None, logs=BOTH)
    assert capsys.readouterr() == ("", "")


# Messages


def test_warnings_look_like_warnings_and_come_once(monkeypatch, capsys):
    log = logging.getLogger("step_jepa.test")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a user's own Python
    for _ in range(2):
        log.warning("%d rows are cut", 3)
    assert capsys.readouterr().err.splitlines() == ["warning: 3 rows are cut"]
    monkeypatch.setattr(logging.getLogger(), "handlers", [terminal.Messages()])
    log.warning("4 rows are cut")
    terminal._log_warning("old\n name", FutureWarning, "module.py", 7)
    assert capsys.readouterr().err.splitlines() == [
        "warning: 4 rows are cut",
        "warning: old name (FutureWarning, module.py:7)",
    ]


def test_colours_are_of_terminals_alone(monkeypatch, capsys):
    terminal.result({"a": "1"}, "Done.")
    assert capsys.readouterr().out == "a  1\nDone.\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    terminal.result({}, "Done.")
    terminal.error("no")
    said = capsys.readouterr()
    assert said.out == "\x1b[1mDone.\x1b[0m\n"
    assert said.err == "\x1b[1;31mstep-jepa: \x1b[0mno\n"


@pytest.mark.usefixtures("spoken")
def test_quiet_leaves_figures_and_warnings(capsys):
    terminal.set_up(quiet=True, alone=False)
    terminal.ends("all lies there", "step-jepa report")
    terminal.heading("evaluate")
    list(terminal.bar(range(3), label="reading", unit="row"))
    assert not logging.getLogger("step_jepa").isEnabledFor(logging.INFO)
    assert logging.getLogger("step_jepa").isEnabledFor(logging.WARNING)
    terminal.result({}, "Done.")
    assert capsys.readouterr() == ("Done.\n", "")


@pytest.mark.usefixtures("spoken")
def test_quiet_is_an_option_of_every_command(capsys):
    assert code("recipes", "--quiet", "recipes/none.yaml") == 2
    assert "no recipe recipes/none.yaml" in capsys.readouterr().err
    terminal.note("read")
    assert capsys.readouterr().err == ""


def test_one_bar_at_a_time():
    with terminal.bar(label="checks", unit="check", total=2) as outer:
        inner = terminal.bar(range(2), label="rows", unit="row")
        assert (outer.disable, inner.disable) == (False, True)
        assert list(inner) == [0, 1]
    with terminal.bar(label="rows", unit="row") as after:
        assert not after.disable


@pytest.mark.parametrize(
    ("cut", "longest", "said"),
    [
        (2, 20, ""),
        (3, 20, "cut off at 16 tokens; the longest solution in the file has 20: --max_new_tokens 21 would be"),
        (3, 9, "3 of 8 answers cut off at 16 tokens; raise --max_new_tokens"),
    ],
)
def test_more_than_a_quarter_cut_off_is_a_warning(cut, longest, said, caplog):
    settings = {"max_new_tokens": 16}
    summary = {"n": 7, "without_truth": 1, "truncated": cut, "longest_solution": longest, "settings": settings}
    _say_what_is_cut_off(summary)
    assert caplog.text == "" if not said else said in caplog.text


# Options that concern the terminal


def test_the_options_of_a_run_are_printed_as_a_file(tmp_path, capsys):
    types = [TrainArguments, train_config()]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lbd: 0.3\nlr_scheduler_type: linear\nlora: true\n")
    words = ["--train_file", "t.jsonl", "--model_name", "m", "--output_dir", str(tmp_path), "--hub_token", "mine"]
    words += ["--config", str(recipe), "--learning_rate", "1e-5"]
    with pytest.raises(SystemExit) as stop:
        parse("train", types, [*words, "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "mine" not in text
    printed = yaml.safe_load(text)
    given = {"lbd": 0.3, "lr_scheduler_type": "linear", "lora": True, "learning_rate": 1e-5}
    assert {name: printed[name] for name in given} == given
    assert printed["pairs"] == "first"  # a default
    (tmp_path / "whole.yaml").write_text(text)
    args, config = parse("train", types, ["--config", str(tmp_path / "whole.yaml")])
    args_of_words, config_of_words = parse("train", types, words)
    assert args == args_of_words
    assert own_options(config) == own_options(config_of_words)
    assert config.learning_rate == config_of_words.learning_rate == 1e-5
    with pytest.raises(UserError, match="lbd = -1"):
        parse("train", types, [*words, "--lbd", "-1", "--print_config"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell, capsys, tmp_path):
    assert code("completion", shell) == 0
    script = capsys.readouterr().out
    for words in ("audit", "pipeline", "learning_rate", "print_config", *(name.split()[0] for name in COMMANDS)):
        assert words in script
    if found := shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(script)
        subprocess.run([found, "-n", str(file)], check=True)


def test_an_unknown_shell_is_refused(capsys):
    assert code("completion", "csh") == 2
    assert "shell = csh: give one of bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.usefixtures("spoken")
def test_a_bar_shows_that_time_passes_while_nothing_is_done(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.bar(label="answering", unit="answer", total=10):
        terminal.tick()
        assert "answering" not in capsys.readouterr().err
        now[0] = terminal.IN_A_FILE
        terminal.tick()
        assert "answering:   0%" in capsys.readouterr().err


def test_a_bar_fits_into_a_terminal_that_does_not_tell_its_width(monkeypatch):
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((0, 0)))
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    assert terminal._width() == 80
