"""What lies in examples/ runs as it stands, on a tiny model; what it computes by hand is what training computes."""

import json
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from test_cli import code

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """One step without progress bars, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    begin = transformers.TrainingArguments.__post_init__

    def begin_quickly(self):
        vars(self).update(QUICK)
        begin(self)

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", begin_quickly)


def run(script, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *words])
    return runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.*")), ids=lambda file: file.name)
def test_an_example_is_a_page(file):
    if file.suffix != ".ipynb":
        assert len(file.read_text(encoding="utf-8").splitlines()) < 70


def test_from_trl(quick, model_folder, monkeypatch):
    trainer = run("from_trl.py", model_folder, monkeypatch=monkeypatch)["trainer"]
    assert trainer.state.global_step == 1
    assert trainer.jepa.names == ["step_jepa"]
    assert Path("out", "model.safetensors").exists()


@pytest.mark.slow
def test_from_trl_differs_by_two_lines_from_a_script_of_trl(model_folder, quick, monkeypatch, tmp_path):
    pytest.importorskip("trl")
    ours = (EXAMPLES / "from_trl.py").read_text(encoding="utf-8")
    theirs, changed = re.subn(r"^# ((?:from|config) .*)\n.*$", r"\1", ours, flags=re.MULTILINE)
    assert changed == 2
    assert "step_jepa" not in theirs
    (tmp_path / "theirs.py").write_text(theirs)
    shutil.copy(EXAMPLES / "problems.jsonl", tmp_path)
    monkeypatch.setattr(sys, "argv", ["theirs.py", model_folder])
    trainer = runpy.run_path(str(tmp_path / "theirs.py"))["trainer"]
    assert (type(trainer).__name__, trainer.state.global_step) == ("SFTTrainer", 1)


def test_own_objective(quick, model_folder, monkeypatch):
    known = dict(OBJECTIVES)
    try:
        run("own_objective.py", model_folder, monkeypatch=monkeypatch)
    finally:
        OBJECTIVES.clear()
        OBJECTIVES.update(known)
    assert json.loads(Path("out", "step_jepa.json").read_text())["objective"] == ["recall"]


def test_qlora_up_to_the_weights_in_4_bits(quick, model_folder, monkeypatch):
    with pytest.raises(UserError, match="4-bit training needs a CUDA device"):
        run("qlora.py", model_folder, monkeypatch=monkeypatch)


@pytest.mark.slow
def test_qlora_but_for_the_weights_in_4_bits(quick, model_folder, monkeypatch):
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **settings: None)
    run("qlora.py", model_folder, monkeypatch=monkeypatch)
    assert Path("out", "adapter_model.safetensors").exists()


def commands(script, folder, *words):
    """The commands of step-jepa that a shell script runs, as bash reads them."""
    stand_in, seen = folder / "step-jepa", folder / "seen"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {seen}; echo >> {seen}\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", str(EXAMPLES / script), *words], check=True, env=os.environ | {"PATH": path})
    return [line.split("\0")[:-1] for line in seen.read_text().split("\n")[:-1]]


def test_own_problems(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    lines = commands("own_problems.sh", tmp_path, model_folder, str(EXAMPLES / "problems.jsonl"), str(out))
    assert [line[0] for line in lines] == ["prepare", "inspect", "verify", "train", "evaluate", "card"]
    more = {"train": ["--max_steps", "1", "--use_cpu", "true"], "evaluate": ["--limit", "2"]}
    for line in lines:
        if line[0] != "verify":  # which takes long, and has tests of its own
            assert code(*line, *more.get(line[0], [])) == 0, line
    assert "| accuracy (0 of 2) |" in (out / "README.md").read_text()


def test_views_and_surprise_are_those_of_training(model_folder, quick, monkeypatch, capsys):
    """All pairs of a model that has been trained, read in plain transformers."""
    config = StepJEPAConfig(output_dir="out", pairs="all", skip_answer_step=False, predictors=2, learning_rate=0.01)
    problems = f"{EXAMPLES / 'problems.jsonl'}[:8]"
    trainer = StepJEPARepresentationTrainer(model_folder, config, problems)
    trainer.train()  # else predictor tokens and text are as they were drawn
    trainer.save_model()
    representation, rows = trainer.representation, trainer.train_dataset
    representation.model.eval()
    with torch.no_grad():
        views = representation.forward(representation.collator([rows[place] for place in range(8)])).views
    distances = (1 - torch.cosine_similarity(views.predicted, views.target)).tolist()
    capsys.readouterr()
    example = run("read_views.py", "out", monkeypatch=monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 3
    model = transformers.AutoModelForCausalLM.from_pretrained("out")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    predictors = example["load_file"]("out/predictors.safetensors")["predictors"]
    found = []
    for line in (EXAMPLES / "problems.jsonl").read_text().splitlines()[:8]:
        problem = json.loads(line)
        steps = problem["answer"].splitlines(keepends=True)
        found += example["surprises"](model, tokenizer, predictors, problem["question"], steps)
    assert len(found) == 20
    assert found == pytest.approx(distances, abs=1e-6)


def test_first_tour(quick, model_folder, monkeypatch, tmp_path, capsys):
    """All its code, cell by cell; it is kept without outputs."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "first_tour.ipynb").read_text(encoding="utf-8"))
    shutil.copy(EXAMPLES / "problems.jsonl", tmp_path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        source = re.sub('^MODEL = ".*"', f"MODEL = {model_folder!r}", "".join(cell["source"]), flags=re.MULTILINE)
        exec(compile(source, f"cell {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "'With the 13 from before that makes 13 + 20 = 33 apples.\\n'" in shown
    assert "eval_cosine_margin: " in shown
