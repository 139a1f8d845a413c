"""The checks of `step-jepa verify` pass on what is right, and each fails when the thing that it guards is broken."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, byte_tokenizer, conversation, tiny_model

from step_jepa.batches import attention
from step_jepa.cli import main
from step_jepa.data import dataset, tokens
from step_jepa.data.tokens import IGNORED
from step_jepa.losses import distances as losses
from step_jepa.models import loading as models
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.training import representation
from step_jepa.verification import compare
from step_jepa.verification import context as subject
from step_jepa.verification.checks import CHECKS, findings
from step_jepa.verification.context import Subject


def folder_of(tmp_path, name="llama", tokenizer=None, **options):
    tiny_model(name, **options).save_pretrained(tmp_path / name)
    (tokenizer or byte_tokenizer()).save_pretrained(tmp_path / name)
    return str(tmp_path / name)


def file_of(tmp_path, records):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def verified(capsys, *argv):
    """(exit code, JSON on stdout)."""
    with pytest.raises(SystemExit) as stop:
        main(["verify", *map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return stop.value.code, json.loads(out)


@pytest.mark.parametrize("options", [(), ("--lora", "--predictors", 3), ("--predictors", 0)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_checks_pass(name, options, tmp_path, records, capsys):
    if options and name not in ("llama", "gemma3"):
        pytest.skip("options are tried with one model with windows and one without")
    rows = file_of(tmp_path, records)
    code, found = verified(capsys, "--model_name", folder_of(tmp_path, name), "--train_file", rows, *options)
    assert [check["check"] for check in found["checks"] if not check["passed"]] == []
    assert [check["check"] for check in found["checks"]] == list(CHECKS)
    assert (code, found["passed"]) == (0, True)


# Each mutation breaks one thing that users rely on, as a mistake in the package would.


def every_example(change):
    """Examples that are encoded wrongly."""
    return lambda patch: patch.setattr(dataset, "encode", lambda *args: change(tokens.encode(*args)))


def shifted(example):
    if len(example.steps) < 2:
        return example
    (start, stop), (_, end), *rest = example.steps
    return replace(example, steps=[(start, stop + 2), (stop + 2, end), *rest])


def unlabelled_end(example):
    last = max(place for place, label in enumerate(example.labels) if label != IGNORED)
    return replace(example, labels=[IGNORED if place == last else x for place, x in enumerate(example.labels)])


def no_pairs(example):
    return replace(example, steps=[(example.steps[0][0], example.steps[-1][1])], chars=example.chars[:1])


def doubled_start(patch):
    patch.setattr(Subject, "tokenizer", property(with_bos))
    every_example(lambda example: replace(example, input_ids=[257, 257, *example.input_ids]))(patch)


def with_bos(_):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(257)
    return tokenizer


def cut_anywhere(patch):
    patch.setattr(tokens, "_cut", lambda example, length: replace(example, input_ids=example.input_ids[:length]))


def predictors_late(patch):
    def late(self, row, example, step):
        before = example.steps[step][1] + 1
        return self._pooled(row.append_branch(self.predictors, position_offset=before, visible_length=before))

    patch.setattr(StepJEPA, "_predicted", late)


def target_sees_bos(patch):
    isolated = StepJEPA._target
    patch.setattr(StepJEPA, "_target", lambda self, *args: isolated(replace(self, target_sees="bos"), *args))


def leaking_gradient(patch):
    """A straight-through slip: the values are right, the gradient goes where it may not."""
    right = representation.read

    def read(states, batch):
        views = right(states, batch)
        leak = states[batch["pairs"][:, 0], 0]
        return replace(views, target=views.target + leak - leak.detach())

    patch.setattr(representation, "read", read)


def trunk_sees_branches(patch):
    right = attention.may_see

    def leaking(branch, prefix):
        seen = right(branch, prefix)
        if branch.shape[1] > 9:  # attention.check looks at a row of nine
            seen[:, :, -1] |= branch == 0
        return seen

    patch.setattr(attention, "may_see", leaking)


def other_distance(patch):
    patch.setattr(
        compare.standalone,
        "distances",
        lambda predicted, target, loss: 1.001 * (1 - torch.cosine_similarity(predicted, target)),
    )


def own_temperature(patch):
    right = losses.infonce
    patch.setattr(
        losses, "infonce", lambda p, t, problem, temperature, negatives: right(p, t, problem, 0.08, negatives)
    )


def means_of_micro_batches(patch):
    trainer = representation.RepresentationTrainer
    patch.setattr(trainer, "means", lambda self, terms, tokens, pairs: trainer_means(self, terms))


def trainer_means(self, terms):
    distances = self.distances(terms.views)
    pairs = self.jepa.count(terms.views)
    return terms.nll.mean(), self.jepa.total(terms.views, distances, pairs), distances


def predictors_not_trained(patch):
    right = subject.untrained
    patch.setattr(subject, "untrained", lambda model, **options: right(model, **options, compat=["frozen_predictors"]))


def nothing_loaded(patch):
    patch.setattr(representation.RepresentationTrainer, "_load_from_checkpoint", lambda self, *args: None)


def all_rows_saved(patch):
    right = models._base_state
    patch.setattr(models, "_base_state", lambda model, rows: {k: v * 1.01 for k, v in right(model, rows).items()})


MUTATIONS = {
    "steps": every_example(no_pairs),
    "step spans": every_example(shifted),
    "labels": every_example(unlabelled_end),
    "one BOS": doubled_start,
    "truncation": cut_anywhere,
    "predictor tokens": predictors_late,
    "isolation, by perturbation": target_sees_bos,
    "isolation, by gradient": leaking_gradient,
    "trunk undisturbed": trunk_sees_branches,
    "one pass = two passes": other_distance,
    "losses": own_temperature,
    "accumulation": means_of_micro_batches,
    "training": predictors_not_trained,
    "save, load, continue": nothing_loaded,
    "plain transformers": all_rows_saved,
}


def test_every_check_has_a_mutation():
    assert list(MUTATIONS) == list(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_bites(name, tmp_path, records, monkeypatch):
    folder, lora = folder_of(tmp_path), name == "training"
    with Subject(folder, records, lora=lora) as right:
        assert dict(findings(right, [name]))[name].passed is True
    MUTATIONS[name](monkeypatch)
    with Subject(folder, records, lora=lora) as broken:
        finding = dict(findings(broken, [name]))[name]
    assert finding.passed is False
    assert "Error" not in finding.figure  # it failed for what it found, not for an accident


# What users bring


def test_a_tokenizer_without_chat_template(tmp_path, records, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    folder, rows = folder_of(tmp_path, tokenizer=tokenizer), file_of(tmp_path, records)
    code, found = verified(capsys, "--model_name", folder, "--train_file", rows)
    first = found["checks"][0]
    assert (code, found["passed"], first["passed"]) == (1, False, False)
    assert "has no chat template: use an instruct model, or --plain" in first["figure"]
    code, found = verified(capsys, "--model_name", folder, "--train_file", rows, "--plain")
    assert (code, found["passed"]) == (0, True)


def test_one_step_answers(tmp_path, capsys):
    rows = file_of(tmp_path, [conversation("It is 9.", question=f"Is it {n}?") for n in range(3)])
    code, found = verified(capsys, "--model_name", folder_of(tmp_path), "--train_file", rows)
    assert code == 1
    by_name = {check["check"]: check for check in found["checks"]}
    assert (by_name["steps"]["passed"], by_name["labels"]["passed"]) == (False, True)
    assert by_name["steps"]["figure"] == "3 rows, 1 to 1 steps (median 1); 3 without a pair"
    assert "prepare" in by_name["steps"]["remedy"]
    assert by_name["predictor tokens"]["figure"] == "no row has two steps beside its answer: there is no pair of views"
    assert {by_name[name]["passed"] for name in list(CHECKS)[6:]} == {None}


def test_a_model_that_takes_no_mask(tmp_path, records, capsys):
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    rows = file_of(tmp_path, records)
    code, found = verified(capsys, "--model_name", tmp_path / "mamba", "--train_file", rows)
    assert code == 1
    assert "Mamba" in next(check["figure"] for check in found["checks"] if check["passed"] is False)


def test_the_table_says_what_to_do(tmp_path, capsys):
    rows = file_of(tmp_path, [conversation("It is 9.")])
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--model_name", folder_of(tmp_path), "--train_file", rows])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "what to do: cut the answers" in out
    assert "FAIL" in out


def test_what_cannot_be_verified_is_one_line(tmp_path, capsys):
    rows = file_of(tmp_path, [conversation("It is 9.")])
    for model, data in (("./nowhere", rows), ("x", "none.jsonl")):
        with pytest.raises(SystemExit) as stop:
            main(["verify", "--model_name", model, "--train_file", data])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--model_name", "x", "--train_file", rows, "--rows", "0"])
    assert "give 1 or more" in capsys.readouterr().err
