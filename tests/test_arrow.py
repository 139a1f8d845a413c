"""Examples in Arrow: what goes in comes out, from memory and from the cache, by any number of processes; streams."""

import json
import logging
import pickle
from dataclasses import replace
from random import Random

import datasets
import pandas
import pytest
from conftest import conversation, tiny_model
from datasets import Dataset, DatasetDict, IterableDataset
from test_trainer import history, run

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.data import cache as cached
from step_jepa.data import encoder
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import IGNORED, Example, Turn, Turns
from step_jepa.data.examples import Examples
from step_jepa.data.reading import read_records
from step_jepa.data.stream import shuffled
from step_jepa.errors import UserError

EXAMPLES = [
    Example(
        text="q a\u00e9 b",
        input_ids=[5, 6, 7, 8, 9],
        labels=[IGNORED, 6, 7, IGNORED, 9],
        steps=[(1, 2), (2, 4)],
        chars=[(2, 4), (4, 6)],
        user=(0, 1),
        contents=[2, 3],
        answer=1,
        turns=Turns(Turn([1, 2], (0, 1)), Turn([3, 4, 5], (1, 3))),
    ),
    Example("q", [5], [5], [(0, 1)], [(0, 1)], None, index=1),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Of datasets, and data of three rows are many."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cached, "IN_MEMORY", 3)
    monkeypatch.setattr(cached, "BATCH", 2)
    return tmp_path / "cache" / "step_jepa"


def test_what_goes_in_comes_out():
    examples = Examples.of(EXAMPLES)
    assert list(examples) == EXAMPLES
    assert [examples[1], examples[-2]] == EXAMPLES[::-1]
    assert list(examples[1:]) == EXAMPLES[1:]  # whose index stays
    assert examples.token_counts().tolist() == [5, 1]
    assert examples[::-1].step_counts().tolist() == [1, 2]
    assert (examples.with_answer(), examples[1:].with_answer()) == (1, 0)
    with pytest.raises(IndexError):
        examples[2]


def test_a_digest_is_of_tokens_and_labels_however_they_lie(tokenizer, records, cache):
    many = load_and_prepare_dataset(records, tokenizer).examples
    digests = {Examples.of(list(many)).digest(), many.digest()}
    assert len(many.dataset.data.column("labelled").chunks) == 5
    assert len(digests) == 1
    changed = [replace(many[0], labels=many[0].input_ids), *many[1:]]
    others = {Examples.of(examples).digest() for examples in (changed, list(many)[::-1])}
    assert len(digests | others) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_the_cache_holds_what_is_made_in_memory(tokenizer, records, cache, processes, monkeypatch):
    options = {"max_length": 90, "encoding": Encoding(turns=True)}
    records = [*records, conversation("x" * 200)]
    with monkeypatch.context() as plenty:
        plenty.setattr(cached, "IN_MEMORY", 1000)
        expected = load_and_prepare_dataset(records, tokenizer, **options)
    assert not cache.exists()
    for _ in range(2):  # made, and found
        found = load_and_prepare_dataset(records, tokenizer, num_proc=processes, **options)
        assert list(found.examples) == list(expected.examples)
        assert (found.cut, found.left_out, str(found)) == (expected.cut, 1, str(expected))
        monkeypatch.setattr(encoder, "encode_rows", None)
    assert pickle.loads(pickle.dumps(found.examples))[3] == expected.examples[3]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_what_becomes_of_raw_records_is_said(tokenizer, cache, tmp_path, caplog, processes):
    """Once, with counts, as `prepare` does; also where examples are found in the cache, and where records are read."""
    rows = [{"question": f"{n}?", "solution": f"a\n\n#### {n}", "level": 1, "kind": "x"} for n in range(4)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"level": None, "kind": None}]))
    added, unused = "system turn added (--system_prompt): 5 records", "not used: level, kind: 4 records"
    caplog.set_level(logging.INFO)
    hint = "(step-jepa prepare has options for that)"

    def prepared():
        load_and_prepare_dataset(str(file), tokenizer, num_proc=processes)

    for read in (prepared, prepared, lambda: list(read_records(str(file)))):
        caplog.clear()
        read()
        said = [message for message in caplog.messages if hint in message]
        assert said == [f"{file}: {added} {hint}", f"{file}: {unused} {hint}"]


def test_whatever_examples_follow_from_makes_them_anew(tokenizer, records, cache, tmp_path, monkeypatch):
    def kept(data=records, tokenizer=tokenizer, **options):
        load_and_prepare_dataset(data, tokenizer, **options)
        return len(list(cache.iterdir()))

    other = pickle.loads(pickle.dumps(tokenizer))
    other.chat_template = "\n" + tokenizer.chat_template.replace("<|start|>", "<|start|> ")
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [kept(), kept(list(records)), kept(max_length=100), kept(limit=5)] == [1, 1, 2, 3]
    assert [kept(tokenizer=other), kept(encoding=Encoding(train_all=True)), kept(records[1:])] == [4, 5, 6]
    assert [kept(str(file)), kept(str(file))] == [7, 7]
    file.write_text(file.read_text().replace("Is it 1?", "Is it 2?"))
    assert [kept(str(file)), kept(Dataset.from_list(records)), kept(Dataset.from_list(records))] == [8, 9, 9]
    monkeypatch.setattr(encoder, "_code", lambda: "another version")
    assert kept() == 10


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_row_leaves_nothing_behind(tokenizer, cache, tmp_path, processes):
    rows = [conversation("So 1.", "#### 1") for _ in range(20)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{oops\n")
    with pytest.raises(UserError, match=r"a\.jsonl:21: not JSON"):
        load_and_prepare_dataset(str(file), tokenizer, num_proc=processes)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_one_line(tokenizer, records, cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cached, "_write", full)
    with pytest.raises(UserError, match=r"step_jepa: the tokenised data cannot be kept there \(No space left"):
        load_and_prepare_dataset(records, tokenizer)
    assert list(cache.iterdir()) == []


def test_what_is_left_out_is_said_once(tokenizer, records, caplog):
    with caplog.at_level(logging.WARNING, "step_jepa"):
        load_and_prepare_dataset([*records, *[conversation("x" * 200)] * 2], tokenizer, max_length=150)
    assert caplog.messages == ["the data set: left out as no whole step fits: 2 examples"]


def test_rows_of_a_data_frame(tokenizer, records, tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([records[0], {**records[1], "steps": None}]).to_parquet(str(path))
    frame = pandas.read_parquet(path)
    frame["steps"] = [frame["steps"][0], float("nan")]
    rows = frame.to_dict("records")
    assert type(rows[0]["messages"]).__name__ == type(rows[0]["steps"]).__name__ == "ndarray"
    found, expected = (load_and_prepare_dataset(data, tokenizer).examples for data in (rows, records[:2]))
    assert list(found) == list(expected)
    with pytest.raises(UserError, match=r"^example 0: it is a str: give records with `messages`$"):
        load_and_prepare_dataset(frame.columns.tolist(), tokenizer)


def test_training_from_the_cache_is_training_from_memory(tokenizer, records, tmp_path, cache, monkeypatch):
    options = {"control": "shuffled_pairs", "dataloader_num_workers": 2}
    mapped = run(tokenizer, records, tmp_path, **options)
    monkeypatch.setattr(cached, "IN_MEMORY", 1000)
    assert history(mapped) == history(run(tokenizer, records, tmp_path, **options))
    assert mapped._run_rows.counts == {"examples": 9, "steps": 34, "pairs": 17, "cut": 0, "left_out": 0}


def test_many_rows_are_counted_on_a_part(tokenizer, records, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("step_jepa.batches.planned_rows.MOST_PLANNED", 3)
    with caplog.at_level(logging.INFO, "step_jepa"):
        trainer = run(tokenizer, records, tmp_path, max_steps=1)
    assert "pairs and tokens are counted on 3 of the 9 rows, evenly spaced" in caplog.messages
    assert trainer._run_rows.counts["pairs"] == 18  # 2 each of rows 0, 3 and 6, times 3


# Streams

ORDER = {"train_sampling_strategy": "sequential", "max_steps": 4}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_in_order_is_the_data_itself(tokenizer, records, tmp_path, workers):
    expected = history(run(tokenizer, records[:8], tmp_path, **ORDER))
    options = {**ORDER, "dataloader_num_workers": workers}
    rows = IterableDataset.from_generator(lambda: iter(records[:8]))
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records[:8]))
    assert history(run(tokenizer, rows, tmp_path, **options)) == expected
    assert history(run(tokenizer, records[:8], tmp_path, streaming=True, **options)) == expected
    assert history(run(tokenizer, str(file), tmp_path, streaming=True, **options)) == expected


def test_a_resumed_stream_is_the_undisturbed_one(tokenizer, records, tmp_path):
    """Through the buffer, and over the stream's end."""
    options = {"streaming": True, "shuffle_buffer": 4, "max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    whole = run(tokenizer, records, tmp_path, **options)
    checkpoint = tmp_path / "out" / "checkpoint-5"
    again = StepJEPARepresentationTrainer(tiny_model(), whole.args, records, processing_class=tokenizer)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert history(again)[5:] == history(whole)[5:]
    assert len(set(history(whole))) == 8
    other = run(tokenizer, records, tmp_path, **{**options, "shuffle_buffer": 1})
    assert history(other) != history(whole)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_steps": -1}, "^a stream is not counted, so it has no epochs: give --max_steps$"),
        ({"same_flop": True}, "^--same_flop counts the tokens of all rows"),
        ({"control": "shuffled_pairs"}, "^--control shuffled_pairs draws from all rows"),
        ({"dataloader_num_workers": 2}, "^a stream is read by one process: give --dataloader_num_workers 0 or 1$"),
    ],
)
def test_what_a_stream_cannot_serve_is_refused(tokenizer, records, tmp_path, options, complaint):
    for data, streaming in ((records, True), (IterableDataset.from_generator(lambda: iter(records)), False)):
        with pytest.raises(UserError, match=complaint):
            run(tokenizer, data, tmp_path, streaming=streaming, **options)


def test_streams_are_for_training_and_not_empty(tokenizer, records, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(records))
    with pytest.raises(UserError, match=r"^a stream is for training alone"):
        load_and_prepare_dataset(stream, tokenizer)
    with pytest.raises(UserError, match=r"^the stream: no example to use"):
        run(tokenizer, [], tmp_path, streaming=True)
    with pytest.raises(UserError, match=r"^--shuffle_buffer is read by --streaming alone"):
        run(tokenizer, records, tmp_path, shuffle_buffer=5)


def test_a_buffer_gives_all_items_once():
    assert list(shuffled(iter(range(9)), 1, Random(0))) == list(range(9))
    for size in (2, 4, 9, 20):
        items = list(shuffled(iter(range(9)), size, Random(0)))
        assert sorted(items) == list(range(9)) != items
        assert all(item < place + size for place, item in enumerate(items))


# Evaluation sets


def test_several_evaluation_sets(tokenizer, records, tmp_path):
    sets = {"short": records[:3], "long": Dataset.from_list(records[3:6])}
    config = StepJEPAConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2, diagnostics_steps=1)
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, records, sets, processing_class=tokenizer)
    figures = trainer.evaluate()
    assert figures["eval_short_lm_loss"] == trainer.evaluate(records[:3])["eval_lm_loss"]
    assert figures["eval_long_lm_loss"] == trainer.evaluate({"long": records[3:6]})["eval_long_lm_loss"]
    trainer.train()
    assert history(trainer, "diagnostics_jepa_loss")


def test_train_and_test_of_a_dataset_dict(tokenizer, records, tmp_path):
    splits = DatasetDict({"train": Dataset.from_list(records[:6]), "test": Dataset.from_list(records[6:])})
    config = StepJEPAConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = StepJEPARepresentationTrainer(tiny_model(), config, splits, splits, processing_class=tokenizer)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (6, 3)


def test_a_cache_that_another_process_filled_meanwhile_is_used(tmp_path):
    begun, folder = tmp_path / "begun", tmp_path / "folder"
    for path in (begun, folder):
        path.mkdir()
        (path / "counts.json").write_text(path.name)
    cached._keep(begun, folder)
    assert (folder / "counts.json").read_text() == "folder"
    with pytest.raises(OSError, match="No such file"):
        cached._keep(begun, tmp_path / "gone" / "folder")
