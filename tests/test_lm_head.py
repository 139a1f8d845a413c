"""The head in chunks is the head whole: values, gradients, and what stands in memory."""

import json
import logging
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, byte_tokenizer, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, set_seed

from step_jepa.models import lm_head
from step_jepa.models.forward import token_scores
from step_jepa.models.lm_head import LMHead
from step_jepa.models.loading import setup_model_and_tokenizer

V = 264


def batch_of(count=4, length=40):
    torch.manual_seed(1)
    ids = torch.randint(0, V, (count, length))
    labels = ids.clone()
    labels[:, :9] = -100
    return {"input_ids": ids, "labels": labels}


def with_biased_head(model):
    model.lm_head = nn.Linear(32, V)
    return model


def with_adapter(model):
    adapter = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False, lora_dropout=0.0)
    return get_peft_model(model, adapter)


def with_predictors_and_adapter(model):
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return setup_model_and_tokenizer(model, processing_class=byte_tokenizer(), predictors=2, peft_config=adapter)[0]


def granite():
    set_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SMALL, vocab_size=V, logits_scaling=8.0, pad_token_id=258))


MODELS = {
    "untied": lambda: tiny_model(tie_word_embeddings=False),
    "tied": lambda: tiny_model(tie_word_embeddings=True),
    "softcapped": lambda: tiny_model("gemma3", final_logit_softcapping=0.5),
    "biased": lambda: with_biased_head(tiny_model(tie_word_embeddings=False)),
    "adapted": lambda: with_adapter(tiny_model(tie_word_embeddings=False)),
    "tied, trunk adapted": lambda: with_predictors_and_adapter(tiny_model(tie_word_embeddings=True)),
}


@pytest.fixture
def small_chunks(monkeypatch):
    """As many logits at once as 16 tokens have, in a batch of 124."""
    monkeypatch.setattr(lm_head, "WHOLE", 16 * V)
    monkeypatch.setattr(lm_head, "LEAST_CHUNK", 8)


def chunks_made(monkeypatch):
    counted = []
    original = LMHead.nll

    def counting(self, states, labels):
        counted.append(len(labels))
        return original(self, states, labels)

    monkeypatch.setattr(LMHead, "nll", counting)
    return counted


def read(model, batch, weights=None):
    """nll, and gradients of their mean or weighted sum."""
    model.zero_grad()
    nll, rows, _, _ = token_scores(model, batch, {"input_ids": batch["input_ids"], "use_cache": False})
    (nll.mean() if weights is None else (nll * weights).sum()).backward()
    return nll.detach(), rows, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(lm_head, "WHOLE", 2**40)
        return read(*arguments, **options)


def apart(left, right):
    return float((left.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))


def assert_same(ours, reference, *, values, gradients):
    assert (ours[0] - reference[0]).abs().max() <= values * reference[0].abs().max()
    assert torch.equal(ours[1], reference[1])
    assert ours[2].keys() == reference[2].keys()
    assert max(apart(ours[2][name], reference[2][name]) for name in ours[2]) <= gradients


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_are_the_whole(name, weighted, small_chunks, monkeypatch):
    model, batch = MODELS[name](), batch_of()
    counted = chunks_made(monkeypatch)
    weights = torch.linspace(0.1, 2, 4 * 31) if weighted else None
    ours = read(model, batch, weights)
    assert_same(ours, whole(monkeypatch, model, batch, weights), values=1e-6, gradients=1e-5)
    assert counted == [124]


@pytest.mark.parametrize("name", MODELS)
def test_entropies_of_labels_come_of_the_same_logits(name, small_chunks, monkeypatch):
    model, batch = MODELS[name]().eval(), batch_of()
    inputs = {"input_ids": batch["input_ids"], "use_cache": False}
    with torch.no_grad():
        nll, _, entropies, _ = token_scores(model, batch, inputs, entropy_of_labels=True)
        logits = model(batch["input_ids"]).logits[:, 8:-1].flatten(0, 1)
    distribution = torch.distributions.Categorical(logits=logits.double())
    assert torch.allclose(entropies.double(), distribution.entropy(), atol=1e-5)
    assert torch.equal(nll, read(model, batch)[0])


@pytest.mark.parametrize("name", MODELS)
def test_closer_in_float64(name, small_chunks, monkeypatch):
    model, batch = MODELS[name]().double(), batch_of()
    assert_same(read(model, batch), whole(monkeypatch, model, batch), values=1e-14, gradients=1e-12)


@pytest.mark.parametrize("name", ["tied", "softcapped", "adapted"])
def test_sums_of_bfloat16_are_float32(name, small_chunks, monkeypatch):
    """Hardly further from float32 gradients than whole logits are, however many chunks are summed: 50 chunks summed in
    bfloat16 are more than twice as far."""
    model, batch = MODELS[name]().bfloat16(), batch_of(8, 100)
    ours, theirs = read(model, batch), whole(monkeypatch, model, batch)
    exact = whole(monkeypatch, MODELS[name]().bfloat16().float(), batch)
    assert ours[0].dtype == torch.float32
    for parameter in (each for each in ours[2] if "lm_head" in each or "embed" in each):
        of_whole = apart(theirs[2][parameter], exact[2][parameter])
        assert apart(ours[2][parameter], exact[2][parameter]) <= 1.25 * of_whole
    assert (ours[0] - theirs[0]).abs().max() < 0.05


def test_under_autocast(small_chunks, monkeypatch):
    """Products in bfloat16, as whole logits have them there, also where the way back makes them again."""
    model, batch = MODELS["untied"](), batch_of()
    for weights in (None, torch.linspace(0.1, 2, 4 * 31)):
        with torch.autocast("cpu", torch.bfloat16):
            ours = read(model, batch, weights=weights)
            theirs = whole(monkeypatch, model, batch, weights=weights)
        assert ours[0].dtype == torch.float32
        assert_same(ours, theirs, values=1e-2, gradients=2e-2)
        exact = whole(monkeypatch, model, batch, weights=weights)
        assert apart(ours[2]["lm_head.weight"], exact[2]["lm_head.weight"]) > 1e-4


def test_a_model_that_does_more_than_apply_its_head_keeps_its_own_logits(small_chunks, monkeypatch, caplog):
    """Granite divides them."""
    model, batch, counted = granite(), batch_of(), chunks_made(monkeypatch)
    with caplog.at_level(logging.INFO, "step_jepa"):
        for _ in range(2):
            ours = read(model, batch)
            reference = whole(monkeypatch, model, batch)
            assert torch.equal(ours[0], reference[0])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["logits are made whole"]
    assert not counted


def test_dropout_on_the_head_keeps_whole_logits(small_chunks, monkeypatch):
    model, counted = MODELS["adapted"](), chunks_made(monkeypatch)
    model.get_output_embeddings().lora_dropout["default"] = nn.Dropout(0.5)
    read(model.train(), batch_of())
    assert not counted
    read(model.eval(), batch_of())
    assert counted == [124]


def test_small_batches_take_the_whole_path(monkeypatch):
    counted = chunks_made(monkeypatch)
    read(tiny_model(), batch_of())
    assert not counted


def test_a_graph_that_is_kept_gives_its_gradients_again(small_chunks):
    model, batch = MODELS["untied"](), batch_of()
    nll = token_scores(model, batch, {"input_ids": batch["input_ids"], "use_cache": False}).nll
    parameters = list(model.parameters())
    first = [each.clone() for each in torch.autograd.grad(nll.sum(), parameters, retain_graph=True)]
    for again in (torch.autograd.grad(nll.sum(), parameters, retain_graph=True) for _ in range(2)):
        for one, two in zip(first, again, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)


def test_a_frozen_head_has_no_gradient(small_chunks, monkeypatch):
    model, batch = MODELS["untied"](), batch_of()
    model.lm_head.requires_grad_(False)
    weights = torch.linspace(0.1, 2, 4 * 31)
    ours = read(model, batch, weights=weights)
    assert "lm_head.weight" not in ours[2]
    assert_same(ours, whole(monkeypatch, model, batch, weights=weights), values=1e-6, gradients=1e-5)
    with torch.no_grad():
        nll = token_scores(model, batch, {"input_ids": batch["input_ids"], "use_cache": False}).nll
    torch.testing.assert_close(nll, ours[0])


PEAK = """
import json, sys
import psutil
import torch
from types import SimpleNamespace
from torch import nn
import torch.nn.functional as F
from step_jepa.benchmark.memory import ResidentSet
from step_jepa.models.lm_head import LMHead

torch.set_num_threads(1)
torch.manual_seed(0)
vocabulary, count, width = 128_256, 1024, 64
module = nn.Linear(width, vocabulary, bias=False)
config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=vocabulary))
head = LMHead(SimpleNamespace(config=config, get_output_embeddings=lambda: module))
states, labels = torch.randn(count, width, requires_grad=True), torch.randint(0, vocabulary, (count,))
before, resident = psutil.Process().memory_info().rss, ResidentSet()
with resident.watched():
    if sys.argv[1] == "whole":
        nll = F.cross_entropy(module(states).float(), labels, reduction="none")
    else:
        assert head.takes(count)
        nll = head.nll(states, labels)
    nll.mean().backward()
print(json.dumps([(resident.largest - before) / 2**20, float(nll.detach().mean()), float(states.grad.norm())]))
"""


def test_peak_memory_with_the_vocabulary_of_llama():
    """Resident set above the loaded head, in a process of its own: at most a quarter of whole logits'."""
    figures = {}
    for kind in ("whole", "chunks"):
        result = subprocess.run([sys.executable, "-c", PEAK, kind], check=True, capture_output=True, text=True)
        figures[kind] = json.loads(result.stdout)
    print(figures)
    assert figures["chunks"][1:] == pytest.approx(figures["whole"][1:], rel=1e-5)
    assert figures["chunks"][0] <= 0.25 * figures["whole"][0]


def test_the_formula_is_cross_entropy(small_chunks):
    """Through autograd's own numbers: finite differences in float64, with a cap and a bias."""
    torch.manual_seed(0)
    states, labels = torch.randn(9, 5, dtype=torch.float64, requires_grad=True), torch.randint(0, 7, (9,))
    head = nn.Linear(5, 7).double()
    plan = lm_head._Plan(4, 2.0, torch.float64, True)

    def nll(*values):
        return lm_head._LinearNLL.apply(plan, labels, *values)

    torch.testing.assert_close(
        nll(states, head.weight, head.bias),
        F.cross_entropy(2 * torch.tanh(head(states) / 2), labels, reduction="none"),
    )
    assert torch.autograd.gradcheck(nll, (states, head.weight, head.bias))
