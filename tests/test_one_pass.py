"""One pass over trunk and branches is what separate passes give, and nothing leaks, to the last bit."""

import pytest
import torch
from conftest import ARCHITECTURES, tiny_model
from transformers import MambaConfig, MambaForCausalLM

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments.parsing import overridden
from step_jepa.batches.attention import attention_mask, check
from step_jepa.batches.collate import BranchCollator
from step_jepa.errors import UserError


def trainer_for(model, tokenizer, records, tmp_path, **options):
    usual = {"pairs": "all", "predictors": 2, "skip_answer_step": False, "report_to": "none", "use_cpu": True}
    options = overridden([StepJEPAConfig], usual, options)
    return StepJEPARepresentationTrainer(
        model, StepJEPAConfig(output_dir=str(tmp_path / "out"), **options), records, processing_class=tokenizer
    )


def batch_of(trainer, count=3):
    rows = [trainer.train_dataset[index] for index in range(count)]
    return BranchCollator(trainer.processing_class.pad_token_id)(rows)


def last_states(model, **inputs):
    return model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_pass_equals_separate_passes(name, attention, tokenizer, records, tmp_path):
    model = tiny_model(name, attn_implementation=attention)
    trainer = trainer_for(model, tokenizer, records, tmp_path)
    batch = batch_of(trainer)
    with torch.no_grad():
        terms = trainer.representation.forward(batch, model)
        pair = 0
        for row, example in enumerate(trainer.train_dataset.examples[:3]):
            ids, predictors = torch.tensor([example.input_ids]), torch.tensor([[264, 265]])
            logits = model(ids).logits[0, :, :264].log_softmax(-1)
            nll = [-logits[p - 1, x] for p, x in enumerate(example.labels) if x >= 0]
            torch.testing.assert_close(terms.nll[terms.token_row == row], torch.stack(nll), rtol=1e-5, atol=1e-5)
            for (_, before), (start, stop) in zip(example.steps, example.steps[1:], strict=False):
                past = torch.cat([ids[:, :before], predictors], 1)
                step, places = ids[:, start:stop], torch.arange(start, stop)[None]
                predicted = last_states(model, input_ids=past)[0, -1]
                target = last_states(model, input_ids=step, position_ids=places)[0, -1]
                torch.testing.assert_close(terms.views.predicted[pair], predicted, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(terms.views.target[pair], target, rtol=1e-5, atol=1e-5)
                pair += 1
        assert pair == len(terms.views.predicted)
    assert max(len(example.input_ids) for example in trainer.train_dataset.examples[:3]) > 12  # longer than the window


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_isolation_to_the_last_bit(name, attention, tokenizer, records, tmp_path):
    model = tiny_model(name, attn_implementation=attention)
    trainer = trainer_for(model, tokenizer, records, tmp_path)
    batch = batch_of(trainer)
    mask = attention_mask(model, batch["branch"], batch["visible_length"], batch["position_ids"])

    @torch.no_grad()
    def states(ids):
        return last_states(model, input_ids=ids, attention_mask=mask, position_ids=batch["position_ids"])

    before, own = states(batch["input_ids"]), batch["branch"]
    is_target = batch["read_view"] % 2 == 1
    targets = torch.stack([batch["read_row"], batch["read_column"]], 1)[is_target]
    assert len(targets) == len(batch["pair_row"]) > 0
    for row, target in targets:
        others = batch["input_ids"].clone()
        others[row, own[row] != own[row, target]] = 77
        assert torch.equal(states(others)[row, target], before[row, target])
    branches_changed = torch.where(own > 0, 77, batch["input_ids"])
    assert torch.equal(states(branches_changed)[own == 0], before[own == 0])
    trunk_changed = torch.where(own == 0, 77, batch["input_ids"])
    assert not torch.equal(states(trunk_changed)[own == 0], before[own == 0])


def test_isolation_by_gradient(tokenizer, records, tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, tokenizer, records, tmp_path)
    batch = batch_of(trainer, 1)
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    mask = attention_mask(model, batch["branch"], batch["visible_length"], batch["position_ids"])
    out = last_states(model, inputs_embeds=embedded, attention_mask=mask, position_ids=batch["position_ids"])
    row, target = int(batch["read_row"][1]), int(batch["read_column"][1])
    assert row == 0
    out[0, target].sum().backward()
    felt = embedded.grad[0].abs().sum(-1) > 0
    assert felt.tolist() == (batch["branch"][0] == batch["branch"][0, target]).tolist()


def test_models_that_cannot_take_the_mask_are_refused():
    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    with pytest.raises(UserError, match="Mamba"):
        check(MambaForCausalLM(MambaConfig(**sizes)))
    with pytest.raises(UserError, match=r'flex_attention.*attn_implementation="sdpa"'):
        check(tiny_model(attn_implementation="flex_attention"))
    model = tiny_model("gemma3")
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(UserError, match="chunked_attention"):
        check(model)
    for name in ARCHITECTURES:
        check(tiny_model(name))


def test_a_leaking_mask_is_noticed(monkeypatch):
    from step_jepa.batches import attention

    monkeypatch.setattr(attention, "may_see", lambda branch, prefix: torch.ones(1, 9, 9, dtype=torch.bool))
    with pytest.raises(UserError, match="lets the trunk see a branch"):
        check(tiny_model())
