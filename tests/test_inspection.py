"""`step-jepa inspect`: what it shows is what training uses, token by token, in a terminal, as JSON and as a picture."""

import io
import json
import shutil
import sys
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from peft import LoraConfig
from rich.console import Console
from transformers import TrainingArguments

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer, plots, standalone
from step_jepa.batches.attention import may_see
from step_jepa.cli import main
from step_jepa.data.example import Example
from step_jepa.data.reading import read_records
from step_jepa.inspection.commands import next_screen
from step_jepa.inspection.example import Inspector, RowArguments, inspect_example
from step_jepa.inspection.mask import RegionMatrix, seen_ranges, sentences
from step_jepa.inspection.picture import draw, spread
from step_jepa.inspection.stages import STAGES, visible
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.rows.regions import Region, row_regions

QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": -1}
IN_ORDER = {"num_train_epochs": 1, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}


@pytest.fixture(scope="module")
def train_file(tmp_path_factory, records):
    """Eight problems with pairs; the ninth has nothing but its answer, the tenth one step before it."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [*records, conversation("So 9 + 0 = 9.", "#### 9")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_folder):
    """A model with full attention; one with layers whose window, 12, is shorter than the rows; one with windows only"""
    made = {"llama": model_folder}
    for name in ("gemma3", "mistral"):
        made[name] = str(tmp_path_factory.mktemp(name))
        tiny_model(name).save_pretrained(made[name])
        byte_tokenizer().save_pretrained(made[name])
    return made


@pytest.fixture
def inspect(capsys):
    """Runs `step-jepa inspect ...`; the exit code and what was written to either stream."""

    def run(*argv):
        capsys.readouterr()  # what a trainer wrote before
        with pytest.raises(SystemExit) as stop:
            main(["inspect", *map(str, argv)])
        return SimpleNamespace(code=stop.value.code or 0, **capsys.readouterr()._asdict())

    return run


def as_json(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def inspected(model, train_file, index=0, **options):
    return inspect_example(RowArguments(model, train_file, index, **options))


# The masks are those of training


def received(trainer) -> list:
    """The attention masks that the model of a trainer gets while it trains, in order."""
    masks = []

    def keep(module, args, kwargs):
        masks.append(kwargs["attention_mask"])

    hook = trainer.model.register_forward_pre_hook(keep, with_kwargs=True)
    trainer.train()
    hook.remove()
    return masks


def by_kind(mask, kinds):
    """A mask as the model takes it, (1, 1, L, L) or these by kind of layer -> bool (L, L) by kind."""
    masks = mask if isinstance(mask, dict) else dict.fromkeys(kinds, mask)
    assert set(masks) == set(kinds)
    return {kind: layer[0, 0] for kind, layer in masks.items()}


def dense(rows):
    mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for q, seen in enumerate(rows):
        for start, stop in seen:
            mask[q, start:stop] = True
    return mask


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_cells_are_those_that_the_trainer_gives_its_model(name, folders, train_file, inspect, tmp_path):
    options = {"output_dir": str(tmp_path), "pairs": "all", "predictors": 2, "attention": "dense", **QUIET, **IN_ORDER}
    given_masks = received(StepJEPARepresentationTrainer(folders[name], StepJEPAConfig(**options), train_file))
    assert len(given_masks) == 10
    for index, given_mask in enumerate(given_masks[:8]):
        files = ["--model_name", folders[name], "--train_file", train_file]
        found = as_json(inspect("mask", *files, "--index", index, "--predictors", 2, "--json"))
        theirs = by_kind(given_mask, found["layers"])
        for kind, rows in found["layers"].items():
            assert torch.equal(dense(rows), theirs[kind]), kind
        if name == "gemma3":
            assert not torch.equal(theirs["full_attention"], theirs["sliding_attention"])
    for index in (8, 9):  # no pair: the model's own causal path
        for kind, rows in as_json(inspect("mask", *files, "--index", index, "--json"))["layers"].items():
            assert given_masks[index].tolist() == [[1] * len(rows)]
            window = 12 if kind == "sliding_attention" else len(rows)
            assert rows == [[[max(0, q + 1 - window), q + 1]] for q in range(len(rows))]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_cells_in_place_are_those_that_standalone_gives_its_model(name, folders, train_file, inspect, tmp_path):
    model = tiny_model(name).train()
    standalone.add_predictors(model, 2)
    rows = [
        standalone.encode(byte_tokenizer(), record["messages"], record["steps"], 512)
        for record in read_records(train_file)
    ]
    args = TrainingArguments(output_dir=str(tmp_path), remove_unused_columns=False, **QUIET, **IN_ORDER)
    collate = lambda examples: standalone.collate(examples, 258)  # noqa: E731
    trainer = standalone.StepJEPATrainer(model, args, collate, rows)
    second = [mask for mask in received(trainer) if isinstance(mask, dict) or mask.dim() == 4]
    paired = [index for index, row in enumerate(rows) if row.second_step[1]]
    assert len(second) == len(paired) == 8
    for index, row in enumerate(rows):
        files = ["--model_name", folders[name], "--train_file", train_file]
        found = as_json(inspect("mask", *files, "--index", index, "--predictors", 2, "--json"))["in_place"]
        assert (found is not None) == bool(row.second_step[1])
        if found:
            theirs = by_kind(second[paired.index(index)], found["layers"])
            for kind, ours in found["layers"].items():
                assert torch.equal(dense(ours), theirs[kind]), kind
            assert found["regions"][-1]["stop"] == len(ours)


def test_words_are_read_off_each_kind_of_layer(folders, train_file, inspect):
    files = ["--model_name", folders["gemma3"], "--train_file", train_file, "--index", 1]
    found = as_json(inspect("mask", *files, "--json"))
    for words in (found["sight"], found["in_place"]["sight"]):
        full, slid = ({line.split(" sees ")[0]: line for line in words[kind]} for kind in sorted(words))
        assert full["predictor 1"].endswith("sees system, question, header, step 0 and itself up to each token.")
        assert slid["predictor 1"].endswith("sees part of step 0 and itself up to each token.")
        assert full["target 1"].endswith("sees nothing but itself up to each token.")
        assert slid["target 1"].endswith("sees nothing but part of itself.")
    result = inspect("mask", *files)
    for line in [*found["sight"]["sliding_attention"], *found["in_place"]["sight"]["full_attention"]]:
        assert " ".join(line.split()) in " ".join(result.out.split())
    assert "mask: in place (standalone), sliding_attention" in result.out


def test_sentences_by_hand():
    steps = [(4, 6), (6, 8)]
    example = Example(text="", input_ids=list(range(10)), labels=[-100] * 10, steps=steps, chars=[], user=(1, 3))
    row = Planner([StepJEPA(predictor_ids=(90,))])(example)
    regions = row_regions(example, row)
    seen = may_see(torch.tensor([row.branch]), torch.tensor([row.visible_length]))[0]

    def by_region():
        return dict(sentence.split(" sees ") for sentence in sentences(regions, seen))

    assert by_region()["step 0"] == "system, question, header and itself up to each token."
    assert by_region()["predictor 1"] == "system, question, header, step 0 and itself up to each token."
    assert by_region()["target 1"] == "nothing but itself up to each token."
    seen[7, 4] = False  # the last token of step 1 overlooks one of step 0
    seen[12, 11] = False
    assert "part of step 0" in by_region()["step 1"]
    assert by_region()["target 1"] == "nothing but part of itself."


def test_seen_ranges_by_hand():
    assert seen_ranges(torch.tensor([1, 1, 0, 1], dtype=torch.bool)) == [(0, 2), (3, 4)]
    assert seen_ranges(torch.zeros(3, dtype=torch.bool)) == []


# Stages


def test_tokens_by_hand(model_folder, tmp_path, inspect):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(conversation("a\t", "bc", question="?")) + "\n")
    found = as_json(inspect("tokens", "--model_name", model_folder, "--train_file", file, "--json"))
    tokens = {token["index"]: token for token in found["tokens"]}
    # Ids begin with "!", and "a" is the 65th letter from there.
    text = "<|start|>user\n?<|end|>\n<|start|>assistant\na\n\nbc<|end|>\n"
    trunk_length = len(tokens) - 3  # a predictor, and step 1
    assert found["index"] == 0
    assert "".join(tokens[place]["text"] for place in range(trunk_length)) == text.replace("a\n", "a\t\n")
    first = next(place for place, token in tokens.items() if token["region"] == "step 0")
    step = {"labelled": True, "region": "step 0", "views": []}
    assert tokens[first] == {"index": first, "text": "a", "id": 64, "position": first, **step}
    last = {"index": trunk_length + 2, "text": "c", "id": 66, "labelled": False}
    before = {"index": trunk_length, "text": "<|predictor_1|>", "id": 264, "labelled": False, "region": "predictor 1"}
    assert tokens[trunk_length] == {**before, "position": first + 3, "views": ["predicted 1"]}
    assert tokens[trunk_length + 2] == {**last, "position": first + 4, "region": "target 1", "views": ["target 1"]}
    result = inspect("tokens", "--model_name", model_folder, "--train_file", file).out
    row = next(line for line in result.splitlines() if line.split()[:1] == [str(first + 1)])
    assert row.split() == [str(first + 1), '"\\t"', *row.split()[2:3], str(first + 1), "yes", "step", "0"]


def test_the_pipeline_is_all_stages_in_order(model_folder, train_file, inspect):
    files = ["--model_name", model_folder, "--train_file", train_file, "--index", 1]
    found = as_json(inspect("pipeline", *files, "--json"))
    assert list(found) == ["index", "text", "steps", "tokens", "spans", "branches", "mask", "views"]
    assert found["tokens"] == as_json(inspect("tokens", *files, "--json"))["tokens"]
    assert {"index": 1, **found["mask"]} == as_json(inspect("mask", *files, "--json"))
    (steps,) = as_json(inspect("steps", *files, "--json"))
    assert (steps["index"], steps["text"], steps["steps"]) == (1, found["text"], found["steps"])
    steps_of_it = [f"step {number}" for number in range(5)]
    assert [part["name"] for part in found["spans"]] == ["system", "question", "header", *steps_of_it, "end"]
    assert sum(part["labelled"] for part in found["spans"]) == sum(token["labelled"] for token in found["tokens"]) > 0
    for part in found["spans"]:  # each step's span is the same wherever it is named
        if part["name"].startswith("step"):
            assert [part["start"], part["stop"]] == found["steps"][int(part["name"][5:])]["tokens"]
    predictor, target = found["branches"][:2]
    assert predictor["prefix"] == predictor["position"] == found["steps"][0]["tokens"][1]
    assert (target["prefix"], target["position"]) == (0, predictor["position"])
    (pair, *_) = found["views"]
    assert (pair["objective"], pair["step"]) == ("step_jepa", 1)
    assert pair["predicted"] == [{"index": predictor["start"], "weight": 1.0}]
    assert pair["target"] == [{"index": target["stop"] - 1, "weight": 1.0}]
    result = inspect("pipeline", *files).out
    places = [result.index(f" {number} {name}, example 1 ") for number, name in enumerate(STAGES, 1)]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [80, 120])
def test_every_stage_fits_the_terminal_without_colours(width, folders, train_file):
    shown = inspected(folders["gemma3"], train_file, 1)
    for name, stage in STAGES.items():
        console = Console(file=io.StringIO(), width=width)
        console.print(stage.show(shown))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width, name
        assert "\x1b" not in text
        assert "\u2026" not in text or name in ("spans", "branches")  # nothing is cut but excerpts


def test_colours_are_for_terminals_that_want_them(model_folder, train_file, monkeypatch):
    shown = STAGES["mask"].show(inspected(model_folder, train_file))

    def printed(**environment):
        console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard", **environment)
        console.print(shown)
        return console.file.getvalue()

    assert "\x1b[30;46m" in printed()
    assert "\x1b[30;46m" not in printed(no_color=True)


def test_what_cannot_be_printed_is_escaped():
    assert visible("a\x1b[2J\n\u00e9\\") == "a\\x1b[2J\\n\u00e9\\"


def test_matrix_by_hand():
    parts = [Region("question", None, range(2)), Region("step", 10, range(2, 4)), Region("target", 1, range(4, 5))]
    seen = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]).bool()

    def lines(width):
        console = Console(file=io.StringIO(), width=width)
        console.print(RegionMatrix(parts, seen))
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    heads = ["             q s t", "             u 1 1", "               0"]
    rows = ["qu  question \\ . .", "s10 step 10  + + .", "t1  target 1 # . \\"]
    assert lines(80) == heads + rows
    narrow = lines(17)  # two columns at once
    assert narrow[:2] == ["             q s", "             u 1"]
    assert narrow[3:6] == ["qu  question \\ .", "s10 step 10  + +", "t1  target 1 # ."]
    assert narrow[6:8] == ["             t", "             1"]


# Rows without a pair, and what cannot be


def test_a_row_without_a_pair_says_so(model_folder, train_file, inspect):
    files = ["--model_name", model_folder, "--train_file", train_file]
    for options in (["--index", 8], ["--index", 9], ["--objective", "none"]):
        result = inspect("pipeline", *files, *options)
        assert result.code == 0
        assert "No branch is appended to the trunk" in result.out
        assert "has no pair of views here: the row trains the language model alone" in " ".join(result.out.split())
        assert "no mask in place" in result.out
        found = as_json(inspect("pipeline", *files, *options, "--json"))
        assert found["branches"] == found["views"] == []
        assert found["mask"]["in_place"] is None


def test_llm_jepa_where_the_template_rewrites_the_question(model_folder, train_file, tmp_path, inspect):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "(m['content'] | upper if m['role'] == 'user' else m['content'])"
    )
    shouting = tmp_path / "shouting"
    tokenizer.save_pretrained(shouting)
    options = ["--train_file", train_file, "--objective", "llm_jepa"]
    found = as_json(inspect("pipeline", "--model_name", model_folder, *options, "--json"))
    assert [(part["position"], part["prefix"]) for part in found["branches"]] == [(0, 0), (0, 0)]
    assert found["mask"]["in_place"] is None
    result = inspect("pipeline", "--model_name", shouting, *options)
    assert result.code == 0
    assert "Objective llm_jepa has no pair of views here" in result.out
    found = as_json(inspect("pipeline", "--model_name", shouting, *options, "--json"))
    assert [part["name"] for part in found["spans"][:2]] == ["prompt", "step 0"]
    assert found["branches"] == found["views"] == []


def test_weights_of_sums_are_shown(model_folder, train_file, inspect):
    files = ["--model_name", model_folder, "--train_file", train_file, "--objective", "stp", "--pairs", "first"]
    tokens = as_json(inspect("tokens", *files, "--json"))["tokens"]
    assert sorted(view for token in tokens for view in token["views"]) == [
        "-1 x predicted 0",
        "-1 x target 0",
        "predicted 0",
        "target 0",
    ]


def test_errors_are_one_line(folders, train_file, tmp_path, inspect):
    def refused(message, *argv, model=folders["llama"]):
        result = inspect(*argv, "--model_name", model, "--train_file", train_file)
        assert result.code == 2
        last = result.err.splitlines()[-1]
        assert last.startswith("step-jepa: ")
        assert message in last

    for stage in ("steps", "tokens", "mask", "pipeline"):
        refused("has 10 examples: give 0 to 9", stage, "--index", 10)
        refused("index = -1", stage, "--index", -1)
    refused("leave out --limit", "steps", "--index", 1, "--limit", 2)
    refused("written as .png or .svg", "mask", "--output", tmp_path / "mask.pdf")
    refused("objective = fly", "tokens", "--objective", "fly")
    refused("predictors = -1", "mask", "--predictors", -1)
    refused("max_length = 3: raise it", "mask", "--max_length", 3)
    refused("max_length = 0: give 1 or more", "mask", "--max_length", 0)
    odd = tmp_path / "odd"
    shutil.copytree(folders["gemma3"], odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "layer_types": ["linear_attention", "full_attention"]}))
    refused("layers of type linear_attention", "mask", model=odd)


def test_the_index_counts_the_examples_that_training_uses(model_folder, tmp_path, inspect):
    file = tmp_path / "long.jsonl"
    rows = [conversation("So " + "long " * 40), conversation("So 1.", "So 2.", "So 3."), conversation("So 4.", "So 5.")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model_name", model_folder, "--train_file", file, "--max_length", 60, "--json"]
    for stage in ("pipeline", "steps"):
        for index, first in enumerate(["So 1.", "So 4."]):
            found = as_json(inspect(stage, *options, "--index", index))
            (found,) = found if stage == "steps" else [found]
            assert found["index"] == index
            assert found["steps"][0]["text"] == first
        assert "has 2 examples: give 0 to 1" in inspect(stage, *options, "--index", 2).err


def test_predictor_ids_follow_the_rows_of_the_model(folders, train_file, tmp_path):
    """264 rows in a model; a folder with a tokenizer alone has those of its 260 tokens; an adapter's are its base's."""
    bare, adapter = tmp_path / "bare", tmp_path / "adapter"
    for folder in (bare, adapter):
        byte_tokenizer().save_pretrained(folder)
    LoraConfig(base_model_name_or_path=folders["gemma3"]).save_pretrained(adapter)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(folders["llama"], checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "vocab_size": 266, "predictors": 2}))
    full, both = ["full_attention"], ["full_attention", "sliding_attention"]
    for folder, rows, kinds in ((bare, 260, full), (adapter, 264, both), (checkpoint, 264, full)):
        made = inspected(str(folder), train_file, predictors=2)
        place = next(part.indices.start for part in made.visibility.regions if part.name == "predictor 1")
        assert made.row.input_ids[place : place + 2] == [rows, rows + 1]
        assert list(made.visibility.layers) == kinds


# Pictures


def test_pictures_name_every_region(folders, train_file, tmp_path, inspect):
    files = ["--model_name", folders["gemma3"], "--train_file", train_file, "--index", 1]
    for name in ("mask.svg", "mask.png"):
        result = inspect("mask", *files, "--output", tmp_path / "new" / name)
        assert result.code == 0
        assert name in result.err
    assert (tmp_path / "new" / "mask.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "mine.png").write_text("mine")
    again = inspect("mask", *files, "--output", tmp_path / "mine.png")
    assert (again.code, "mine.png is there already" in again.err) == (2, True)
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert inspect("mask", *files, "--output", tmp_path / "mine.png", "--overwrite").code == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "new" / "mask.svg").read_text()
    names = [part["name"] for part in as_json(inspect("mask", *files, "--json"))["regions"]]
    for name in names:
        shared = name.split()[0] not in ("end", "step") or name == "step 0"
        in_place = shared and name not in ("predictor 2", "target 2", "predictor 3", "target 3")
        assert drawn.count(f">{name}<") == (8 if in_place else 4), name  # two axes, two kinds of layer
    for title in ("trunk and branches, full_attention", "in place (standalone), sliding_attention"):
        assert title in drawn


def test_a_picture_has_one_rectangle_of_area_1_for_each_cell(folders, train_file):
    for index, count in ((1, 4), (8, 2)):  # without a pair there is no mask in place
        shown = inspected(folders["gemma3"], train_file, index)
        with plots.style():
            figure = draw(shown)
        panels = list(shown.masks())
        assert len(figure.axes) == len(panels) == count
        for axes, (_, _, seen) in zip(figure.axes, panels, strict=True):
            drawn = torch.zeros_like(seen, dtype=torch.long)
            for patches in axes.collections[:6:2]:  # every other one is a hatch
                for path in patches.get_paths():
                    (left, top), (right, bottom) = path.vertices[:4].min(0), path.vertices[:4].max(0)
                    corners = {(left, top), (right, top), (right, bottom), (left, bottom)}
                    assert set(map(tuple, path.vertices[:4])) == corners
                    drawn[int(top) : int(bottom), int(left) : int(right)] += 1
            assert torch.equal(drawn, seen.long())


def test_labels_apart_by_hand():
    assert spread([1.0, 5.0, 5.5, 9.0], 1.0, 10) == [1.0, 4.75, 5.75, 9.0]
    assert spread([4.0, 4.0, 4.0, 5.5], 1.0, 10) == [2.875, 3.875, 4.875, 5.875]  # the fourth joins the others
    assert spread([0.5, 1.0, 9.0, 9.5], 2.0, 10) == [0.0, 2.0, 8.0, 10.0]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0.1, 100 / 30))
def test_labels_lie_apart_and_within_bounds(places, least):
    found = spread(sorted(places), least, 100)
    assert len(found) == len(places)
    assert all(b - a >= least - 1e-6 for a, b in pairwise(found))
    assert found[0] >= -1e-6
    assert found[-1] <= 100 + 1e-6


def test_a_picture_has_room_for_all_its_labels(model_folder, tmp_path):
    file = tmp_path / "many.jsonl"
    file.write_text(json.dumps(conversation(*[f"So {number}." for number in range(14)])) + "\n")
    with plots.style():
        figure = draw(inspected(model_folder, str(file)))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    for axes, count in zip(figure.axes, (2 * 44, 2 * 6), strict=True):
        boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]
        assert len(boxes) == count
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        panel, letter = axes.get_window_extent(), 10  # pixels
        assert all(box.x1 < panel.x1 + letter and box.y0 > panel.y0 - letter for box in boxes)


# The menu


def test_moves_by_hand():
    """Seven stages: 0 to 6 are those of example 0, 7 to 13 those of example 1."""
    assert [next_screen(3, answer, 2) for answer in ("", "b", "n", "p", "1", "7", "q")] == [4, 2, 10, 3, 0, 6, None]
    assert [next_screen(6, answer, 2) for answer in ("", "n")] == [7, 13]
    assert [next_screen(13, answer, 2) for answer in ("", "n", "p", "2")] == [13, 13, 6, 8]
    assert next_screen(0, "b", 2) == 0


def typed(monkeypatch, lines):
    """A terminal in which a user types these lines, and then Ctrl-D."""
    keyboard = io.StringIO("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(sys, "stdin", keyboard)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)


def shown_in(out):
    """(example, stage) in the order in which they were shown."""
    places, example = [], None
    for line in out.splitlines():
        if ", of 0 to 9" in line:
            example = int(line.split("example ")[1].split(",")[0])
        elif "[" in line and " text" in line and " views" in line:
            places.append((example, line.split("[")[1].split("]")[0]))
    return places


def test_the_menu_walks_through_all_stages(model_folder, train_file, inspect, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    typed(monkeypatch, [model_folder, train_file, *[""] * 7, "b", "n", "p", "3", "x", "q"])
    result = inspect()
    assert result.code == 0
    walked = [(0, f"{number} {name}") for number, name in enumerate(STAGES, 1)]
    rest = [(1, "1 text"), (0, "7 views"), (1, "7 views"), (0, "7 views"), (0, "3 tokens")]
    assert shown_in(result.out) == walked + rest
    assert "select one of the available options" in result.out


def test_the_menu_begins_where_it_is_told_and_ends_with_the_input(model_folder, train_file, inspect, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    files = ["--model_name", model_folder, "--train_file", train_file, "--predictors", 2]
    typed(monkeypatch, ["3"])
    result = inspect(*files, "--index", 2)
    assert result.code == 0
    assert shown_in(result.out) == [(2, "1 text"), (2, "3 tokens")]
    assert "<|predictor_2|>" in result.out
    typed(monkeypatch, [])
    assert inspect().code == 0  # Ctrl-D at the first question
    assert "give 0 to 9" in inspect(*files, "--index", 10).err


def test_without_a_terminal_inspect_says_what_there_is(inspect):
    for argv in ([], ["--help"]):
        result = inspect(*argv)
        assert result.code == 0
        assert "inspect pipeline" in result.out
    assert inspect("fly").code == 2


def test_inspection_takes_no_weights(model_folder, train_file, tmp_path):
    folder = tmp_path / "weightless"
    shutil.copytree(model_folder, folder)
    Path(folder, "model.safetensors").unlink()
    inspector = Inspector(RowArguments(str(folder), train_file))
    assert len(inspector.examples()) == 10


def test_plain_serves_a_tokenizer_without_chat_template(tmp_path, records, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    files = ["--model_name", str(tmp_path), "--train_file", str(rows)]
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "tokens", *files])
    assert stop.value.code == 2
    assert "--plain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "tokens", *files, "--plain", "--json"])
    assert stop.value.code == 0
    pieces = [token["text"] for token in json.loads(capsys.readouterr().out)["tokens"]]
    assert "".join(pieces).startswith("Is it 1?\nSo 1 + 0 = 1.")


# Long rows


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_long_row_is_shown_by_a_sample_of_its_tokens(name, folders, train_file, monkeypatch):
    whole = inspected(folders[name], train_file, 1)
    assert whole.visibility.note == ""
    monkeypatch.setattr("step_jepa.inspection.sample.MOST_TOKENS", 40)
    monkeypatch.setattr("step_jepa.inspection.sample.MOST_STEPS", 4)
    shown = inspected(folders[name], train_file, 1)
    sampled, tokens = shown.visibility, shown.visibility.tokens
    names = [region.name for region in shown.regions if region.number != 2]  # of 0 to 4
    assert [region.name for region in sampled.regions] == names
    assert len(tokens) <= 40
    length = len(shown.row.input_ids)
    assert sampled.note == f"{len(tokens)} of {length} tokens, {len(names)} of {len(shown.regions)} regions"
    for kind, seen in whole.visibility.layers.items():
        assert sampled.layers[kind].equal(seen[tokens][:, tokens])
    read = {state for pair in shown.row.pairs if pair.step != 2 for state, _ in [*pair.predicted, *pair.target]}
    assert read <= set(tokens)
    assert next(shown.masks()).title.endswith(f"({sampled.note})")
    out = io.StringIO()
    Console(file=out, width=200).print(STAGES["tokens"].show(shown))
    lines = [line for line in out.getvalue().splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(line.split()[0]) for line in lines[:-1]] == tokens
    assert lines[-1].rstrip() == f"{sampled.note}: --json has all"
    assert len(STAGES["tokens"].describe(shown)) == length
