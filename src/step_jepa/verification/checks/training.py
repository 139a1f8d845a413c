"""Checks that really train: accumulation, two steps, a resume, and what is saved for use."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainerCallback

from step_jepa.models.export import end_of_turn
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import base_rows
from step_jepa.models.target_encoder import evaluating
from step_jepa.plurals import counted
from step_jepa.verification.checks.registry import CheckResult, register_check
from step_jepa.verification.context import VerificationContext, logged_losses, trained_parameters

GENERATED = 8  # tokens that the saved model has to write
TOLERANCE = 1e-4  # relative, of gradients, weights and logits; absolute, of losses


@register_check("accumulation", remedy="train with --gradient_accumulation_steps 1, and please report this")
def check_accumulation(context: VerificationContext) -> CheckResult:
    """One optimisation step on n rows at once, and on n rows one by one: the same gradient."""
    count = len(context.chosen_records)
    if count < 2:
        return CheckResult(None, "one row has a pair: it takes two to accumulate")
    at_once = _gradient_of_step(context, batch_size=count, accumulated=1)
    one_by_one = _gradient_of_step(context, batch_size=1, accumulated=count)
    difference = _relative_difference(one_by_one, at_once)
    figure = f"gradients of 1 x {count} and {count} x 1 rows: {difference:.1e} apart, relative"
    return CheckResult(difference < TOLERANCE, figure)


def _gradient_of_step(context: VerificationContext, *, batch_size: int, accumulated: int) -> Tensor:
    """Of one optimisation step that moves nothing: all trained parameters', one after the other."""
    trainer = context.trainer(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        learning_rate=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="sgd",
    )
    callback = _KeepGradient()
    trainer.add_callback(callback)
    trainer.train()
    assert callback.gradient is not None
    return callback.gradient


class _KeepGradient(TrainerCallback):
    gradient: Tensor | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.gradient = torch.cat([gradient.detach().float().cpu().flatten() for gradient in gradients])


@register_check(
    "training", remedy="lower the learning rate; rows that do not move: are they trained under this adapter?"
)
def check_training(context: VerificationContext) -> CheckResult:
    """Two real steps: the loss is a number, and every predictor row has moved."""
    run = context.two_steps
    count = len(run.predictors_after)
    moved = int((run.predictors_before != run.predictors_after).any(-1).sum())
    first, second = run.losses
    figure = f"losses {first:.4f}, {second:.4f}; {moved} of {counted(count, 'predictor row')} moved"
    finite = math.isfinite(first) and math.isfinite(second)
    return CheckResult(finite and moved == count == context.predictors, figure)


@register_check("save, load, continue", remedy="do not resume runs of this model, and please report this")
def check_resume(context: VerificationContext) -> CheckResult:
    """Saved after the first step, loaded, and gone on: the second step is what it was."""
    run = context.two_steps
    expected = _copies(context.model)
    trainer = context.trainer(**run.options)
    with torch.no_grad():
        for parameter in trained_parameters(context.model):
            parameter.zero_()  # what is not loaded shows
    trainer.train(resume_from_checkpoint=str(Path(str(run.trainer.args.output_dir), "checkpoint-1")))
    weights = max(
        _relative_difference(weight, before, least=1e-12)  # some parameters are 0
        for weight, before in zip(_copies(context.model), expected, strict=True)
    )
    loss = abs(logged_losses(trainer)[-1] - run.losses[-1])
    figure = f"second step after a resume: loss {loss:.1e} apart, weights {weights:.1e} relative"
    return CheckResult(loss < TOLERANCE and weights < TOLERANCE, figure)


def _copies(model: nn.Module) -> Sequence[Tensor]:
    """The values of all trained parameters as they are now."""
    return [parameter.detach().clone() for parameter in trained_parameters(model)]


@register_check("plain transformers", remedy="use --keep_adapter, or please report this with the model's name")
def check_export(context: VerificationContext) -> CheckResult:
    """What is saved loads with plain transformers, has the base model's rows, gives the same logits, writes, and ends
    where training taught it to."""
    trainer = context.two_steps.trainer
    folder = str(Path(str(trainer.args.output_dir), "export"))
    trainer.save_model(folder)
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(trainer.model.device).eval()
    rows = exported.get_input_embeddings().weight.shape[0]
    example = context.rows.examples[0]
    ids = torch.tensor([example.input_ids], device=exported.device)
    difference = _logit_difference(trainer.model, exported, ids, rows)
    written = _continuation(exported, ids[:, : example.steps[0][0]])
    text = str(load_tokenizer(folder).decode(written)).replace("\n", " ")
    stops = end_of_turn(context.tokenizer) in _as_list(exported.generation_config.eos_token_id)
    ends = "ends with its turn" if stops else "does not end with its turn"
    figure = f"{rows} embedding rows, logits {difference:.1e} apart, relative; writes {text!r}, {ends}"
    fine = rows == base_rows(trainer.model) and difference < TOLERANCE and len(written) > 0
    return CheckResult(fine and stops, figure)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@torch.no_grad()
def _logit_difference(model: Any, exported: Any, ids: Tensor, rows: int) -> float:
    """Relative; infinite where the two do not even have as many."""
    with evaluating(model):
        expected = model(ids).logits[..., :rows].float()
    logits = exported(ids).logits.float()
    return _relative_difference(logits, expected) if logits.shape == expected.shape else math.inf


def _continuation(model: Any, prompt: Tensor) -> Tensor:
    """int64 (N,): the tokens that the model writes after the prompt (1, L)."""
    attention = torch.ones_like(prompt)
    written = model.generate(prompt, attention_mask=attention, max_new_tokens=GENERATED, do_sample=False)
    return written[0, prompt.shape[1] :]


def _relative_difference(value: Tensor, expected: Tensor, *, least: float = 0.0) -> float:
    """norm(value - expected) / norm(expected), or of `least` where that is more; not a number where it is 0."""
    return float((value - expected).norm() / expected.norm().clamp(min=least))
