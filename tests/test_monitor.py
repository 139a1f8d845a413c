"""Diagnostics while training: when, of what, and that they disturb nothing."""

import logging

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.training.compute import floating_point_ops
from step_jepa.training.monitor import Monitor, proves_nothing

QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


def trainer_for(records, tmp_path, eval_rows=5, **options):
    options = {**QUIET, "max_steps": 5, "pairs": "all", "lbd": 1.0, "learning_rate": 1e-2, **options}
    config = StepJEPAConfig(output_dir=str(tmp_path), **{"per_device_train_batch_size": 2, **options})
    held_out = records[:eval_rows] if eval_rows else None
    return StepJEPARepresentationTrainer(tiny_model(), config, records, held_out, processing_class=byte_tokenizer())


def logged(trainer, name):
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


def test_when_and_that_no_other_log_is_lost(records, tmp_path):
    trainer = trainer_for(records, tmp_path, diagnostics_steps=2)
    trainer.train()
    assert [step for step, _ in logged(trainer, "diagnostics_centred_margin")] == [0, 2, 4, 5]
    assert [step for step, _ in logged(trainer, "loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in logged(trainer, "diagnostics_grad_norm_jepa")] == [0, 2, 4, 5]


def test_they_are_the_figures_of_an_evaluation(records, tmp_path):
    trainer = trainer_for(records, tmp_path, diagnostics_steps=5, diagnostics_rows=5)
    trainer.train()
    found, last = trainer.evaluate(), trainer.state.log_history
    seen = next(entry for entry in reversed(last) if "diagnostics_jepa_loss" in entry)
    same = [name for name in seen if name.startswith("diagnostics_") and "grad" not in name]
    assert len(same) > 15
    for name in same:
        assert seen[name] == pytest.approx(found[name.replace("diagnostics_", "eval_")], rel=1e-3, abs=1e-5), name


def test_they_disturb_nothing(records, tmp_path):
    weights = []
    for steps in (0, 1):
        trainer = trainer_for(records, tmp_path, diagnostics_steps=steps)
        trainer.train()
        weights.append([value.detach().clone() for value in trainer.model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_gradient_norms_are_those_of_the_two_terms(records, tmp_path):
    trainer = trainer_for(records, tmp_path, gamma=2.0)
    monitor = Monitor(trainer)
    trainer.model.eval()
    found = monitor.gradients()
    norms = []
    for term in (0, 1):
        trainer.model.zero_grad()
        terms = trainer.representation.forward(monitor.batches()[0])
        trainer.means_of_batch(terms)[:2][term].backward()
        norms.append(sum(float(p.grad.square().sum()) for p in trainer.model.parameters() if p.grad is not None) ** 0.5)
    assert list(found.values()) == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "margin", "warns"),
    [(0.5, 0.1, True), (0.5, 0.05, True), (0.5, 0.105, True), (0.5, 0.2, False), (0.95, 0.1, False)],
)
def test_a_falling_loss_without_a_rising_margin_is_called_out(
    records, tmp_path, caplog, monkeypatch, loss, margin, warns
):
    trainer = trainer_for(records, tmp_path)
    monitor = Monitor(trainer)
    figures = [{"jepa_loss": 1.0, "centred_margin": 0.1}, {"jepa_loss": loss, "centred_margin": margin}]
    monkeypatch.setattr(monitor, "figures", lambda: figures.pop(0))
    monkeypatch.setattr(monitor, "gradients", dict)
    with caplog.at_level(logging.WARNING, "step_jepa"):
        monitor.look(0)
        monitor.look(100)
    assert any("the pairing is not learned" in line for line in caplog.messages) == warns


def test_a_margin_at_its_ceiling_is_no_reason_to_warn():
    assert not proves_nothing({"jepa_loss": 1.0, "centred_margin": 0.95}, {"jepa_loss": 0.1, "centred_margin": 0.94})


def test_a_centred_loss_is_held_against_itself_after_its_raw_start(records, tmp_path):
    trainer = trainer_for(records, tmp_path, loss="centred_cosine", diagnostics_steps=2)
    trainer.train()
    monitor = Monitor(trainer)  # as after a resume
    assert monitor.first()["step"] == 2
    assert monitor.first()["jepa_loss"] == logged(trainer, "diagnostics_jepa_loss")[1][1]


def test_operations_are_counted_without_padding(records, tmp_path):
    trainer = trainer_for(records, tmp_path, eval_rows=0, max_steps=-1, num_train_epochs=1)
    trainer.train()
    tokens = sum(len(trainer.train_dataset[place].input_ids) for place in range(len(records)))
    parameters = trainer.model.num_parameters(exclude_embeddings=True)
    assert trainer.state.total_flos == 6 * tokens * parameters
    assert logged(trainer, "flops")[-1][1] == trainer.state.total_flos
    batch = {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    assert floating_point_ops(batch, 10, target_encoder=True) == 4 * 10 * 8


@pytest.mark.parametrize(
    ("options", "same"),
    [({}, True), ({"target_encoder": "stop_gradient"}, False), ({"control": "random_target"}, False)],
)
def test_the_gradient_is_that_of_what_is_trained(records, tmp_path, options, same):
    plain, other = (Monitor(trainer_for(records, tmp_path, **each)).gradients() for each in ({}, options))
    assert plain["grad_norm_lm"] == pytest.approx(other["grad_norm_lm"], rel=1e-5)
    assert (plain["grad_norm_jepa"] == pytest.approx(other["grad_norm_jepa"], rel=1e-5)) == same


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_same_flop_runs_so_much_shorter(records, tmp_path, ratio):
    trainer = trainer_for(records, tmp_path, 0, max_steps=100, same_flop=True, jepa_ratio=ratio)
    rows = trainer.train_dataset
    cost = sum(len(rows[place].input_ids) for place in range(9)) / sum(len(x.input_ids) for x in rows.examples)
    assert cost > 1.3
    assert trainer.args.max_steps == round(100 / (ratio * cost + 1 - ratio))
    trainer = trainer_for(records, tmp_path, 0, max_steps=-1, num_train_epochs=3, same_flop=True, target_encoder="ema")
    assert trainer.args.num_train_epochs == pytest.approx(3 / (cost * 8 / 6))
    assert trainer_for(records, tmp_path, 0, objective="stp", max_steps=100, same_flop=True).args.max_steps == 100
