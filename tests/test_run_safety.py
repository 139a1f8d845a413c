"""What a run leaves behind: whole and its own, or nothing; and what it may go on from."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_cli import code, train, train_file  # noqa: F401
from test_trainer import LORA, QUIET, STEPS, run
from transformers import AutoModelForCausalLM, GenerationConfig, TrainerCallback

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.adapted import train_config
from step_jepa.errors import UserError
from step_jepa.models.export import end_of_turn, export
from step_jepa.models.loading import setup_model_and_tokenizer
from step_jepa.run_files.identity import examples_digest
from step_jepa.run_files.locking import locked
from step_jepa.run_files.names import LOCK_FILE
from step_jepa.run_files.writing import staged, write_whole
from step_jepa.training.checkpoints import fault_of, last_checkpoint

RESUME = ["--resume_from_checkpoint", "True"]


@pytest.fixture(scope="module")
def trained(model_folder, records, tmp_path_factory):
    """The folder of a run with its checkpoints, and the file that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert train(model_folder, file, folder / "out", "--save_steps", "1") == 0
    return folder / "out", file


def said_by(capsys) -> str:
    return "step-jepa: " + capsys.readouterr().err.rpartition("step-jepa: ")[2]  # perhaps behind a progress bar


# Going on from a checkpoint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "3"], "seed = 42, not 3"),
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size = 2, not 4"),
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps = 1, not 2"),
        (["--learning_rate", "1e-3"], "learning_rate = 5e-05, not 0.001"),
        (["--lr_scheduler_type", "cosine"], "lr_scheduler_type = linear, not cosine"),
        (["--warmup_steps", "2"], "warmup_steps = 0, not 2"),
        (["--weight_decay", "0.1"], "weight_decay = 0.0, not 0.1"),
        (["--max_grad_norm", "3"], "max_grad_norm = 1.0, not 3.0"),
        (["--bf16", "True"], "bf16 = False, not True"),
        (["--predictors", "2"], "predictors = 1, not 2"),
        (["--lora"], "lora = None, not {'r': 16"),
        (["--approach", "standalone"], "approach = adapted, not standalone"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_run_is_not_gone_on_with(trained, model_folder, capsys, options, words):
    out, file = trained
    assert train(model_folder, file, out, "--resume_from_checkpoint", out / "checkpoint-1", *options) == 2
    assert f"checkpoint-1 was begun with {words}" in said_by(capsys)


def test_the_rows_of_a_step_may_be_shared_out_anew(trained, model_folder, tmp_path, caplog):
    out, file = trained
    shared = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
    assert train(model_folder, file, tmp_path, "--resume_from_checkpoint", out / "checkpoint-1", *shared) == 0
    assert "is of 2 rows x 1 micro-batches x 1 ranks a step, and goes on with 1 x 2 x 1: the rows" in caplog.text
    before, after = (load_file(folder / "model.safetensors") for folder in (out, tmp_path))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)


def test_other_data_and_another_model_are_not_gone_on_with(trained, tokenizer, model_folder, tmp_path, capsys):
    out, file = trained
    other_model, other_file = tmp_path / "other", tmp_path / "reversed.jsonl"
    tiny_model(seed=1).save_pretrained(other_model)
    tokenizer.save_pretrained(other_model)
    other_file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    begun = ["--resume_from_checkpoint", out / "checkpoint-1"]
    assert train(model_folder, other_file, out, *begun) == 2
    assert "was begun with other training examples, or the same in another order" in said_by(capsys)
    assert train(other_model, file, out, *begun) == 2
    assert "was begun with other weights of the model" in said_by(capsys)


def test_the_digest_of_examples_is_of_tokens_labels_and_order(tokenizer, records, tmp_path):
    examples = run(tokenizer, records, tmp_path, max_steps=1).train_dataset.examples
    assert examples_digest(examples) == examples_digest(list(examples))
    assert examples_digest(examples) != examples_digest(examples[::-1])
    assert examples_digest(examples) != examples_digest(examples[:-1])


@pytest.mark.parametrize(
    "part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", "run.json"]
)
def test_a_checkpoint_is_complete_with_all_its_parts(trained, part):
    path = trained[0] / "checkpoint-2" / part
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        assert fault_of(path.parent) == f"{path} cannot be read"
        assert last_checkpoint([path.parent, trained[0] / "checkpoint-1"]) == str(trained[0] / "checkpoint-1")
        path.unlink()
        assert bool(fault_of(path.parent)) == (part != "run.json")
    finally:
        path.write_bytes(whole)
    assert fault_of(path.parent) is None


def test_what_a_checkpoint_pickles_is_not_run(trained):
    path = trained[0] / "checkpoint-2" / "scheduler.pt"
    whole = path.read_bytes()
    path.write_bytes(pickle.dumps(subprocess.Popen))
    try:
        assert fault_of(path.parent) == f"{path} cannot be read"
    finally:
        path.write_bytes(whole)


# Numbers that are not finite


@pytest.mark.parametrize(
    "options", [[], ["--objective", "none"], ["--approach", "standalone"], ["--diagnostics_steps", "1"]]
)
def test_training_stops_where_numbers_are_not_finite(trained, model_folder, tmp_path, capsys, options):
    held_out = ["--eval_file", trained[1]] if "--diagnostics_steps" in options else []
    out = tmp_path / "out"
    diverging = ["--learning_rate", "1e6", "--save_steps", "1", *options, *held_out]
    assert train(model_folder, trained[1], out, *diverging) == 2
    said = said_by(capsys)
    assert "of step 2 is not finite" in said or "views are not finite" in said
    assert "lower --learning_rate" in said
    assert not (out / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_neither_saved_nor_read(tokenizer, records, model_folder, tmp_path):
    class _Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                next(model.parameters())[0, 0] = float("inf")

    config = StepJEPAConfig(output_dir=str(tmp_path), **{**QUIET, **STEPS, "save_strategy": "steps", "save_steps": 1})
    trainer = StepJEPARepresentationTrainer(
        tiny_model(), config, records, processing_class=tokenizer, callbacks=[_Spoil()]
    )
    with pytest.raises(UserError, match=r"a trained weight of step 1 is not finite.*there is no checkpoint"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    trainer.model.save_pretrained(tmp_path / "spoilt")
    tokenizer.save_pretrained(tmp_path / "spoilt")
    with pytest.raises(UserError, match=r"the weights of .*spoilt' are not finite \(model.embed_tokens.weight\)"):
        setup_model_and_tokenizer(str(tmp_path / "spoilt"))


@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
        "predictors.safetensors",
    ],
)
def test_a_damaged_file_of_a_model_is_named(trained, tmp_path, name, part):
    shutil.copytree(trained[0], tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[: part and path.stat().st_size // part])
    with pytest.raises(UserError, match=f"{path} (is damaged|cannot be read)"):
        setup_model_and_tokenizer(str(path.parent), predictors=1)


# The output folder


def test_one_process_at_a_time_writes_into_a_folder(tmp_path):
    out = tmp_path / "new" / "out"
    with locked(out):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"out is in use by {holder} .*give another --output_dir"), locked(out):
            pass
    assert not out.parent.exists()  # as nothing was written
    out.mkdir(parents=True)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (out / LOCK_FILE).write_text(f"{dead.stdout.strip()}\n{socket.gethostname()}\n")
    with locked(out):  # what a process that died left
        pass
    assert not (out / LOCK_FILE).exists()


def test_a_run_waits_for_nobody(trained, model_folder, capsys):
    out, file = trained
    with locked(out):
        assert train(model_folder, file, out, "--overwrite") == 2
    assert "is in use by process" in said_by(capsys)


@pytest.mark.parametrize("command", ["evaluate", "pairing"])
def test_results_are_written_by_one_process_at_a_time(tmp_path, capsys, command):
    out = tmp_path / "out"
    with locked(out):
        assert code(command, "--model_name", "none", "--test_file", "none.jsonl", "--output_dir", out) == 2
    assert "is in use by process" in said_by(capsys)
    assert code(command, "--model_name", "none", "--test_file", "none.jsonl", "--output_dir", out) == 2
    assert "in use" not in said_by(capsys)
    assert not out.exists()  # as nothing was written


def test_only_what_is_ours_is_replaced(trained, model_folder, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    theirs = ["checkpoint-notes/a.txt", "adapter_notes.txt", "model_old.safetensors", "adapter_old/a.txt", "README.md"]
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    ours = ["config.json", "run.json", "rows.json", "trainer_state.json", "step_jepa.json", "tokenizer.json"]
    for name in ours:
        (out / name).symlink_to(victim)
    (out / "model.safetensors").write_text("of an earlier run")
    (out / ".run.json.999999999.tmp").write_text("of a process that was killed")
    (out / ".export.999999999.tmp").mkdir()
    assert train(model_folder, trained[1], out, "--overwrite", "--lora", "--keep_adapter") == 0
    assert {(out / name).read_text() for name in theirs} == {"mine"}
    assert victim.read_text() == "mine"
    assert not any((out / name).is_symlink() for name in ours if name != "config.json")
    assert not list(out.glob(".*"))
    assert not (out / "model.safetensors").exists()


def test_what_cannot_be_saved_is_refused_before_training(trained, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "model.safetensors").mkdir(parents=True)
    assert train(model_folder, trained[1], out, "--overwrite") == 2
    assert "model.safetensors is a folder, in the place of a file" in said_by(capsys)


def test_the_model_that_is_trained_is_not_written_over(trained, tokenizer, tmp_path, capsys):
    for options in ([], ["--lora", "--keep_adapter"]):
        assert train(trained[0], trained[1], trained[0], "--overwrite", *options) == 2
        assert "holds the model that is trained" in said_by(capsys)
    assert train(trained[0] / "checkpoint-1", trained[1], trained[0], "--overwrite") == 2
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = setup_model_and_tokenizer(str(tmp_path), peft_config=LORA)
    with pytest.raises(UserError, match="holds the base model"):
        export(model, tokenizer, tmp_path, keep_adapter=True)


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(OSError, match="No such file"), staged(tmp_path) as stage:
        (stage / "a" / "b").write_text("after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"
    with staged(tmp_path) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "a").write_text("after")
    assert (tmp_path / "sub" / "a").read_text() == "after"


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
        ("transformers.TrainerState.save_to_json", OSError(28, "No space left on device")),
        ("transformers.PreTrainedModel.save_pretrained", SafetensorError("I/O error: (os error 28)")),
    ],
)
def test_a_full_disk_is_one_line(trained, model_folder, tmp_path, capsys, caplog, monkeypatch, writer, error):
    out = tmp_path / "out"
    assert train(model_folder, trained[1], out, "--save_steps", "1", "--max_steps", "1") == 0

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(writer, full)
    assert train(model_folder, trained[1], out, "--save_steps", "1", *RESUME) == 2
    assert f"no room to write {out}/checkpoint-2, " in said_by(capsys)
    assert not (out / "checkpoint-2").exists()
    assert not [record for record in caplog.records if "no checkpoint to go on from" in record.message]
    assert train(model_folder, trained[1], out, "--save_steps", "1", *RESUME) == 2
    assert f"--resume_from_checkpoint True goes on from {out}/checkpoint-1" in said_by(capsys)


@pytest.mark.parametrize("content", ["text", b"bytes", ["parts", "of it"]])
def test_a_file_that_has_no_room_is_named(tmp_path, monkeypatch, content):
    def full(*args):
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", content)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(tmp_path / "a", "other")
    assert raised.value.filename == str(tmp_path / "a")
    whole = content if isinstance(content, bytes) else "".join(content).encode()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": whole}


# What is written


def test_secrets_are_written_nowhere(trained, model_folder, tmp_path):
    out = tmp_path / "out"
    secrets = ["--model_init_kwargs", '{"token": "hf_1234", "revision": "main"}', "--hub_token", "hf_1234"]
    assert train(model_folder, trained[1], out, "--save_steps", "3", *secrets) == 0
    assert not [path for path in out.rglob("*") if path.is_file() and b"hf_1234" in path.read_bytes()]
    kept = json.loads((out / "step_jepa.json").read_text())["model_init_kwargs"]
    assert kept == {"token": "(not written)", "revision": "main"}


@pytest.mark.parametrize("config", [StepJEPAConfig, train_config()])
def test_secrets_are_not_pickled_or_logged(config, tmp_path):
    args = config(output_dir=str(tmp_path), use_cpu=True, model_init_kwargs={"token": "hf_1234"}, hub_token="hf_1234")
    assert b"hf_1234" not in pickle.dumps(args)
    assert "hf_1234" not in args.to_json_string()
    assert args.model_init_kwargs == {"token": "hf_1234"}


def test_an_export_ends_where_training_taught_it_to(trained, tmp_path):
    """A base model that ends its texts otherwise than the template ends its turns."""
    tokenizer = byte_tokenizer()
    base, out = tmp_path / "base", tmp_path / "out"
    model = tiny_model(eos_token_id=7)
    model.generation_config.eos_token_id = 7
    model.save_pretrained(base)
    tokenizer.eos_token = "<|start|>"
    tokenizer.save_pretrained(base)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>") == 258
    for options in ([], ["--lora"], ["--lora", "--keep_adapter"], ["--approach", "standalone"]):
        assert train(base, trained[1], out, "--overwrite", *options) == 0
        ends = GenerationConfig.from_pretrained(out).eos_token_id
        assert ends[0] == 258
        assert 7 in ends or tokenizer.eos_token_id in ends
    exported = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        exported.lm_head.weight.zero_()
        exported.lm_head.weight[258] = 1e3 * exported.model(torch.tensor([[1, 2]])).last_hidden_state[0, -1]
    written = exported.generate(torch.tensor([[1, 2]]), max_new_tokens=8, do_sample=False)
    assert written.tolist() == [[1, 2, 258]]


# Options that would do nothing, or fail late


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep_adapter"], "--keep_adapter is read by --lora alone"),
        (["--diagnostics_rows", "4"], "--diagnostics_rows is read with --eval_file alone"),
        (["--eval_on_start", "True"], "--eval_on_start needs --eval_file"),
        (["--eval_strategy", "steps"], "--eval_strategy needs --eval_file"),
        (["--plain", "--chat_template_kwargs", '{"a": 1}'], "--plain and --chat_template_kwargs contradict each other"),
        (
            ["--streaming", "--max_steps", "1", "--dataset_num_proc", "2"],
            "--dataset_num_proc tokenises before training",
        ),
        (["--logging_steps", "inf"], "logging_steps = inf: give a finite number"),
        (["--lr_scheduler_kwargs", '{"num_cycels": 2}'], "unexpected keyword argument 'num_cycels'"),
        (["--dataloader_drop_last", "True", "--per_device_train_batch_size", "20"], "drops all of 9 rows"),
        (["--lbd", "auto", "--activation_checkpointing_kwargs", '{"use_reentrant": true}'], "use_reentrant hides"),
        (["--approach", "standalone", "--train_sampling_strategy", "group_by_length"], "random or sequential"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_options_are_refused_in_one_line(trained, model_folder, tmp_path, capsys, options, words):
    assert train(model_folder, trained[1], tmp_path / "out", *options) == 2
    assert words in said_by(capsys)
    assert not (tmp_path / "out").exists()


def test_held_out_rows_that_were_trained_on_are_said(trained, model_folder, tmp_path, caplog):
    assert train(model_folder, trained[1], tmp_path / "out", "--eval_file", trained[1]) == 0
    assert "held-out figures are of rows that were trained on" in caplog.text


def test_one_example_has_nothing_to_contrast_with(tokenizer, records, tmp_path):
    with pytest.raises(UserError, match="has no negatives with one pair in a batch"):
        run(tokenizer, records[:1], tmp_path, loss="infonce", pairs="first")


def test_predict_takes_records(tokenizer, records, tmp_path):
    trainer = run(tokenizer, records, tmp_path, max_steps=1)
    found = trainer.predict(records)
    expected = trainer.evaluate(records)
    assert found.predictions.shape == (9, 2)
    assert found.metrics["test_loss"] == pytest.approx(expected["eval_loss"])


def test_code_of_a_models_folder_is_not_asked_for(model_folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert code("train", "--model_name", tmp_path, "--train_file", "x.jsonl", "--output_dir", tmp_path / "out") == 2
