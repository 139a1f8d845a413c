"""Trackers that keep their runs on this machine: they get curves and settings, then closing figures and the page."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import tiny_model
from test_cli import code

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.run_files.writing import write_json

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
SUMMARY = {
    "settings": {"model_name": "out", "test_file": "test.jsonl"},
    "n": 40,
    "correct": 10,
    "accuracy": 0.25,
    "ci95": [0.142, 0.402],
    "lm_loss": 1.5,
}
LOCAL = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_PROJECT": "p"}


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def tracked(tmp_path, tokenizer, records, monkeypatch, request):
    """Folder of a run that a tracker on this machine has, and where the tracker keeps it."""
    tracker = request.param
    if not any(map(find_spec, PACKAGES[tracker])):
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.chdir(tmp_path)
    for name, value in (LOCAL | {"TRACKIO_DIR": str(tmp_path / "kept"), "WANDB_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    config = StepJEPAConfig(
        output_dir="out", report_to=tracker, run_name="first", project="p", max_steps=2, logging_steps=1, use_cpu=True
    )
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    if tracker == "wandb":
        importlib.import_module("wandb").finish()  # as the end of a process does
    write_json(tmp_path / "scores" / "summary.json", SUMMARY)
    return tracker, tmp_path / {"tensorboard": "out/runs", "trackio": "kept", "wandb": "wandb"}[tracker]


@pytest.mark.parametrize("tracked", list(PACKAGES), indirect=True)
def test_a_tracker_gets_curves_settings_figures_and_page(tracked, capsys):
    tracker, kept = tracked
    assert code("report", "out", "scores", "--output", "r.html", "--report_to", tracker) == 0
    held = bytes_below(kept)
    for word in (b"jepa_loss", b"skip_answer_step", b"training_data", b"closing", b"0.402", b"lm_loss"):
        assert word in held, word
    if tracker == "wandb":  # keeps the place of a file until it is synced
        assert b"r.html" in held
    else:
        assert Path("r.html").read_bytes() in held


def test_a_run_that_a_tracker_has_not(tmp_path, tokenizer, records, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = StepJEPAConfig(output_dir="out", report_to="none", max_steps=1, use_cpu=True)
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert json.loads(Path("out", "run.json").read_text())["tracked"] == {}
    assert code("report", "out", "--output", "r.html", "--report_to", "wandb") == 2
    assert "wandb has none of these runs: train with --report_to wandb" in capsys.readouterr().err
    assert not Path("r.html").exists()
