"""How raw records are read is asked of every command in the same way, and kept with a run."""

import json
from dataclasses import fields

import pytest

from step_jepa import StepJEPAConfig
from step_jepa.cli import COMMANDS
from step_jepa.cli.dispatch import _dataclass
from step_jepa.data.dataset import encoder_of, load_and_prepare_dataset
from step_jepa.data.encoding import Encoding
from step_jepa.data.reading import read_records
from step_jepa.data.reading_options import ReadArguments, ReadingOptions
from step_jepa.errors import UserError
from step_jepa.options import facts
from step_jepa.run_files.names import OPTIONS_FILE
from step_jepa.train.arguments import TrainArguments
from step_jepa.train.standalone_trainer import standalone_trainer
from step_jepa.training.checkpoints import check_resumed
from step_jepa.training.saved_options import save_options, take_reading_of_run

ROW = {"task": "2 + 2?", "worked": "Two and two\nare 4, \\boxed{4}."}
READING = {"columns": ["question=task,solution=worked"], "split_by": "lines", "system_prompt": "Add."}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return str(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_records_has_the_options(command):
    place, types, _ = COMMANDS[command]
    options = [each.name for name in types for each in fields(_dataclass(place.partition(":")[0], name))]
    if {"train_file", "test_file"} & set(options) and command not in ("ab", "experiment"):  # which prepare
        assert {each.name for each in fields(ReadingOptions)} <= set(options)
        assert len(options) == len(set(options))


def test_examples_follow_the_options(rows, tokenizer):
    data = load_and_prepare_dataset(rows, tokenizer, reading=ReadingOptions(**READING))
    (example,) = data.examples
    assert [example.text[slice(*span)] for span in example.chars] == ["Two and two\n", "are 4, \\boxed{4}."]
    assert "Add." in example.text
    with pytest.raises(UserError, match=r"rows\.jsonl:1: format not recognised: keys task, worked; .*--columns"):
        load_and_prepare_dataset(rows, tokenizer)
    encoders = [encoder_of(rows, tokenizer, None, Encoding(), ReadingOptions(**read)) for read in ({}, READING)]
    assert len({encoder.fingerprint("") for encoder in encoders}) == 2
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\nb\n\nc"}]
    for how, count in (("auto", 2), ("lines", 3)):
        of_python = load_and_prepare_dataset([{"messages": messages}], tokenizer, reading=ReadingOptions(split_by=how))
        assert len(of_python.examples[0].steps) == count


def test_a_run_keeps_them(rows, tmp_path, caplog):
    config = StepJEPAConfig(output_dir=str(tmp_path), **READING)
    save_options(config, tmp_path)
    asked = ReadArguments(split_by="paragraphs")
    caplog.set_level("INFO")
    take_reading_of_run(tmp_path, asked)
    assert (asked.columns, asked.split_by, asked.system_prompt) == (READING["columns"], "paragraphs", "Add.")
    assert caplog.messages[0].endswith("read its own: columns = ['question=task,solution=worked']")
    assert next(read_records(rows, reading=asked))["question"] == "2 + 2?"
    take_reading_of_run(tmp_path / "elsewhere", asked)
    other = StepJEPAConfig(output_dir=str(tmp_path), **{**READING, "split_by": "auto"})
    assert (tmp_path / OPTIONS_FILE).exists()
    with pytest.raises(UserError, match="split_by = lines, not auto"):
        check_resumed(other, {}, str(tmp_path))
    for wrong in ({"columns": ["solution"]}, {"format": "gsm9k"}, {"min_step_tokens": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            StepJEPAConfig(output_dir=str(tmp_path), **wrong)


def test_standalone_reads_alike(rows, tmp_path, model_folder):
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), report_to="none", **READING)
    trainer = standalone_trainer(TrainArguments(train_file=rows, model_name=model_folder), config)
    assert len(trainer.train_dataset) == 1
    assert all(facts(each).standalone for each in fields(ReadingOptions))
