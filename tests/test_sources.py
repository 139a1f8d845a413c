"""Sources: every kind of file, folders and their splits, slices; and what is said of those that cannot be read."""

import bz2
import csv
import gzip
import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from step_jepa.arguments.parsing import relative_to
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.reading import raw_records, read_records
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.sources import open_source
from step_jepa.data.splits import TEST, VALIDATION
from step_jepa.errors import UserError
from step_jepa.evaluation.answering import read_problems
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.train.arguments import TrainArguments

ROWS = [{"question": f"q{n}", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_csv(path, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "a.jsonl": lambda path: path.write_text(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES.encode())),
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS)),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": lambda path: write_csv(path, ","),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(str(path)),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    WRITERS[name](tmp_path / name)
    records = list(read_records(str(tmp_path / name)))
    assert [record["question"] for record in records] == ["q0", "q1", "q2", "q3"]
    assert [record["steps"] for record in records] == [[f"{n} + 1 = {n + 1}", f"#### {n + 1}"] for n in range(4)]
    sliced = [record["question"] for record in read_records(f"{tmp_path / name}[1:3]")]
    assert sliced == ["q1", "q2"]


def test_cells_of_csv_are_text_as_it_is_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffquestion,answer,note\n"How, ""many""?\nNow.",007,\n'.encode())
    ((line, row),) = raw_records(str(path), ReadArguments())
    assert (line, row) == (2, {"question": 'How, "many"?\nNow.', "answer": "007", "note": None})


def test_records_of_one_file_need_not_be_alike(tmp_path):
    """Arrow's own reading of JSON fails on these, or gives each the keys of the others."""
    rows = [{"a": 1}, {"a": "text", "b": [1, "two"]}, {"c": {"d": None}}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert [json.loads(raw) for _, raw in raw_records(str(path), ReadArguments())] == rows


def folder_of_splits(folder, *names):
    folder.mkdir()
    for name in names:
        row = {"question": name, "answer": "1 + 1\n#### 2"}
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    return str(folder)


@pytest.mark.parametrize(
    ("splits", "wanted", "taken"),
    [
        (("train", "test"), ("train",), "train"),
        (("train", "test"), TEST, "test"),
        (("train", "validation", "test"), TEST, "test"),
        (("train", "validation", "test"), VALIDATION, "validation"),
        (("train", "validation"), TEST, "validation"),
        (("train",), TEST, "train"),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_the_split_that_is_read_is_said(tmp_path, caplog, splits, wanted, taken, saved):
    folder = folder_of_splits(tmp_path / "set", *splits)
    if saved:
        rows = {name: Dataset.from_list([{"question": name, "answer": "1 + 1\n#### 2"}] * 3) for name in splits}
        folder = str(tmp_path / "saved")
        DatasetDict(rows).save_to_disk(folder)
    with caplog.at_level(logging.INFO, "step_jepa"):
        assert {record["question"] for record in read_records(folder, wanted)} == {taken}
    silent = splits == ("train",) and wanted == ("train",)
    said = [message for message in caplog.messages if "the split" in message]
    assert said == ([] if silent else [f"{folder}: the split {taken} is read"])


def test_splits_by_name(tmp_path):
    folder = folder_of_splits(tmp_path / "set", "train", "test")

    def questions(source, **options):
        return [record["question"] for record in read_records(source, **options)]

    assert questions(f"{folder}[test]") == questions(folder, dataset_split="test") == ["test"] * 3
    assert questions(f"{folder}[train[:1]+test[-2:]]") == ["train", "test", "test"]
    assert questions(f"{folder}[:67%]") == ["train"] * 2
    assert sorted(set(questions(f"{folder}/*.jsonl"))) == ["test", "train"]
    assert questions(f"{folder}/*.jsonl[1:]") == ["test"] * 2 + ["train"] * 3
    with pytest.raises(UserError, match=r"\[dev\] has no split dev: it has train, test$"):
        questions(f"{folder}[dev]")
    with pytest.raises(UserError, match=r"train\.jsonl:main: files have no configuration: leave out main$"):
        questions(f"{folder}/train.jsonl:main")
    with pytest.raises(UserError, match=r"names test and --dataset_split names train: leave one out$"):
        questions(f"{folder}[test]", dataset_split="train")


def test_of_several_files_messages_name_the_one(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/b\.jsonl:2: not JSON: .*; correct it or run"):
        list(read_records(f"{tmp_path}/*.jsonl"))


def test_what_lies_on_disk_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b[train]", "x[1].jsonl"):
        (tmp_path / name).write_text(LINES)
        assert len(list(read_records(name))) == 4


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-9], r"a\.jsonl\.gz cannot be read: Compressed file ended"),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read: "),
        ("a.csv", b"question,answer\nq,1,2\n", r"a\.csv:2: the row has more cells than there are columns"),
        ("a.csv", b'question,answer\nq,1\nq,"2', r"a\.csv:3: not CSV: unexpected end of data"),
        ("a.csv", b"question,answer\nq,\xff\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b"question,answer\n", r"a\.csv holds no records"),
    ],
    ids=["gzip", "cut gzip", "parquet", "cells", "quote", "text", "empty"],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        list(read_records(str(tmp_path / name), for_evaluation=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.jsonl.gz", "none/*.txt"])
def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, name):
    with pytest.raises(UserError, match="no such file; check --input_file"):
        list(read_records(str(tmp_path / name)))


def test_hub_ids_with_all_their_parts(monkeypatch):
    import datasets

    asked = []

    def load(name, config, **options):
        asked.append((name, config, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "test"])
    assert len(list(read_records("openai/gsm8k:main[train[:4]]"))) == 4
    open_source("openai/gsm8k:main", ReadArguments(), TEST)
    open_source("openai/gsm8k", ReadArguments(dataset_config="main"), stream=True)
    assert asked == [
        ("openai/gsm8k", "main", {"split": "train[:4]"}),
        ("openai/gsm8k", "main", {"split": "test"}),
        ("openai/gsm8k", "main", {"split": "train", "streaming": True}),
    ]


def test_a_dataset_dict_has_its_split_found(tokenizer, records):
    splits = DatasetDict({"train": Dataset.from_list(records), "test": Dataset.from_list(records[:2])})
    assert len(load_and_prepare_dataset(splits, tokenizer).examples) == 9
    assert len(load_and_prepare_dataset(splits, tokenizer, splits=VALIDATION).examples) == 2
    with pytest.raises(UserError, match=r"^the DatasetDict has no split train: it has test$"):
        load_and_prepare_dataset(DatasetDict({"test": splits["test"]}), tokenizer)


def test_evaluate_takes_the_test_split(tmp_path):
    folder = folder_of_splits(tmp_path / "set", "train", "test")
    args = EvaluateArguments(model_name="m", test_file=folder, output_dir=str(tmp_path / "out"))
    assert [record["question"] for record in read_problems(args.test_file, TEST, args)] == ["test"] * 3


def test_sources_beside_a_yaml_file(tmp_path):
    folder_of_splits(tmp_path / "set", "train", "test")
    for name in ("set[test]", "set/*.jsonl"):
        assert relative_to(tmp_path, [TrainArguments], {"train_file": name}) == {"train_file": str(tmp_path / name)}
    for name in ("openai/gsm8k:main[test]", "no/*.csv"):
        assert relative_to(tmp_path, [TrainArguments], {"train_file": name}) == {"train_file": name}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("by_option", [True, False])
def test_a_configuration_is_no_split(tmp_path, saved, by_option):
    data = DatasetDict({name: Dataset.from_list(ROWS) for name in ("train", "test")})
    folder = tmp_path / "set"
    folder.mkdir()
    if saved:
        data.save_to_disk(str(folder))
    else:
        data["test"].to_parquet(str(folder / "test.parquet"))
    source, options = (str(folder), {"dataset_config": "test"}) if by_option else (f"{folder}:test", {})
    with pytest.raises(UserError, match=r"for a split write .*set\[test\]"):
        list(read_records(source, **options))


def folder_of_files(folder, *names):
    folder.mkdir()
    for number, name in enumerate(names):
        rows = [{"question": f"{name} {row}", "answer": "1 + 1\n#### 2"} for row in range(number + 1)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith(".parquet"):
            Dataset.from_list(rows).to_parquet(str(folder / name))
        elif name.endswith(".csv"):
            Dataset.from_list(rows).to_csv(str(folder / name))
        else:
            (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(folder)


@pytest.mark.parametrize("names", [("a.jsonl", "b.csv"), ("a.jsonl", "b.jsonl.gz", "c.parquet")])
def test_files_of_several_kinds_are_all_read(tmp_path, names):
    questions = [record["question"] for record in read_records(folder_of_files(tmp_path / "set", *names))]
    assert questions == [f"{name} {row}" for number, name in enumerate(names) for row in range(number + 1)]


def test_files_in_no_split_are_named(tmp_path, caplog):
    folder = folder_of_files(tmp_path / "set", "train_part.jsonl", "more.jsonl", "notes.csv")
    with caplog.at_level(logging.INFO, "step_jepa"):
        assert [record["question"] for record in read_records(folder)] == ["train_part.jsonl 0"]
    assert f"{folder}: in no split, and not read: more.jsonl, notes.csv" in caplog.messages


def test_files_that_cannot_be_read_together(tmp_path):
    folder = folder_of_files(tmp_path / "set", "a.txt", "b.txt", "c.jsonl")
    with pytest.raises(UserError, match=r"a.txt, b.txt cannot be read together with c.jsonl"):
        list(read_records(folder))
