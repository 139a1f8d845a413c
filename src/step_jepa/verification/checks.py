"""Checks of the package's real code on one user's model, tokenizer and rows: each says what it found."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainerCallback

from step_jepa.batches.views import evaluating
from step_jepa.data import tokens
from step_jepa.data.tokens import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.losses import references as formulas
from step_jepa.losses.distances import Criterion, sigreg, vicreg
from step_jepa.models.loading import load_tokenizer
from step_jepa.models.predictors import base_rows, predictor_ids
from step_jepa.rows.branches import TRUNK
from step_jepa.verification.compare import CompareArguments, compare_on
from step_jepa.verification.context import Subject, losses_of, pairs_of

GENERATED = 8  # tokens that the saved model has to write


@dataclass(frozen=True)
class Finding:
    """passed   None where the check could not be made, and `figure` says why
    figure   what was found, in one line
    """

    passed: bool | None
    figure: str


# Data


def steps(subject: Subject) -> Finding:
    counts = sorted(len(example.steps) for example in subject.examples)
    single = sum(not pairs_of(example) for example in subject.examples)
    middle = counts[len(counts) // 2]
    figure = f"{len(counts)} rows, {counts[0]} to {counts[-1]} steps (median {middle}); {single} without a pair"
    return Finding(single < len(counts), figure)


def spans(subject: Subject) -> Finding:
    """Spans tile what is trained; each decodes to its step, together to the answer. Whitespace at the ends is not
    compared: neighbours may share a token of it."""
    wrong = [place for place, example in enumerate(subject.examples) if not _spans_fine(subject, place, example)]
    return _all_rows(subject, wrong, "spans tile the answer and decode to the steps")


def _spans_fine(subject: Subject, place: int, example: Example) -> bool:
    record = subject.records[place]
    edges = [edge for span in example.steps for edge in span]
    tile = all(stop == start for stop, start in zip(edges[1:-1:2], edges[2::2], strict=True))
    first = next(index for index, label in enumerate(example.labels) if label != IGNORED)
    content = record["messages"][-1]["content"]
    texts = list(record.get("steps") or [])
    said = [_decoded(subject, example.input_ids[slice(*span)]) for span in example.steps]
    whole = _decoded(subject, example.input_ids[edges[0] : edges[-1]])
    return tile and edges[0] == first and whole == content.strip() and (not texts or _words(said) == _words(texts))


def labels(subject: Subject) -> Finding:
    """Labelled is the answer, and then the token that ends the turn; nothing else."""
    wrong = []
    for place, example in enumerate(subject.examples):
        labelled = [index for index, label in enumerate(example.labels) if label != IGNORED]
        own = all(example.labels[index] == example.input_ids[index] for index in labelled)
        *said, end = [example.input_ids[index] for index in labelled]
        content = subject.records[place]["messages"][-1]["content"]
        ends = end in {*subject.tokenizer.all_special_ids, *subject.tokenizer.added_tokens_decoder}
        if not (
            own and ends and _decoded(subject, said) == content.strip() and labelled[-1] - labelled[0] == len(said)
        ):
            wrong.append(place)
    return _all_rows(subject, wrong, "the answer and its end-of-turn token are labelled, nothing else is")


def bos(subject: Subject) -> Finding:
    """As many tokens of BOS at the start of a row as the tokenizer itself puts before a text, or one."""
    own = subject.tokenizer.bos_token_id
    if own is None:
        return Finding(True, "the tokenizer has no BOS, the rows begin with none")
    wanted = (1,) if subject.tokenizer("a")["input_ids"][0] == own else (0, 1)
    counts = [_leading(example.input_ids, own) for example in subject.examples]
    wrong = [place for place, count in enumerate(counts) if count not in wanted]
    return _all_rows(subject, wrong, f"{counts[0]} BOS at the start")


def truncation(subject: Subject) -> Finding:
    """Rows are cut after a whole step; what was cut has no label for the end of the turn."""
    wrong = []
    for place, example in enumerate(subject.examples):
        for length in range(example.steps[0][0], len(example.input_ids) + 1, 7):
            if not _cut_fine(example, tokens.truncate(example, length), length):
                wrong.append(place)
                break
    limit = subject.max_length or math.inf
    cut = sum(len(example.input_ids) > limit for example in subject.examples)
    return _all_rows(subject, wrong, f"cut after whole steps; {cut} longer than max_length {subject.max_length}")


def _cut_fine(whole: Example, cut: Example, length: int) -> bool:
    if len(whole.input_ids) <= length:
        return cut == whole
    kept = [span for span in whole.steps if span[1] <= length]
    end = kept[-1][1] if kept else 0
    return cut.steps == kept and cut.input_ids == whole.input_ids[:end] and cut.labels == whole.labels[:end]


# Rows


def predictors(subject: Subject) -> Finding:
    """Right before step i + 1 hang K predictor tokens: new rows of the embedding, at the positions that follow step i,
    seeing all up to there."""
    model, count = subject.reader.model, subject.predictors
    ids = list(range(base_rows(model), base_rows(model) + count))
    fine = predictor_ids(model) == ids and model.get_input_embeddings().weight.shape[0] == base_rows(model) + count
    for example, row in zip(subject.reader.train_dataset.examples, subject.planned, strict=True):
        for pair in row.pairs:
            end, (read, _) = example.steps[pair.step][0], pair.predicted[0]
            places = range(read - count + 1, read + 1)
            hung = [(row.input_ids[at], row.position_ids[at], row.visible_length[at], row.labels[at]) for at in places]
            fine &= hung == [(token, end + k, end, IGNORED) for k, token in enumerate(ids)]
            fine &= count > 0 or read == end - 1
    return Finding(bool(fine), f"{len(subject.batch['pairs'])} predicted views, {count} predictor tokens each")


def isolation(subject: Subject) -> Finding:
    """Other tokens wherever a view may not see: it must not move by a bit. Others in a target: it must move."""
    before, moved, still = subject.views(subject.batch), 0, 0
    for pairs in subject.rounds:
        for side in range(2):
            after = subject.views(subject.with_other_tokens(~_places(subject, pairs, side)))
            moved += sum(not torch.equal(after[pair, side], before[pair, side]) for pair in pairs)
        after = subject.views(subject.with_other_tokens(_places(subject, pairs, 1)))
        still += sum(torch.equal(after[pair, 1], before[pair, 1]) for pair in pairs)
    figure = f"{2 * len(before)} views: {moved} moved with tokens that they may not see"
    return Finding(moved == still == 0, figure + (f", {still} did not move with their own" if still else ""))


def _places(subject: Subject, pairs: list[int], side: int) -> Tensor:
    """bool (B, L): all that these pairs' views, of different rows, may see; in the rows of others, everything."""
    places = torch.ones_like(subject.batch["input_ids"], dtype=torch.bool)
    places[subject.batch["pairs"][pairs, 0]] = subject.allowed[pairs, side]
    return places


def gradients(subject: Subject) -> Finding:
    """The gradient of a view is 0 at every token that it may not see, and not at the token where it is read."""
    reader, rows, leaks, dead = subject.reader, subject.batch["pairs"][:, 0], 0, 0
    made: list[Tensor] = []
    embedding = reader.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda *call: made.append(call[2].requires_grad_()))
    try:
        with evaluating(reader.model):
            views = reader.terms(reader.model, subject.batch).views
    finally:
        hook.remove()
    direction = torch.randn(views.target.shape[1], generator=torch.Generator().manual_seed(0)).to(views.target)
    for pairs in subject.rounds:
        for side, view in enumerate((views.predicted, views.target)):
            (gradient,) = torch.autograd.grad((view[pairs] @ direction).sum(), made[0], retain_graph=True)
            felt = gradient.abs().sum(-1)[rows[pairs]] > 0
            leaks += int((felt & ~subject.allowed[pairs, side]).any(-1).sum())
            dead += sum(not felt[place, subject.read_at(pair, side)] for place, pair in enumerate(pairs))
    figure = f"{2 * len(views)} views: {leaks} with a gradient to tokens that they may not see"
    return Finding(leaks == dead == 0, figure + (f", {dead} without any of their own" if dead else ""))


def trunk(subject: Subject) -> Finding:
    """Other branch tokens: no state of the trunk may move by a bit."""
    branch = subject.batch["branch"]
    before = subject.states(subject.batch)
    after = subject.states(subject.with_other_tokens(branch > TRUNK))
    moved = int((before != after).any(-1)[branch == TRUNK].sum())
    return Finding(not moved, f"{int((branch == TRUNK).sum())} trunk states: {moved} moved with the branches' tokens")


# Numbers


def one_pass(subject: Subject) -> Finding:
    """The adapted implementation in one pass against the standalone one in two."""
    args = CompareArguments(model_name="", train_file="these rows", predictors=subject.predictors)
    reader = subject.reader
    found = compare_on(reader.model, list(subject.chosen), args, processing_class=reader.processing_class)
    apart = {name: abs(found[name]["adapted"] - found[name]["standalone"]) for name in ("lm_loss", "jepa_loss")}
    figure = f"LM loss {apart['lm_loss']:.1e} apart, JEPA loss {apart['jepa_loss']:.1e}, views "
    figure += f"{found['view_max_rel_diff']:.1e}, gradients {found['grad_max_rel_diff']:.1e} relative"
    return Finding(found["agree"], figure + ("" if found["agree"] else f"; first: {found['first_difference']}"))


def losses(subject: Subject) -> Finding:
    """Every loss and regulariser on the model's own views against its formula, in float64."""
    predicted, target = subject.views(subject.batch).double().cpu().unbind(1)
    predicted, target = predicted[:, :64], target[:, :64]  # numpy's loops are slow, and no formula minds the width
    problem, p, t = torch.arange(len(predicted)), predicted.numpy(), target.numpy()
    apart: dict[str, float] = {
        loss: _apart(Criterion(loss)(predicted, target, problem).numpy(), formula(p, t))
        for loss, formula in formulas.DISTANCES.items()
    }
    several = torch.cat([predicted, target])
    apart["vicreg"] = _apart(float(vicreg(several)), formulas.vicreg(several.numpy()))
    along = torch.randn(predicted.shape[1], 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = (several @ nn.functional.normalize(along, dim=0)).numpy()
    expected = np.mean([formulas.epps_pulley(column) for column in projected.T])
    apart["sigreg"] = _apart(float(sigreg(several, 0)), expected)
    worst = max(apart, key=lambda name: apart[name])
    return Finding(apart[worst] < 1e-9, f"{len(apart)} formulas in float64: {apart[worst]:.1e} apart ({worst})")


def _apart(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)))


# Training


def accumulation(subject: Subject) -> Finding:
    """One optimisation step on n rows at once, and on n rows one by one: the same gradient."""
    count = len(subject.chosen)
    if count < 2:
        return Finding(None, "one row has a pair: it takes two to accumulate")
    whole, parts = (_gradient(subject, size, count // size) for size in (count, 1))
    apart = float((whole - parts).norm() / whole.norm())
    return Finding(apart < 1e-4, f"gradients of 1 x {count} and {count} x 1 rows: {apart:.1e} apart, relative")


def _gradient(subject: Subject, batch_size: int, accumulated: int) -> Tensor:
    """Of one optimisation step that moves nothing: all trained parameters', one after the other."""
    trainer = subject.trained(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        learning_rate=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="sgd",
    )
    keeper = _KeepGradient()
    trainer.add_callback(keeper)
    trainer.train()
    assert keeper.gradient is not None
    return keeper.gradient


class _KeepGradient(TrainerCallback):
    gradient: Tensor | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        made = [each.grad for each in model.parameters() if each.grad is not None]
        self.gradient = torch.cat([gradient.detach().float().cpu().flatten() for gradient in made])


def trained(subject: Subject) -> Finding:
    """Two real steps: the loss is a number, and every predictor row has moved."""
    run = subject.two_steps
    finite = all(math.isfinite(loss) for loss in run.losses)
    moved = int((run.before != run.after).any(-1).sum())
    figure = f"losses {run.losses[0]:.4f}, {run.losses[1]:.4f}; {moved} of {len(run.after)} predictor rows moved"
    return Finding(finite and moved == len(run.after) == subject.predictors, figure)


def resume(subject: Subject) -> Finding:
    """Saved after the first step, loaded, and gone on: the second step is what it was."""
    run = subject.two_steps
    after = [each.detach().clone() for each in subject.reader.model.parameters() if each.requires_grad]
    again = subject.trained(**run.options)
    with torch.no_grad():
        for each in subject.reader.model.parameters():
            if each.requires_grad:
                each.zero_()  # what is not loaded shows
    again.train(resume_from_checkpoint=str(Path(run.trainer.args.output_dir, "checkpoint-1")))
    found = [each.detach() for each in subject.reader.model.parameters() if each.requires_grad]
    apart = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, after, strict=True))
    difference = abs(losses_of(again)[-1] - run.losses[-1])
    figure = f"second step after a resume: loss {difference:.1e} apart, weights {apart:.1e} relative"
    return Finding(difference < 1e-4 and apart < 1e-4, figure)


def export(subject: Subject) -> Finding:
    """What is saved loads with plain transformers, has the base model's rows, gives the same logits, and writes."""
    model = subject.two_steps.trainer.model
    folder = Path(subject.two_steps.trainer.args.output_dir, "export")
    subject.two_steps.trainer.save_model(str(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(model.device).eval()
    tokenizer, rows = load_tokenizer(str(folder)), plain.get_input_embeddings().weight.shape[0]
    example = subject.reader.train_dataset.examples[0]
    ids = torch.tensor([example.input_ids], device=model.device)
    with torch.no_grad(), evaluating(model):
        ours, theirs = model(ids).logits[..., :rows].float(), plain(ids).logits.float()
    apart = float((ours - theirs).norm() / ours.norm()) if ours.shape == theirs.shape else math.inf
    prompt = ids[:, : example.steps[0][0]]
    attention = torch.ones_like(prompt)
    written = plain.generate(prompt, attention_mask=attention, max_new_tokens=GENERATED, do_sample=False)
    said = str(tokenizer.decode(written[0, prompt.shape[1] :])).replace("\n", " ")
    figure = f"{rows} embedding rows, logits {apart:.1e} apart, relative; writes {said!r}"
    return Finding(rows == base_rows(model) and apart < 1e-4 and written.shape[1] > prompt.shape[1], figure)


# name -> the check, and what to do where it fails
CHECKS: dict[str, tuple[Callable[[Subject], Finding], str]] = {
    "steps": (steps, "cut the answers into steps: step-jepa prepare, with another --split_by"),
    "step spans": (spans, "look at the row: step-jepa inspect steps --index N; then prepare the data anew"),
    "labels": (labels, "look at the row: step-jepa inspect tokens --index N; the chat template may be at fault"),
    "one BOS": (bos, "let the chat template write {{ bos_token }} once, at the start"),
    "truncation": (truncation, "please report this: whole steps must stay whole"),
    "predictor tokens": (predictors, "please report this, with the model's name"),
    "isolation, by perturbation": (isolation, "try --attn_implementation eager; else this model cannot be used"),
    "isolation, by gradient": (gradients, "try --attn_implementation eager; else this model cannot be used"),
    "trunk undisturbed": (trunk, "try --attn_implementation eager; else this model cannot be used"),
    "one pass = two passes": (one_pass, "see the README, If the two disagree"),
    "losses": (losses, "please report this, with the versions of torch and numpy"),
    "accumulation": (accumulation, "train with --gradient_accumulation_steps 1, and please report this"),
    "training": (trained, "lower the learning rate; rows that do not move: are they trained under this adapter?"),
    "save, load, continue": (resume, "do not resume runs of this model, and please report this"),
    "plain transformers": (export, "use --keep_adapter, or please report this with the model's name"),
}


def findings(subject: Subject, names: list[str] | None = None) -> Iterator[tuple[str, Finding]]:
    """Each check's finding, in order. What cannot be set up fails once; checks that need it are not made."""
    reasons: set[str] = set()
    for name in names or list(CHECKS):
        try:
            yield name, CHECKS[name][0](subject)
        except Exception as error:  # whatever a strange model or tokenizer makes of it is a finding
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reason = " ".join(reason.split())[:300]
            yield name, Finding(None if reason in reasons else False, reason)
            reasons.add(reason)


# Helpers


def _all_rows(subject: Subject, wrong: list[int], what: str) -> Finding:
    if not wrong:
        return Finding(True, f"{len(subject.examples)} of {len(subject.examples)} rows: {what}")
    return Finding(False, f"{len(wrong)} of {len(subject.examples)} rows not so, first example {wrong[0]}: {what}")


def _decoded(subject: Subject, ids: list[int]) -> str:
    return subject.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


def _words(texts: list[str]) -> list[str]:
    return ["".join(text.split()) for text in texts]


def _leading(ids: list[int], token: int) -> int:
    return next((place for place, each in enumerate(ids) if each != token), len(ids))
