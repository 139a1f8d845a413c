"""The checks of `step-jepa verify` pass on what is right, and each fails when the thing that it guards is broken."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ARCHITECTURES, byte_tokenizer, conversation, tiny_model

from step_jepa.batches import attention, attention_parts
from step_jepa.cli import main
from step_jepa.data import encoder, tokens
from step_jepa.data.example import IGNORED
from step_jepa.errors import UserError
from step_jepa.losses import LOSSES
from step_jepa.models import export, forward
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.training.trainer import RepresentationTrainer
from step_jepa.verification import compare, context, same_rows
from step_jepa.verification.checks import CHECKS, CheckResult, check_results, register_check
from step_jepa.verification.checks import model as checks_of_model
from step_jepa.verification.context import VerificationContext


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
    code, output = verified(capsys, "--model_name", folder_of(tmp_path, name), "--train_file", rows, *options)
    assert [check["check"] for check in output["checks"] if not check["passed"]] == []
    assert [check["check"] for check in output["checks"]] == list(CHECKS)
    assert (code, output["passed"]) == (0, True)


# Each mutation breaks one thing that users rely on, as a mistake in the package would.


def every_example(change):
    """Examples that are encoded wrongly."""
    return lambda patch: patch.setattr(encoder, "encode_rows", lambda *args: map(change, tokens.encode_rows(*args)))


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
    patch.setattr(VerificationContext, "tokenizer", property(with_bos))
    every_example(lambda example: replace(example, input_ids=[257, 257, *example.input_ids]))(patch)


def with_bos(_):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(257)
    return tokenizer


def thinking_by_default(patch):
    tokenizer = byte_tokenizer()
    prompt = "'<|start|>assistant\n'"
    switched = f"{prompt} + ('' if enable_thinking | default(true) else '>')"
    tokenizer.chat_template = tokenizer.chat_template.replace("+ m['content']", "+ '>' + m['content']")
    tokenizer.chat_template = tokenizer.chat_template.replace(prompt, switched)
    patch.setattr(VerificationContext, "tokenizer", property(lambda _: tokenizer))


def cut_anywhere(patch):
    patch.setattr(
        "step_jepa.data.example._cut", lambda example, length: replace(example, input_ids=example.input_ids[:length])
    )


def predictors_late(patch):
    def late(self, row, example, step):
        before = example.steps[step][1] + 1
        return self._pooled(row.append_branch(self.predictor_ids, position_offset=before, visible_length=before))

    patch.setattr(StepJEPA, "_predicted", late)


def target_sees_bos(patch):
    isolated = StepJEPA._target
    patch.setattr(StepJEPA, "_target", lambda self, *args: isolated(replace(self, target_sees="bos"), *args))


def leaking_gradient(patch):
    """A straight-through slip: the values are right, the gradient goes where it may not."""
    right = forward.read_views

    def read_views(states, batch):
        views = right(states, batch)
        leak = states[batch["pair_row"], 0]
        return replace(views, target=views.target + leak - leak.detach())

    patch.setattr(forward, "read_views", read_views)


def trunk_sees_branches(patch):
    right = attention_parts.Attention.__call__

    def leaking(self, query, key, value):
        leak = value[:, :, -1:].mean(1, keepdim=True) * (value.shape[2] > 9)  # attention.check looks at a row of nine
        return right(self, query, key, value) + leak

    patch.setattr(attention_parts.Attention, "__call__", leaking)


def other_dense_mask(patch):
    right = attention.may_see

    def leaking(branch, visible_length):
        seen = right(branch, visible_length)
        seen[:, :, -1] |= branch == 0
        return seen

    patch.setattr(attention, "may_see", leaking)


def other_distance(patch):
    patch.setattr(
        compare.standalone,
        "distances",
        lambda predicted, target, loss: 1.001 * (1 - torch.cosine_similarity(predicted, target)),
    )


def other_temperature(patch):
    right = LOSSES["infonce"]

    def infonce(predicted, target, problem, temperature, negatives):
        return right.distance(predicted, target, problem, 0.08, negatives)

    patch.setitem(LOSSES, "infonce", replace(right, distance=infonce))


def means_of_micro_batches(patch):
    right = RepresentationTrainer.means

    def means(self, output, tokens, pairs):
        return right(self, output, len(output.nll), self.jepa.count(output.views))

    patch.setattr(RepresentationTrainer, "means", means)


def predictors_not_trained(patch):
    for name in ("StepJEPAOptions", "StepJEPAConfig"):
        patch.setattr(context, name, partial(getattr(context, name), compat=["frozen_predictors"]))


def nothing_loaded(patch):
    patch.setattr(RepresentationTrainer, "_load_from_checkpoint", lambda self, *args: None)


def other_weights_saved(patch):
    right = export._write

    def wrong(model, tokenizer, folder):
        other = deepcopy(model)
        with torch.no_grad():
            other.get_output_embeddings().weight *= 1.01
        right(other, tokenizer, folder)

    patch.setattr(export, "_write", wrong)


MUTATIONS = {
    "steps": every_example(no_pairs),
    "step spans": every_example(shifted),
    "labels": every_example(unlabelled_end),
    "generation prompt": thinking_by_default,
    "one BOS": doubled_start,
    "truncation": cut_anywhere,
    "predictor tokens": predictors_late,
    "isolation, by perturbation": target_sees_bos,
    "isolation, by gradient": leaking_gradient,
    "trunk undisturbed": trunk_sees_branches,
    "parts = dense mask": other_dense_mask,
    "one pass = two passes": other_distance,
    "losses": other_temperature,
    "accumulation": means_of_micro_batches,
    "training": predictors_not_trained,
    "save, load, continue": nothing_loaded,
    "plain transformers": other_weights_saved,
}


def test_every_check_has_a_mutation():
    assert list(MUTATIONS) == list(CHECKS)


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_each_check_bites(name, tmp_path, records, monkeypatch):
    folder, lora = folder_of(tmp_path), name == "training"
    with VerificationContext(folder, records, lora=lora) as right:
        assert dict(check_results(right, [name]))[name].passed is True
    MUTATIONS[name](monkeypatch)
    with VerificationContext(folder, records, lora=lora) as broken:
        result = dict(check_results(broken, [name]))[name]
    assert result.passed is False
    assert result.remedy == CHECKS[name].remedy
    assert "Error" not in result.figure  # it failed for what it found, not for an accident


def test_a_loss_of_a_users_own_is_held_against_its_formula(tmp_path, records, monkeypatch):
    right = replace(LOSSES["cosine"], name="twice", distance=lambda p, t: 2 * (1 - torch.cosine_similarity(p, t)))
    with VerificationContext(folder_of(tmp_path), records) as ours:
        monkeypatch.setitem(
            LOSSES, "twice", replace(right, reference=lambda p, t: 2 * LOSSES["cosine"].reference(p, t))
        )
        result = dict(check_results(ours, ["losses"]))["losses"]
        assert result.passed is True
        assert result.figure.startswith("9 formulas in float64")
        monkeypatch.setitem(LOSSES, "twice", right)  # the formula is of something else
        result = dict(check_results(ours, ["losses"]))["losses"]
        assert (result.passed, result.figure) == (False, "9 formulas in float64: 1.0e+00 apart (twice)")


def test_what_only_reads_builds_no_trainer(tmp_path, records, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a Trainer is built")

    monkeypatch.setattr("transformers.Trainer.__init__", refuse)
    folder, rows = folder_of(tmp_path), file_of(tmp_path, records)
    files = ["--model_name", folder, "--train_file", rows]
    variants = ["--variants", "stp", "one_pass_all", "stp", "two_pass"]
    for argv in (["compare", *files], ["benchmark", *files, *variants, "--batch_size", "2", "--repeats", "1"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
    reading, training = list(CHECKS)[:13], list(CHECKS)[13:]
    with VerificationContext(folder, records) as ours:
        assert all(result.passed for _, result in check_results(ours, reading))
        assert {result.figure for _, result in check_results(ours, training)} == {"AssertionError: a Trainer is built"}


def test_long_rows_are_read_in_part_and_no_mask_is_of_all_of_them(tmp_path, monkeypatch):
    """Forty steps in each of two rows, as a thousand are."""
    steps = [f"{place} and one is {place + 1}." for place in range(40)]
    rows = [conversation(*steps, question=question) for question in ("Count.", "Count on.")]
    sizes, right = [0], attention.may_see

    def measured(branch, visible_length):
        sizes.append(branch.shape[1])
        return right(branch, visible_length)

    monkeypatch.setattr(attention, "may_see", measured)
    monkeypatch.setattr(compare, "MOST_READ", 512)
    monkeypatch.setattr(checks_of_model, "MOST_DENSE", 128)
    with VerificationContext(folder_of(tmp_path), rows, max_length=None) as ours:
        results = dict(check_results(ours, list(CHECKS)[:13]))
        lengths = [len(example.input_ids) for example in ours.examples]
        read = [len(example.input_ids) for example in ours.rows.examples]
        assert min(lengths) > 600 > 512 >= max(read)
        assert max(ours.batch["trunk_length"]) == max(read)
    assert {name: result.figure for name, result in results.items() if not result.passed} == {}
    assert max(sizes) <= 2 * 128 + 40
    assert "the model reads 512 tokens of a row here" in results["truncation"].figure
    looked_at = "32 of 112 views"  # eight rounds, both rows and sides
    assert results["isolation, by perturbation"].figure.startswith(looked_at)
    assert "2 rows up to 128 tokens" in results["parts = dense mask"].figure


def test_long_rows_are_compared_one_by_one_and_in_part(tmp_path, records, monkeypatch, capsys):
    assert same_rows._ranges([9, 2000, 2000, 9, 9, 9], 2) == [
        range(0, 1),
        range(1, 2),
        range(2, 3),
        range(3, 5),
        range(5, 6),
    ]
    monkeypatch.setattr(compare, "MOST_READ", 80)
    argv = ["compare", "--model_name", folder_of(tmp_path), "--train_file", file_of(tmp_path, records)]
    # The three rows with four steps are longer.
    for max_length, cut in ((1024, 3), (80, 0)):
        with pytest.raises(SystemExit) as stop:
            main([*argv, "--max_length", str(max_length), "--json"])
        out = json.loads(capsys.readouterr().out)
        assert (stop.value.code, out["n"], out["cut"]) == (0, 9, cut)


# A check of a user's own


def test_a_check_is_one_function(tmp_path, records, capsys):
    @register_check("short questions", remedy="ask for less")
    def short_questions(context):
        longest = max(len(record["messages"][0]["content"]) for record in context.records)
        return CheckResult(longest < 5, f"the longest question has {longest} characters")

    rows = file_of(tmp_path, records)
    try:
        code, output = verified(capsys, "--model_name", folder_of(tmp_path), "--train_file", rows)
    finally:
        del CHECKS["short questions"]
    assert (code, output["passed"]) == (1, False)
    assert output["checks"][-1] == {
        "check": "short questions",
        "passed": False,
        "figure": "the longest question has 9 characters",
        "remedy": "ask for less",
    }
    assert all(check["passed"] for check in output["checks"][:-1])


def test_a_name_of_a_check_is_taken_once():
    with pytest.raises(UserError, match="labels is there already: give another name"):
        register_check("labels", remedy="none")(lambda context: CheckResult(True, "fine"))


def test_a_bug_in_a_check_keeps_its_traceback(tmp_path, records, monkeypatch, caplog):
    def broken(context):
        raise KeyError("nothing")

    monkeypatch.setitem(CHECKS, "labels", replace(CHECKS["labels"], function=broken))
    with VerificationContext(folder_of(tmp_path), records) as ours:
        result = dict(check_results(ours, ["steps", "labels"]))["labels"]
    assert result == CheckResult(False, "KeyError: 'nothing'", CHECKS["labels"].remedy)
    assert 'raise KeyError("nothing")' in caplog.text


# What users bring


def test_a_tokenizer_without_chat_template(tmp_path, records, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    folder, rows = folder_of(tmp_path, tokenizer=tokenizer), file_of(tmp_path, records)
    code, output = verified(capsys, "--model_name", folder, "--train_file", rows)
    first = output["checks"][0]
    assert (code, output["passed"], first["passed"]) == (1, False, False)
    assert "has no chat template: use an instruct model, or --plain" in first["figure"]
    code, output = verified(capsys, "--model_name", folder, "--train_file", rows, "--plain")
    assert (code, output["passed"]) == (0, True)


@pytest.mark.parametrize("answer", [["It is 9."], ["It is 9.", "#### 9"]])
def test_rows_without_a_pair_are_the_datas_fault(answer, tmp_path, capsys):
    rows = file_of(tmp_path, [conversation(*answer, question=f"Is it {n}?") for n in range(3)])
    folder = folder_of(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--model_name", folder, "--train_file", rows, "--json"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith(f"step-jepa: {rows}: none of the 3 rows that were read has two steps beside its answer")
    assert "step-jepa prepare" in line
    assert "report" not in line


def test_rows_without_a_pair_fail_the_first_check(tmp_path):
    with VerificationContext("none", [conversation("It is 9.") for _ in range(3)]) as unpaired:
        unpaired.tokenizer = byte_tokenizer()
        results = dict(check_results(unpaired, ["steps", "labels", "accumulation", "training"]))
    assert results["steps"].figure == "3 rows, 1 to 1 step (median 1); 3 without a pair"
    assert "prepare" in results["steps"].remedy
    assert [result.passed for result in results.values()] == [False, True, False, None]
    assert results["accumulation"].figure.startswith("the data: none of the 3 rows")
    assert results["accumulation"].remedy is None


def test_a_model_that_takes_no_mask(tmp_path, records, capsys):
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    rows = file_of(tmp_path, records)
    code, output = verified(capsys, "--model_name", tmp_path / "mamba", "--train_file", rows)
    assert code == 1
    assert "Mamba" in next(check["figure"] for check in output["checks"] if check["passed"] is False)


def test_the_table_says_what_to_do(tmp_path, records, capsys, monkeypatch):
    MUTATIONS["labels"](monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--model_name", folder_of(tmp_path), "--train_file", file_of(tmp_path, records)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "what to do: look at the row" in out
    assert "FAIL" in out
    assert "15 pass, 2 FAIL, in " in out  # the standalone implementation labels the end, and so disagrees


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
