"""Predictor tokens: a parameter of their own beside a base model that stays as it is."""

import json
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_one_pass import trainer_for
from test_trainer import LORA, QUIET, STEPS, history, run
from transformers import AutoModelForCausalLM

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.cli import main
from step_jepa.errors import UserError
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.models.predictors import hook_embeddings, predictor_ids

IDS = torch.tensor([[1, 264, 2, 265]])


def with_predictors(tokenizer, model=None, count=2, **options):
    made, _ = setup_model_and_tokenizer(model or tiny_model(), processing_class=tokenizer, predictors=count, **options)
    return made


def appended(model, rows):
    """The model of an earlier version, with the rows in its vocabulary."""
    with torch.random.fork_rng():
        model.resize_token_embeddings(264 + len(rows), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[264:] = rows
    model.config.predictors = len(rows)
    return model


# In place


def test_rows_are_put_in_place(tokenizer):
    model = with_predictors(tokenizer)
    with torch.no_grad():
        model.predictor_tokens.weight.copy_(torch.arange(64.0).view(2, 32))
    embedded = model.get_input_embeddings()(IDS)[0]
    known = model.get_input_embeddings().weight
    expected = [known[1], torch.arange(32.0), known[2], torch.arange(32.0, 64.0)]
    assert all(map(torch.equal, embedded, expected))
    assert known.shape == (264, 32)
    assert model.config.vocab_size == 264
    assert not hasattr(model.config, "predictors")
    assert predictor_ids(model) == [264, 265]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3"])  # Gemma's embedding multiplies its rows by sqrt(H)
def test_they_are_what_rows_of_the_vocabulary_would_be(tokenizer, name, tied):
    model = with_predictors(tokenizer, tiny_model(name, tie_word_embeddings=tied))
    before = appended(tiny_model(name, tie_word_embeddings=tied), model.predictor_tokens.weight)
    assert torch.equal(model.get_input_embeddings()(IDS), before.get_input_embeddings()(IDS))
    assert torch.equal(model(IDS).logits, before(IDS).logits[..., :264])


def test_they_are_drawn_like_the_rows_that_are_there(tokenizer):
    model = tiny_model()
    known, noise = model.get_input_embeddings().weight, torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    rows = with_predictors(tokenizer, model, seed=5).predictor_tokens.weight
    assert torch.equal(rows, known.mean(0) + known.std(0) * noise)


def test_gradients_reach_them_and_no_row_of_the_vocabulary(tokenizer):
    model = with_predictors(tokenizer, tiny_model(tie_word_embeddings=False))
    model.model(torch.tensor([[264, 265]])).last_hidden_state.sum().backward()
    assert not model.get_input_embeddings().weight.grad.any()
    assert (model.predictor_tokens.weight.grad.abs().sum(-1) > 0).all()
    model.zero_grad()
    model.model(torch.tensor([[3, 4]])).last_hidden_state.sum().backward()
    assert not model.predictor_tokens.weight.grad.any()  # but there is one: DDP waits for it


@pytest.mark.parametrize("lora", [False, True])
def test_copies_and_merged_models_have_rows_of_their_own(tokenizer, lora):
    model = with_predictors(tokenizer, peft_config=LORA if lora else None)
    before = model(IDS).logits.detach()
    copy = deepcopy(model)
    if lora:
        copy = copy.merge_and_unload()
    assert torch.equal(copy(IDS).logits, before)
    with torch.no_grad():
        copy.predictor_tokens.weight.zero_()
    assert not copy.get_input_embeddings()(IDS)[0, [1, 3]].any()
    assert torch.equal(model(IDS).logits, before)
    for each in (copy, model):
        hook_embeddings(each)  # again
        embedding = each.get_input_embeddings()
        assert len(embedding._forward_hooks) == len(embedding._forward_pre_hooks) == 1
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(
    "peft", [{"target_modules": ["embed_tokens", "lm_head"]}, {"modules_to_save": ["embed_tokens"]}]
)
def test_an_adapter_may_change_embeddings_that_are_not_tied(tokenizer, records, tmp_path, peft):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **peft})
    trainer = run(tokenizer, records, tmp_path, tiny_model(tie_word_embeddings=False), config, predictors=2)
    model = trainer.model.eval()
    assert torch.equal(model.get_input_embeddings()(IDS)[0, [1, 3]], model.predictor_tokens.weight)
    before = [model(ids).logits.detach() for ids in (IDS, IDS % 264)]
    merged = deepcopy(model).merge_and_unload()
    hook_embeddings(merged)  # merging has unwrapped the embedding
    for ids, logits in zip((IDS, IDS % 264), before, strict=True):
        torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=1e-5)
    trainer.save_model()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(exported(IDS % 264).logits, before[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predictors", [0, 1])
@pytest.mark.parametrize(
    "peft",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": r".*(embed_tokens|q_proj)"},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_an_adapter_on_one_end_of_tied_embeddings_is_refused(tokenizer, records, tmp_path, peft, predictors):
    model = tiny_model(tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"embeddings are tied.*: leave (lm_head|embed_tokens) out of"):
        run(tokenizer, records, tmp_path, model, LoraConfig(**peft), predictors=predictors)


def test_an_adapter_on_one_end_of_tied_embeddings_is_not_merged_either(tokenizer, tmp_path):
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    tiny_model(tie_word_embeddings=True).save_pretrained(base)
    for folder in (base, adapter):
        tokenizer.save_pretrained(folder)
    lora = LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(
        adapter, save_embedding_layers=False
    )
    with pytest.raises(UserError, match="embeddings are tied"):
        setup_model_and_tokenizer(adapter)


# Files


def checkpointed(tokenizer, records, tmp_path, model=None, peft_config=None, **options):
    """A trainer of three steps with a checkpoint after the second, and the checkpoint's folder."""
    keep = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3, "predictors": 2}
    trainer = run(tokenizer, records, tmp_path, model, peft_config, **{**keep, **options})
    return trainer, tmp_path / "out" / "checkpoint-2"


def test_a_checkpoint_is_the_base_model_and_the_rows(tokenizer, records, tmp_path):
    _, checkpoint = checkpointed(tokenizer, records, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report[name] for name in ("unexpected_keys", "missing_keys", "mismatched_keys"))
    assert model.get_input_embeddings().weight.shape == (264, 32)
    assert load_file(checkpoint / "predictors.safetensors")["predictors"].shape == (2, 32)


def test_an_export_has_the_files_of_the_base_model(tokenizer, records, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model().save_pretrained(base)
    run(tokenizer, records, tmp_path, predictors=2).save_model()
    assert (out / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size
    written, expected = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert {**written, "use_cache": True} == expected  # which Trainer sets


def test_the_rows_are_in_the_state_dict_and_in_no_file_of_the_model(tokenizer, tmp_path):
    model = with_predictors(tokenizer)
    assert "predictor_tokens.weight" in model.state_dict()
    model.save_pretrained(tmp_path)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapters_checkpoint_has_no_embedding(tokenizer, records, tmp_path, tied):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*save_embedding_layers")
        trainer, checkpoint = checkpointed(tokenizer, records, tmp_path, tiny_model(tie_word_embeddings=tied), LORA)
    lora = sum(value.numel() for name, value in trainer.model.named_parameters() if "lora_" in name)
    size = (checkpoint / "adapter_model.safetensors").stat().st_size
    assert 4 * lora < size < 4 * lora + 8000  # what the header takes
    assert all("lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    assert json.loads((checkpoint / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert (checkpoint / "predictors.safetensors").stat().st_size < 4 * 2 * 32 + 200


@pytest.mark.parametrize("options", [{}, {"target_encoder": "ema", "keep_adapter": True}, {"predictors": 0}])
@pytest.mark.parametrize("peft", [None, LORA])
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(tokenizer, records, tmp_path, peft, options):
    options = {"predictors": 2, "max_steps": 3, **({} if peft else {**options, "keep_adapter": False}), **options}
    whole, checkpoint = checkpointed(tokenizer, records, tmp_path, peft_config=peft, **options)
    config = StepJEPAConfig(
        output_dir=str(tmp_path / "again"), **{**QUIET, **STEPS, "lbd": 1.0, "pairs": "all", **options}
    )
    again = StepJEPARepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer, peft_config=peft)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert history(again) == history(whole)
    for (name, value), (_, other) in zip(again.model.named_parameters(), whole.model.named_parameters(), strict=True):
        assert torch.equal(value, other), name
    for name, value in whole.jepa.state.state_dict().items():
        assert torch.equal(again.jepa.state.state_dict()[name], value), name


def test_the_target_encoder_follows_them(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, predictors=2, target_encoder="ema", peft_config=LORA, keep_adapter=True)
    start = trainer_for(tiny_model(), tokenizer, records, tmp_path, predictors=2).model.predictor_tokens.weight
    slow = trainer.representation.forward.target_encoder.get_buffer("base_model/model/predictor_tokens/weight")
    now = trainer.model.predictor_tokens.weight
    assert 0 < (slow - start).norm() < 0.2 * (now - start).norm()


def test_an_earlier_export_goes_on(tokenizer, tmp_path):
    """A model of the base's size with predictors.safetensors beside it: as it was written, and as it is."""
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = torch.randn(3, 32)
    save_file({"predictors": rows}, tmp_path / "predictors.safetensors")
    model, _ = setup_model_and_tokenizer(str(tmp_path), predictors=3)
    assert torch.equal(model.predictor_tokens.weight, rows)
    with pytest.raises(UserError, match="holds 3 predictor rows: use --predictors 3"):
        setup_model_and_tokenizer(str(tmp_path), predictors=1)


@pytest.mark.parametrize("tied", [True, False])
def test_an_earlier_checkpoint_loads_by_name(tokenizer, tmp_path, tied):
    rows = torch.randn(2, 32)
    before = appended(tiny_model(tie_word_embeddings=tied), rows)
    before.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = setup_model_and_tokenizer(str(tmp_path), predictors=2)
    assert torch.equal(model.predictor_tokens.weight, rows)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (264, 32)
    assert torch.equal(model(IDS).logits, before(IDS).logits[..., :264])
    with pytest.raises(UserError, match="carries 2 predictor rows, not 1: use --predictors 2"):
        setup_model_and_tokenizer(str(tmp_path), predictors=1)


@pytest.mark.parametrize(("peft", "advice"), [(None, "with --model_name"), (LORA, "begin the run anew")])
def test_an_earlier_checkpoint_is_not_resumed(tokenizer, records, tmp_path, peft, advice):
    trainer, checkpoint = checkpointed(tokenizer, records, tmp_path, peft_config=peft)
    (checkpoint / "predictors.safetensors").unlink()
    with pytest.raises(UserError, match=f"a version that kept predictor rows in the vocabulary: .*{advice}"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("ids", [[264], {"embed_tokens": [264]}])
def test_an_earlier_adapter_checkpoint_is_no_export(tokenizer, tmp_path, ids):
    base, checkpoint = tmp_path / "base", tmp_path / "checkpoint"
    tiny_model().save_pretrained(base)
    tokenizer.save_pretrained(checkpoint)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(checkpoint)
    setup_model_and_tokenizer(str(checkpoint))
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trainable_token_indices": ids}))
    with pytest.raises(UserError, match="checkpoint to resume from, not an export"):
        setup_model_and_tokenizer(str(checkpoint))


def test_tokens_that_an_adapter_trains_are_exported_with_it(tokenizer, records, tmp_path):
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=[101])
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), keep_adapter=True, **QUIET, **STEPS)
    trainer = StepJEPARepresentationTrainer(str(base), config, records, peft_config=lora)
    trainer.train()
    trainer.save_model()
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    again, _ = setup_model_and_tokenizer(str(tmp_path / "out"))
    expected = trainer.model.eval()(IDS % 264).logits
    for model in (plain, again):
        torch.testing.assert_close(model(IDS % 264).logits, expected, rtol=1e-4, atol=1e-5)
    assert Path(tmp_path / "out" / "predictors.safetensors").exists()


@pytest.mark.parametrize("lora", [[], ["--lora", "--lora_r", "2"]])
def test_standalone_resumes_with_them(records, model_folder, tmp_path, capsys, lora):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    files = ["--model_name", model_folder, "--train_file", str(file), "--approach", "standalone", "--predictors", "2"]
    steps = ["--max_steps", "4", "--save_steps", "2", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]
    quiet = ["--report_to", "none", "--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", "2"]
    whole, again = tmp_path / "whole", tmp_path / "again"

    def train(out, *more):
        with pytest.raises(SystemExit) as stop:
            main(["train", *files, *steps, *quiet, *lora, "--output_dir", str(out), *more])
        return stop.value.code or 0

    assert train(whole) == 0
    checkpoint = whole / "checkpoint-2"
    resume = ["--resume_from_checkpoint", str(checkpoint)]
    assert train(again, *resume) == 0
    first = load_file(checkpoint / "predictors.safetensors")["predictors"]
    for name in ("predictors.safetensors", "model.safetensors"):
        ends = [load_file(folder / name) for folder in (whole, again)]
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items()), name
    assert not torch.equal(load_file(whole / "predictors.safetensors")["predictors"], first)
    (checkpoint / "predictors.safetensors").unlink()
    assert train(tmp_path / "not", *resume) == 2
    assert "earlier versions kept predictors in the vocabulary" in capsys.readouterr().err


# Two processes

PROCESS = """
import json, os, sys
sys.path.insert(0, {tests!r})
from conftest import byte_tokenizer, conversation, tiny_model
from peft import LoraConfig
from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
steps = [1, 4, 3, 2, 1, 1, 3, 1]  # with one step there is no pair: in places a rank has none
records = [
    conversation(*[f"So {{a}} + {{b}} = {{a + b}}." for b in range(count)], question=f"Is it {{a}}?")
    for a, count in enumerate(steps)
]
config = StepJEPAConfig(output_dir={out!r}, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    logging_steps=1, max_steps=4, per_device_train_batch_size={size}, learning_rate=1e-2, pairs="all", lbd=1.0,
    lr_scheduler_type="constant", optim="sgd", train_sampling_strategy="sequential", **{options!r})
lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if {lora!r} else None
model = tiny_model(tie_word_embeddings=True)
trainer = StepJEPARepresentationTrainer(model, config, records, processing_class=byte_tokenizer(), peft_config=lora)
trainer.train()
tokens = trainer.accelerator.unwrap_model(trainer.model).predictor_tokens
if trainer.is_world_process_zero():
    rows = tokens.weight.tolist() if tokens else []
    json.dump([trainer.state.log_history, rows], open({out!r} + ".json", "w"))
os._exit(0)  # gloo now and then aborts a process that ends the usual way
"""


@pytest.mark.parametrize(
    ("lora", "options"),
    [
        (True, {"predictors": 2, "activation_checkpointing": True}),
        (True, {"predictors": 0}),
        (False, {"predictors": 2, "activation_checkpointing": True}),
    ],
)
def test_two_processes_are_one_on_tied_embeddings(tmp_path, lora, options):
    results = []
    for size, launcher in (2, []), (1, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        script, out = tmp_path / f"run{size}.py", tmp_path / f"out{size}"
        places = {"tests": str(Path(__file__).parent), "out": str(out)}
        script.write_text(PROCESS.format(**places, size=size, options=options, lora=lora))
        subprocess.run([sys.executable, *launcher, str(script)], check=True, capture_output=True, timeout=300)
        results.append(json.loads(out.with_suffix(".json").read_text()))
    (one, rows), (two, other_rows) = results
    for name in ("loss", "lm_loss", "jepa_loss", "pairs", "grad_norm"):
        expected, logged = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert logged == pytest.approx(expected, rel=1e-5), name
    assert len(rows) == options["predictors"]
    torch.testing.assert_close(torch.tensor(other_rows), torch.tensor(rows), rtol=1e-5, atol=1e-7)
