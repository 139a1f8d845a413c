"""Training: what it equals, what it saves, what it resumes."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from test_one_pass import batch_of, trainer_for
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from step_jepa import RepresentationConfig, RepresentationTrainer, StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments.parsing import overridden
from step_jepa.data.example import IGNORED
from step_jepa.errors import UserError
from step_jepa.models.target_encoder import TargetEncoder

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
STEPS = {"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def history(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def run(tokenizer, records, tmp_path, model=None, peft_config=None, **options):
    usual = {**QUIET, **STEPS, "lbd": 1.0, "pairs": "all", "lr_scheduler_type": "constant"}
    options = overridden([StepJEPAConfig], usual, options)
    trainer = StepJEPARepresentationTrainer(
        model or tiny_model(),
        StepJEPAConfig(output_dir=str(tmp_path / "out"), **options),
        records,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("options", [{"objective": "none"}, {"lbd": 0.0}])
def test_without_a_jepa_term_training_is_trainers_own_bit_for_bit(tokenizer, records, tmp_path, options, accumulation):
    options = {**options, "gradient_accumulation_steps": accumulation}
    ours = run(tokenizer, records, tmp_path, **{"lbd": 1.0, "padding": True, **options})
    flat = run(tokenizer, records, tmp_path, **{"lbd": 1.0, **options})
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in ours.train_dataset.examples]
    plain = Trainer(
        tiny_model(),
        TrainingArguments(
            output_dir=str(tmp_path / "plain"), gradient_accumulation_steps=accumulation, **QUIET, **STEPS
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_list(rows),
    )
    plain.train()
    assert history(ours) == history(plain)
    assert history(flat) == pytest.approx(history(plain), rel=1e-6)
    assert history(flat, "tokens_per_second")
    assert [sorted(entry) for entry in flat.state.log_history] == [sorted(entry) for entry in ours.state.log_history]
    assert len(history(ours)) == 5
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True))
    assert ours.model.get_input_embeddings().weight.shape[0] == 264


@pytest.mark.parametrize("loss", ["cosine", "l2", "mse"])
def test_one_by_eight_is_eight_by_one(tokenizer, records, tmp_path, loss):
    kinds = [
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    ]
    # rows of very different length and number of pairs, so that a mean of means would differ
    model = tiny_model()
    model.accepts_loss_kwargs = loss != "mse"  # a model that does not count labels must give the same
    options = {"loss": loss, "max_steps": 4, "optim": "sgd"}
    runs = [run(tokenizer, records[1:], tmp_path, model=deepcopy(model), **options, **kind) for kind in kinds]
    for name in ("loss", "lm_loss", "jepa_loss", "grad_norm"):
        torch.testing.assert_close(*[torch.tensor(history(x, name)) for x in runs], rtol=2e-5, atol=1e-6)
    assert history(runs[0], "pairs") == history(runs[1], "pairs")


def test_loss_is_its_formula(tokenizer, records, tmp_path):
    trainer = trainer_for(tiny_model(), tokenizer, records, tmp_path, lbd=0.5, gamma=2.0)
    terms = trainer.representation.forward(batch_of(trainer, 9))
    (loss, _) = trainer.compute_loss(trainer.model, batch_of(trainer, 9), return_outputs=True)
    cosine = F.cosine_similarity(terms.views.predicted, terms.views.target, dim=-1)
    labels = sum(x != IGNORED for example in trainer.train_dataset.examples for x in example.labels)
    assert len(terms.nll) == labels
    torch.testing.assert_close(
        loss, 2 * terms.nll.sum() + 0.5 * (1 - cosine).sum()
    )  # outside training: not yet divided


def test_logged_parts_make_the_loss(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, lbd=0.5, gamma=2.0)
    for loss, lm, jepa, cosine in zip(
        *(history(trainer, name) for name in ("loss", "lm_loss", "jepa_loss", "view_cosine")), strict=True
    ):
        assert loss == pytest.approx(2 * lm + 0.5 * jepa, rel=1e-5)
        assert jepa == pytest.approx(1 - cosine, rel=1e-5)
    assert all(x > 0 for x in history(trainer, "tokens_per_second"))


def test_examples_with_one_step_train_the_language_model_only(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records[-1:], tmp_path, lbd=0.5, per_device_train_batch_size=1)
    assert history(trainer, "pairs") == [0] * 5
    assert history(trainer, "loss") == pytest.approx(history(trainer, "lm_loss"), rel=1e-5)


def test_jepa_ratio_follows_seed_and_step(tokenizer, records, tmp_path):
    def carried(**options):
        return [pairs > 0 for pairs in history(run(tokenizer, records[:8], tmp_path, max_steps=12, **options), "pairs")]

    half = carried(jepa_ratio=0.5)
    assert 2 <= sum(half) <= 10
    assert carried(jepa_ratio=0.5, per_device_train_batch_size=1, gradient_accumulation_steps=2) == half
    assert not any(carried(jepa_ratio=0.0))
    assert all(carried(jepa_ratio=1.0))


def test_evaluation_does_not_depend_on_the_batching(tokenizer, records, tmp_path):
    def figures(size):
        trainer = trainer_for(tiny_model(), tokenizer, None, tmp_path, per_device_eval_batch_size=size)
        return trainer, trainer.evaluate(records)

    (trainer, one), (_, four) = figures(1), figures(4)
    for name in ("eval_loss", "eval_lm_loss", "eval_jepa_loss", "eval_cosine_paired", "eval_cosine_unpaired"):
        assert one[name] == pytest.approx(four[name], rel=1e-5)
    rows = trainer.representation.evaluation_rows(records)
    with torch.no_grad():
        terms = trainer.representation.forward(trainer.data_collator([rows[index] for index in range(len(rows))]))
    views = terms.views
    predicted, target = F.normalize(views.predicted, dim=-1), F.normalize(views.target, dim=-1)
    table = predicted @ target.T
    off = table[~torch.eye(len(table), dtype=torch.bool)]
    assert one["eval_lm_loss"] == pytest.approx(terms.nll.mean().item(), rel=1e-5)
    assert one["eval_jepa_loss"] == pytest.approx(1 - table.diagonal().mean().item(), rel=1e-5)
    assert one["eval_cosine_unpaired"] == pytest.approx(off.mean().item(), rel=1e-4)
    assert one["eval_pairs"] == len(table)


def test_a_resumed_run_ends_as_an_undisturbed_one(tokenizer, records, tmp_path):
    options = {"pairs": "random", "pairs_per_example": 1, "jepa_ratio": 0.7, "max_steps": 8, "loss": "mse"}
    whole = run(tokenizer, records, tmp_path / "a", save_strategy="steps", save_steps=3, peft_config=LORA, **options)
    config = StepJEPAConfig(
        output_dir=str(tmp_path / "a" / "out"), **{**QUIET, **STEPS, "lbd": 1.0, **options, "save_strategy": "no"}
    )
    again = StepJEPARepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer, peft_config=LORA)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "out" / "checkpoint-3"))
    assert history(again) == pytest.approx(history(whole), rel=1e-6)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_lora_trains_the_predictor_rows_and_no_other(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, peft_config=LORA, predictors=2)
    start = trainer_for(tiny_model(), tokenizer, records, tmp_path, predictors=2)
    before, after = (made.model.get_input_embeddings()(torch.arange(266)) for made in (start, trainer))
    moved = (before - after).abs().sum(-1) > 0
    assert moved.nonzero().flatten().tolist() == [264, 265]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["full", "merged", "adapter"])
def test_export_loads_in_plain_libraries_and_gives_the_same_logits(tokenizer, records, tmp_path, form, tied):
    base = tmp_path / "base"
    tiny_model(tie_word_embeddings=tied).save_pretrained(base)
    tokenizer.save_pretrained(base)
    options = {**QUIET, **STEPS, "lbd": 1.0, "keep_adapter": form == "adapter"}
    trainer = StepJEPARepresentationTrainer(
        str(base),
        StepJEPAConfig(output_dir=str(tmp_path / "out"), **options),
        records,
        peft_config=None if form == "full" else LORA,
    )
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    if form == "adapter":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
        assert all("lora_" in name for name in load_file(out / "adapter_model.safetensors"))
    else:
        model = AutoModelForCausalLM.from_pretrained(out)
        assert not hasattr(model.config, "predictors")
        assert model.config.vocab_size == 264
        assert (
            len(load_file(out / "model.safetensors"))
            == len(AutoModelForCausalLM.from_pretrained(base).state_dict()) - tied
        )
    assert model.get_input_embeddings().weight.shape[0] == 264
    ids = torch.tensor([trainer.train_dataset.examples[0].input_ids])
    with torch.no_grad():
        ours = trainer.model.eval()(ids).logits[..., :264]
        torch.testing.assert_close(model.eval()(ids).logits, ours, rtol=1e-4, atol=1e-5)
    assert load_file(out / "predictors.safetensors")["predictors"].shape == (1, 32)
    assert trainer.model.predictor_tokens.weight.shape == (1, 32)  # the trained model is left as it was


def test_training_goes_on_from_the_predictor_rows_beside_an_export(tokenizer, records, model_folder, tmp_path):
    options = {**QUIET, **STEPS, "lbd": 1.0}
    for source in (model_folder, str(tmp_path / "out")):
        trainer = StepJEPARepresentationTrainer(
            source, StepJEPAConfig(output_dir=str(tmp_path / "out"), **options), records
        )
        rows = trainer.model.predictor_tokens.weight.detach().clone()
        if source != model_folder:
            assert torch.equal(rows, load_file(tmp_path / "out" / "predictors.safetensors")["predictors"])
        trainer.train()
        trainer.save_model()


def test_what_lies_beside_a_kept_adapter_is_found(tokenizer, records, model_folder, tmp_path):
    options = {**QUIET, **STEPS, "lbd": 1.0, "loss": "centred_cosine", "predictor_head": "linear"}
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), keep_adapter=True, **options)
    trainer = StepJEPARepresentationTrainer(model_folder, config, records, peft_config=LORA)
    trainer.train()
    trainer.save_model()
    config = StepJEPAConfig(output_dir=str(tmp_path / "on"), **options)
    again = StepJEPARepresentationTrainer(str(tmp_path / "out"), config, records)
    assert not torch.equal(again.model.predictor_head.weight, torch.eye(32))
    for name, value in trainer.jepa.state.state_dict().items():
        assert torch.equal(again.jepa.state.state_dict()[name], value), name


def test_a_slow_twin_of_a_bf16_model_moves(tokenizer, records, tmp_path):
    model = tiny_model().to(torch.bfloat16)
    target_encoder = TargetEncoder(decay=0.99)
    target_encoder.begin(model)
    start = [value.clone() for value in target_encoder.buffers()]
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.01)
    target_encoder.update(model)
    moved = [not torch.equal(*pair) for pair in zip(start, target_encoder.buffers(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)  # in bfloat16 a hundredth of a hundredth would be rounded away


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{"target_encoder": "ema", "keep_adapter": True}, {"control": "frozen_target"}])
def test_twins_of_an_adapter(tokenizer, records, tmp_path, options, tied):
    trainer = run(tokenizer, records, tmp_path, tiny_model(tie_word_embeddings=tied), LORA, **options)
    assert len(history(trainer)) == 5
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    assert all(value.grad is None or value.grad.isfinite().all() for value in trained)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight"
    target_encoder = trainer.representation.forward.target_encoder
    moved, slow = trainer.model.get_parameter(name), target_encoder.get_buffer(name.replace(".", "/"))
    assert moved.abs().sum() > 0
    assert bool(slow.abs().sum() > 0) == ("target_encoder" in options)


@pytest.mark.parametrize("tied", [True, False])
def test_what_a_resumed_longer_run_says(tokenizer, records, tmp_path, caplog, tied):
    options = {"lr_scheduler_type": "linear", "logging_steps": 1}
    model, same = (tiny_model(tie_word_embeddings=tied) for _ in range(2))
    run(tokenizer, records, tmp_path, model, max_steps=2, save_strategy="steps", save_steps=2, **options)
    config = StepJEPAConfig(
        output_dir=str(tmp_path), **{**QUIET, **STEPS, "lbd": 1.0, "pairs": "all", **options, "max_steps": 4}
    )
    longer = StepJEPARepresentationTrainer(same, config, records, processing_class=tokenizer)
    before = []
    longer.add_callback(_NoteLearningRate(before))
    longer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert before == pytest.approx([0, 0.0025])
    assert "is of a run of 2 steps: the linear schedule is made anew over 4 steps" in caplog.text
    assert "missing keys" not in caplog.text


class _NoteLearningRate(TrainerCallback):
    def __init__(self, noted):
        self.noted = noted

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.noted.append(optimizer.param_groups[0]["lr"])


def test_a_gradient_of_zero_is_said_once(tokenizer, records, tmp_path, caplog):
    class _Ruin(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.model.norm.weight.requires_grad_(False).zero_()

    config = StepJEPAConfig(output_dir=str(tmp_path), **{**QUIET, **STEPS, "max_steps": 2})
    StepJEPARepresentationTrainer(
        tiny_model(), config, records, processing_class=tokenizer, callbacks=[_Ruin()]
    ).train()
    assert caplog.text.count("the gradient of step") == 1
    assert "step 1 is exactly zero" in caplog.text
    assert "lower --learning_rate" in caplog.text


def test_resuming_with_other_options_is_refused(tokenizer, records, tmp_path):
    run(tokenizer, records, tmp_path, save_strategy="steps", save_steps=3, control="random_target")
    options = {**QUIET, **STEPS, "lbd": 1.0, "pairs": "all"}
    other = StepJEPARepresentationTrainer(
        tiny_model(), StepJEPAConfig(output_dir=str(tmp_path / "x"), **options), records, processing_class=tokenizer
    )
    with pytest.raises(UserError, match="was begun with control = random_target, not none"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))


def test_llm_jepa_through_its_own_trainer(tokenizer, records, tmp_path):
    config = RepresentationConfig(output_dir=str(tmp_path), **QUIET, **STEPS, lbd=1.0)
    trainer = RepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer)
    trainer.train()
    assert history(trainer, "pairs") == [2, 2, 2, 2, 1]
    theirs = run(tokenizer, records, tmp_path, objective="llm_jepa")
    assert history(theirs) == history(trainer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"predictors": -1}, "predictors = -1"),
        ({"lbd": -0.1}, "lbd = -0.1"),
        ({"jepa_ratio": 2.0}, "jepa_ratio = 2.0"),
        ({"max_length": 0}, "max_length = 0"),
        ({"pairs_per_example": 0}, "pairs_per_example = 0"),
    ],
)
def test_bad_options(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        StepJEPAConfig(output_dir=str(tmp_path), **options)


def test_bad_models(tokenizer, records, tmp_path):
    with pytest.raises(UserError, match=r"260 tokens, the model 259 rows"):
        trainer_for(tiny_model(rows=259), tokenizer, records, tmp_path)
    with pytest.raises(UserError, match="needs its tokenizer"):
        trainer_for(tiny_model(), None, records, tmp_path)
    with pytest.raises(UserError, match="max_length = 5: raise it"):
        trainer_for(tiny_model(), tokenizer, records, tmp_path, max_length=5)


def test_rows_learn_the_epoch(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, pairs="random", max_steps=-1, num_train_epochs=3)
    assert int(trainer.train_dataset.epoch) == 2


def test_checkpointing_changes_nothing(tokenizer, records, tmp_path):
    plain = run(tokenizer, records, tmp_path)
    again = run(tokenizer, records, tmp_path, activation_checkpointing=True)
    assert history(again) == pytest.approx(history(plain), rel=1e-6)


def test_bf16_trains(tokenizer, records, tmp_path):
    half = run(tokenizer, records, tmp_path, bf16=True)
    assert history(half) == pytest.approx(history(run(tokenizer, records, tmp_path)), rel=0.05)
    assert history(half) != history(run(tokenizer, records, tmp_path))


def test_gemma_with_lora_and_the_best_checkpoint(tokenizer, records, tmp_path):
    keep = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), **{**QUIET, **STEPS, **keep}, load_best_model_at_end=True)
    trainer = StepJEPARepresentationTrainer(
        tiny_model("gemma3"), config, records, records[:3], processing_class=tokenizer, peft_config=LORA
    )
    trainer.train()
    best = min(history(trainer, "eval_loss"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)


def test_no_predictors_are_remembered_by_the_export(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, predictors=0)
    trainer.save_model()
    assert load_file(tmp_path / "out" / "predictors.safetensors")["predictors"].shape == (0, 32)
    assert trainer.model.predictor_tokens is None
    assert all("predictor" not in name for name, _ in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": []}, "one data set"),
        (iter([]), "one data set"),
        ([], "it is empty"),
        ([{"messages": [{"role": "assistant", "content": None}]}], "messages, turn 1: give turns"),
        ([{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}], "reasoning_content"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "must end with an assistant turn"),
    ],
)
def test_bad_data(tokenizer, tmp_path, data, words):
    with pytest.raises(UserError, match=words):
        trainer_for(tiny_model(), tokenizer, data, tmp_path)


TWO_PROCESSES = """
import json, os, sys
sys.path.insert(0, {tests!r})
from conftest import byte_tokenizer, tiny_model
from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.models import lm_head
lm_head.WHOLE, lm_head.LEAST_CHUNK = {whole}, 8
records = json.load(open({records!r}))
config = StepJEPAConfig(output_dir={out!r}, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    logging_steps=1, max_steps=4, per_device_train_batch_size={rows}, learning_rate=1e-2,
    pairs="all", lr_scheduler_type="constant", optim="sgd", per_device_eval_batch_size={size},
    **dict(train_sampling_strategy="sequential", dataloader_num_workers=1) | {options!r})
trainer = StepJEPARepresentationTrainer(tiny_model(), config, records[:8], records, processing_class=byte_tokenizer())
trainer.train()
figures = trainer.evaluate()
if trainer.is_world_process_zero():
    json.dump([trainer.state.log_history, figures], open({out!r} + ".json", "w"))
os._exit(0)  # gloo now and then aborts a process that ends the usual way
"""


@pytest.mark.parametrize(
    "options",
    [
        {"lbd": 1.0, "entropy_filter": 1},
        {"lbd": 1.0, "gamma": 0.5, "streaming": True, "shuffle_buffer": 3, "train_sampling_strategy": "random"},
        {"lbd": 1.0, "loss": "centred_cosine", "predictor_head": "linear", "jepa_ratio": 0.7},
        {"lbd": 1.0, "loss": "infonce", "regulariser": "vicreg", "entropy_filter": 2, "entropy_of": "base"},
        {"lbd": 1.0, "max_tokens_per_batch": 300, "train_sampling_strategy": "random"},
    ],
    ids=[
        "cosine, filtered",
        "logits in chunks, stream",
        "centred, head",
        "infonce, vicreg, filtered",
        "by tokens",
    ],
)
def test_two_processes_are_one(records, tmp_path, options):
    (tmp_path / "records.json").write_text(json.dumps(records))
    results = []
    for size, launcher in (
        (4, []),
        (2, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        script, out = tmp_path / f"run{size}.py", tmp_path / f"out{size}"
        tests, data = str(Path(__file__).parent), str(tmp_path / "records.json")
        rows = size
        if "max_tokens_per_batch" in options:  # the batches of both ranks, one after another
            rows, options = 8, options | {"gradient_accumulation_steps": size // 2}
        texts = {"tests": tests, "records": data, "out": str(out), "size": size, "rows": rows, "options": options}
        script.write_text(TWO_PROCESSES.format(whole=4096 if "gamma" in options else 2**24, **texts))
        subprocess.run([sys.executable, *launcher, str(script)], check=True, capture_output=True, timeout=300)
        results.append(json.loads(out.with_suffix(".json").read_text()))
    for name in ("loss", "lm_loss", "jepa_loss", "pairs", "grad_norm", "negatives"):
        one, two = ([entry[name] for entry in log if name in entry] for log, _ in results)
        assert two == pytest.approx(one, rel=1e-5), name
    if "regulariser" not in options:  # what needs a batch changes with the batching of the held-out rows
        for name in ("eval_loss", "eval_lm_loss", "eval_jepa_loss", "eval_cosine_unpaired", "eval_pairs"):
            assert results[1][1][name] == pytest.approx(results[0][1][name], rel=1e-5), name
