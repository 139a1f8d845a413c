"""The report: one page, from files alone; what it says, what it escapes, and that its explorer follows the mask."""

import json
import os
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from test_cli import code, train

from step_jepa.arguments.parsing import parse
from step_jepa.batches import attention
from step_jepa.data.example import IGNORED, Example
from step_jepa.errors import UserError
from step_jepa.reporting.matching import label_evaluations
from step_jepa.reporting.report import ReportArguments, render
from step_jepa.reporting.runs import Evaluation, Run, read_folders
from step_jepa.rows.branches import Pair, trunk
from step_jepa.training.row_preview import describe_row
from step_jepa.training.run_metadata import named

SCRIPT = "<script>document.title = 'no'</script>"


class Page(HTMLParser):
    """What a page holds: the elements of each name, all text of the body that is shown, the data of its explorer."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.shown, self.data, self.source = "", "", text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass
        self.shown += " "

    def handle_data(self, data):
        if "script" in self.open:
            self.data = self.data or data
        elif "style" not in self.open:
            self.shown += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def words(self) -> str:
        return " ".join(self.shown.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two runs of a model with sliding layers, and evaluations of the base and of both."""
    home = tmp_path_factory.mktemp("home")
    tiny_model("gemma3").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    rows = [
        {
            **conversation(*[f"So {a} < {b}." for b in range(2 + a % 3)], f"#### {a}", question=f"{SCRIPT} {a}?"),
            "answer": str(a),
        }
        for a in range(1, 9)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = Path.cwd()
    os.chdir(home)
    try:
        common = ["--eval_file", "rows.jsonl", "--diagnostics_steps", "2", "--logging_steps", "1", "--pairs", "all"]
        for name, lbd in {"a": "0.5", "b": "2.0"}.items():
            assert train("base", "rows.jsonl", f"out/{name}", *common, "--lbd", lbd) == 0
        for model, out in {"base": "before", "out/a": "after_a", "out/b": "after_b"}.items():
            options = ["--test_file", "rows.jsonl", "--output_dir", f"out/{out}", "--max_new_tokens", "4"]
            assert code("evaluate", "--model_name", model, *options) == 0
    finally:
        os.chdir(here)
    rows = json.loads((home / "out" / "a" / "rows.json").read_text())
    (home / "out" / "a" / "rows.json").write_text(json.dumps({**rows, "rows": rows["rows"][:3]}))  # not those of b
    return home


@pytest.fixture(scope="module")
def page(home):
    return Page(render(read_folders([str(home / "out")])))


def copy(home: Path, to: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(home / "out" / name, to / name)
    return to


# What lies in the folders


def test_what_a_run_leaves(home):
    settings = json.loads((home / "out" / "a" / "run.json").read_text())
    given = {"approach": "adapted", "model_name": "base", "train_file": "rows.jsonl", "eval_file": "rows.jsonl"}
    assert {name: settings[name] for name in given} == given
    assert settings["data"] == {"examples": 8, "steps": 33, "pairs": 17, "cut": 0, "left_out": 0}
    assert (settings["lora"], settings["seed"], settings["max_steps"]) == (None, 42, 3)
    rows = json.loads((home / "out" / "b" / "rows.json").read_text())
    assert (rows["kinds"], rows["window"], len(rows["rows"])) == (["full_attention", "sliding_attention"], 12, 8)
    assert f"{SCRIPT} 1?" in "".join(rows["rows"][0]["tokens"])
    assert "<|predictor_1|>" in rows["rows"][0]["tokens"]


def test_a_row_by_hand():
    example = Example(
        text="", input_ids=[5, 6, 7, 8], labels=[IGNORED, 6, 7, 8], steps=[(1, 2), (2, 4)], chars=[], user=(0, 1)
    )
    row = trunk(example)
    row.append_branch([9], position_offset=2, visible_length=2)
    row.pairs.append(Pair([(4, 1.0)], [(2, 0.5), (3, 0.5)], step=1))
    assert describe_row(example, row, list(map(str, row.input_ids)), ["step_jepa"]) == {
        "tokens": ["5", "6", "7", "8", "9"],
        "branch": [0, 0, 0, 0, 1],
        "prefix": [0, 0, 0, 0, 2],
        "position": [0, 1, 2, 3, 2],
        "labelled": [False, True, True, True, False],
        "regions": [("question", 0, 1), ("step 0", 1, 2), ("step 1", 2, 4), ("predictor 1", 4, 5)],
        "pairs": [{"objective": "step_jepa", "step": 1, "predicted": [4], "target": [2, 3]}],
    }


def test_what_models_and_data_are_called():
    assert [named(thing) for thing in (None, "a/b", Path("a"), [1])] == [None, "a/b", "a", "list in memory"]


def test_standalone_leaves_settings_and_no_rows_of_another_run(home, tmp_path):
    out = tmp_path / "out"
    file, base = home / "rows.jsonl", home / "base"
    assert train(base, file, out) == 0
    assert (out / "rows.json").exists()
    assert train(base, file, out, "--approach", "standalone", "--lora", "--overwrite", "--save_strategy", "no") == 0
    assert not (out / "rows.json").exists()
    settings = json.loads((out / "run.json").read_text())
    assert (settings["approach"], settings["lora"]["r"], settings["data"]) == ("standalone", 16, {"examples": 8})
    assert "out: no rows.json" in Page(render(read_folders([str(out)]))).words()


def test_which_evaluation_is_of_which_run(home, tmp_path):
    data = read_folders([str(home / "out")])
    assert [run.name for run in data.runs] == ["a", "b"]
    # The models were named relative to another folder than this one.
    labelled = label_evaluations(data.evaluations, data.runs)
    assert [each.label for each in labelled] == ["before", "a", "b"]
    assert [each.evaluation.folder.name for each in labelled] == ["before", "after_a", "after_b"]
    alone = read_folders([str(home / "out" / name) for name in ("after_b", "after_a", "a", "a")])
    assert [each.label for each in label_evaluations(alone.evaluations, alone.runs)] == ["after", "out/b"]
    assert len(alone.runs) == 1


@pytest.fixture
def two_demos(home, tmp_path):
    """Two folders that each hold demo/model and its evaluation demo/after, made by commands that ran in them."""
    for name in "ab":
        demo = tmp_path / name / "demo"
        shutil.copytree(home / "out" / name, demo / "model")
        shutil.copytree(home / "out" / f"after_{name}", demo / "after")
        note(demo / "after", model_name="demo/model", output_dir="demo/after")
    return tmp_path


def note(evaluation: Path, **settings: str | None) -> None:
    """Change what an evaluation says of itself."""
    summary = json.loads((evaluation / "summary.json").read_text())
    summary["settings"] |= settings
    (evaluation / "summary.json").write_text(json.dumps(summary))


def labels(*folders: Path) -> dict[str, str]:
    """By folder of the evaluation."""
    data = read_folders([str(folder) for folder in folders])
    return {str(each.evaluation.folder): each.label for each in label_evaluations(data.evaluations, data.runs)}


def test_a_run_of_another_folder_gets_no_credit_for_its_name(two_demos, monkeypatch):
    a, b = two_demos / "a" / "demo", two_demos / "b" / "demo"
    of_a, of_b = {str(a / "after"): "a/demo/model"}, {str(b / "after"): "b/demo/model"}
    assert labels(a, b) == labels(b, a) == of_a | of_b
    monkeypatch.chdir(two_demos / "b")
    assert labels(Path("demo"), a) == of_a | {"demo/after": "b/demo/model"}
    assert labels(a / "model", b / "after") == {str(b / "after"): "demo/model"}


def test_an_absolute_name_is_the_run_itself(two_demos):
    a, b = two_demos / "a" / "demo", two_demos / "b" / "demo"
    note(b / "after", model_name=str(b / "model"), output_dir=str(b / "after"))
    assert labels(a, b)[str(b / "after")] == "b/demo/model"
    assert labels(a / "model", b / "after") == {str(b / "after"): str(b / "model")}


@pytest.mark.parametrize("output_dir", ["/elsewhere/after", "moved", None])
def test_a_name_that_fits_two_runs_is_credited_to_none(two_demos, output_dir):
    a, b = two_demos / "a" / "demo", two_demos / "b" / "demo"
    note(b / "after", output_dir=output_dir)
    assert labels(a / "model", b) == {str(b / "after"): "demo/model"}
    words = Page(render(read_folders([str(a / "model"), str(b)]))).words()
    assert f"{b}/after is of demo/model, which may be {a}/model or {b}/model, so it is credited to none" in words
    assert "not evaluated." not in words
    assert labels(b) == {str(b / "after"): "after"}  # only one run can be meant


def test_a_folder_that_is_named_in_two_ways_is_read_once(two_demos, monkeypatch):
    monkeypatch.chdir(two_demos / "a")
    data = read_folders(["demo", str(two_demos / "a" / "demo"), "./demo/model"])
    assert [(run.name, run.folder) for run in data.runs] == [("model", Path("demo/model"))]
    assert len(data.evaluations) == 1


def test_the_work_of_matching_grows_with_the_number_of_runs(tmp_path, monkeypatch):
    """Not with its square: of 150 runs every path was resolved 3.6 million times."""
    resolve, resolved = Path.resolve, []
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    counts = []
    for count in (10, 20):
        resolved.clear()
        settings = {"model_name": "base"}
        runs = [Run(tmp_path / f"{n}", f"{n}", {"log_history": []}, {}, settings, None) for n in range(count)]
        scores = [
            {"settings": {"model_name": str(run.folder), "output_dir": f"after{n}"}} for n, run in enumerate(runs)
        ]
        evaluations = [Evaluation(tmp_path / f"after{n}", summary, [], None) for n, summary in enumerate(scores)]
        labelled = label_evaluations(evaluations, runs)
        assert [each.candidates for each in labelled] == [[run] for run in runs]
        counts.append(len(resolved))
    assert counts[1] == 2 * counts[0]


# The page


def test_the_page_holds_all_that_it_needs(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for attributes in page.all("a")]
    assert {"#figures", "#curves", "#explorer", "#views", "#answers", "#settings"} < set(links)
    assert {link.removeprefix("#") for link in links} <= set(ids)
    used = [each["xlink:href"] for each in page.all("use")]
    assert used
    assert {name.removeprefix("#") for name in used} <= set(ids)
    assert not [each for _, each in page.elements if "src" in each]
    assert [each["href"] for each in page.all("link")] == ["data:,"]
    assert "@import" not in page.source
    assert "default-src 'none'" in page.source
    assert len(page.source) < 2**20
    assert page.all("html") == [{"lang": "en"}]
    assert all("aria-label" in each for each in page.all("svg"))
    assert len(page.all("svg")) == 4 + 3  # curves; a map of each evaluation
    assert all("scope" in each for each in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_text_from_data_and_models_stays_text(home, page, tmp_path):
    assert len(page.all("script")) == 3  # the explorer's data, and the code of both
    assert f"{SCRIPT} 1?" in page.words()
    assert "<" not in page.data
    run, *_ = json.loads(page.data)
    assert f"{SCRIPT} 1?" in "".join(run["rows"][0]["tokens"])
    out = copy(home, tmp_path, "after_a")
    first, *others = (out / "after_a" / "predictions.jsonl").read_text().splitlines()
    row = json.loads(first)
    row |= {"prediction": f"{SCRIPT}\n</p>" * 40, "correct": True, "extracted": f"</dd>{SCRIPT}"}
    (out / "after_a" / "predictions.jsonl").write_text("\n".join([json.dumps(row), *others]))
    shown = Page(render(read_folders([str(out)])))
    assert not shown.all("script")
    assert shown.shown.count(SCRIPT) > 40
    assert len(shown.all("title")) == 1


def test_words_in_charts_are_text_and_a_page_is_always_the_same(home, page):
    chart = page.source.partition("<svg")[2].partition("</svg>")[0]
    assert ">optimisation step</text>" in chart
    assert render(read_folders([str(home / "out")])) == page.source


def test_names_of_runs_are_text_in_charts_too(home, tmp_path):
    for name in ("$x_{$<b>", "$y$"):
        shutil.copytree(home / "out" / "a", tmp_path / name)
    shown = Page(render(read_folders([str(tmp_path)])))
    assert not shown.all("b")
    assert "$x_{$<b>, paired" in shown.shown


def test_several_runs_stand_side_by_side(page):
    words = page.words()
    for quantity in ("paired", "unpaired", "predicted", "target", "training"):
        assert f"a, {quantity}" in words
        assert f"b, {quantity}" in words
    differing = words.partition("What was trained on what, where runs differ")[2].partition("the same in all")[0]
    assert differing.split()[:6] == ["setting", "a", "b", "lbd", "0.5", "2.0"]


def test_the_figures_are_those_of_the_files(home, page):
    summary = json.loads((home / "out" / "before" / "summary.json").read_text())
    words = page.words()
    for name in ("lm_loss", "jepa_loss", "cosine_paired", "cosine_unpaired"):
        assert f"{summary[name]:.4f}" in words
    assert "0.0% [0.0%, 32.4%]" in words  # Wilson: z^2 / (n + z^2), n = 8
    (first, *_), *_ = (run.points("lm_loss") for run in read_folders([str(home / "out" / "a")]).runs)
    assert f"{first[0]} {first[1]:.4g}" in words


# What is missing


def test_what_is_missing_is_said_and_its_section_is_not_shown(home, tmp_path):
    out = copy(home, tmp_path, "a", "after_a")
    for name in ("run.json", "rows.json"):
        (out / "a" / name).unlink()
    alone = Page(render(read_folders([str(out / "a")])))
    for message in (
        "a: not evaluated. step-jepa evaluate --test_file F --model_name",
        "a: no rows.json, for the explorer: train with --approach adapted",
        "a: no run.json",
        "step-jepa pairing --model_name",
    ):
        assert message in alone.words()
    sections = {each["id"] for each in alone.all("section")}
    assert sections == {"curves", "settings", "missing"}
    (out / "after_a" / "views.safetensors").unlink()
    page = Page(render(read_folders([str(out / "after_a")])))
    assert f"{out}/after_a has no views.safetensors" in page.words()
    assert {each["id"] for each in page.all("section")} == {"figures", "answers", "missing"}
    state = out / "a" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "log_history": []}))
    assert "a: no curves: train with --logging_steps 1" in Page(render(read_folders([str(out / "a")]))).words()
    words = Page(render(read_folders([str(home / "out" / name) for name in ("a", "after_b")]))).words()
    assert f"a: not evaluated. step-jepa evaluate --test_file F --model_name {home}/out/a" in words
    assert "base was not evaluated before training. step-jepa evaluate --test_file F --model_name base" in words


def test_random_weights_are_not_to_be_evaluated(home, tmp_path):
    out = copy(home, tmp_path, "a", "after_b")
    options = out / "a" / "step_jepa.json"
    options.write_text(json.dumps({**json.loads(options.read_text()), "pretrain": True}))
    words = Page(render(read_folders([str(out / "a"), str(out / "after_b")]))).words()
    assert "before training" not in words


def test_what_the_pairing_measures_say(home, tmp_path):
    out, scores = copy(home, tmp_path / "out", "a"), tmp_path / "out" / "scores"
    options = ["--model_name", out / "a", "--test_file", home / "rows.jsonl", "--output_dir", scores, "--pool", "4"]
    assert code("pairing", *options) == 0
    figure = json.loads((scores / "pairing.json").read_text())["models"][str(out / "a")]["measures"]["centred_margin"]
    shown = figure["views"]
    words = Page(render(read_folders([str(out)]))).words()
    assert f"a centred margin views {shown['value']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]" in words


def test_what_is_refused(home, tmp_path, capsys):
    def refused(words, *argv):
        assert code("report", *argv, "--output", tmp_path / "r.html") == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("step-jepa: ")
        assert words in message

    (tmp_path / "empty").mkdir()
    refused("holds no run and no results", tmp_path / "empty")
    refused("nowhere: no such folder", tmp_path / "nowhere")
    out = copy(home, tmp_path / "out", "after_a")
    predictions = out / "after_a" / "predictions.jsonl"
    predictions.write_text('{}\n{"index"')
    refused("predictions.jsonl:2 is not the JSON", out)
    predictions.write_text("")
    refused("predictions.jsonl has 0 of the ", out)
    predictions.unlink()
    (out / "after_a" / "views.safetensors").write_text("x")
    refused("views.safetensors is damaged", out)
    (out / "after_a" / "summary.json").write_text("[1]")
    refused("summary.json is not the JSON", out)
    (out / "after_a" / "summary.json").write_text("{}")
    refused("summary.json is damaged, its settings is missing or wrong", out)
    out = copy(home, tmp_path / "other", "a")
    (out / "a" / "run.json").write_text('{"approach": "adapted"}')
    refused("run.json is damaged, its lr_scheduler_type is missing", out)
    (tmp_path / "r.html").write_text("mine")
    refused("r.html is there already", home / "out")
    assert (tmp_path / "r.html").read_text() == "mine"
    assert code("report", home / "out", "--output", tmp_path / "empty") == 2
    assert "is a folder" in capsys.readouterr().err
    for name in ("r.txt", "r", "r.htm"):
        assert code("report", home / "out", "--output", tmp_path / name, "--overwrite") == 2
        assert f"{name}: the page is written as .html: give --output" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert code("report", home / "out" / "a", "--output", tmp_path / "r.html", "--overwrite") == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert str(tmp_path / "r.html") in capsys.readouterr().err


def test_runs_are_named_first(tmp_path):
    (args,) = parse("report", [ReportArguments], ["a", "b", "--output", "r.html"])
    assert (args.runs, args.output) == (["a", "b"], "r.html")
    (args,) = parse("report", [ReportArguments], ["--output", "r.html", "--runs", "a"])
    assert args.runs == ["a"]
    with pytest.raises(UserError, match="required: --runs"):
        parse("report", [ReportArguments], ["--output", "r.html"])


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    switches += ["disable-background-networking", "disable-component-update"]
    for switch in [*switches, f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser, page, tmp_path):
    (tmp_path / "r.html").write_text(page.source)
    browser.get((tmp_path / "r.html").as_uri())
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    still = {
        "features": [{"name": "prefers-reduced-motion", "value": "reduce"}]
    }  # no scrolling while the pointer moves
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", still)
    return browser


CHOOSE = """
const [field, value] = arguments;
const select = document.getElementById(field);
select.value = value;
select.dispatchEvent(new Event("change"));
"""
LOOK = """
const tokens = [...document.querySelectorAll("#row .token")];
tokens[arguments[0]].focus();
const seen = tokens.flatMap((each, k) => each.dataset.seen === "true" ? [k] : []);
return [seen, document.getElementById("token-description").textContent];
"""


def test_the_explorer_follows_the_mask(opened, home):
    assert opened.get_log("browser") == []
    assert opened.title.startswith("Step-JEPA report")
    data = json.loads((home / "out" / "b" / "rows.json").read_text())
    config = tiny_model("gemma3").config
    rng, differed = random.Random(0), 0
    for _ in range(50):
        number, kind = rng.randrange(8), rng.choice(data["kinds"])
        row = data["rows"][number]
        places = (torch.tensor([row[name]]) for name in ("branch", "prefix", "position"))
        seen = attention.seen(config, *places)[kind][0]
        token = rng.randrange(len(row["tokens"]))
        opened.execute_script(CHOOSE, "example", f"1 {number}")
        opened.execute_script(CHOOSE, "kind", kind)
        found, _ = opened.execute_script(LOOK, token)
        assert found == seen[token].nonzero()[:, 0].tolist()
        differed += kind == "sliding_attention" and token >= 12
    assert differed > 10  # the window was looked through


def test_the_explorer_says_in_words_what_it_shows(opened, home):
    opened.execute_script(CHOOSE, "example", "1 0")
    row = json.loads((home / "out" / "b" / "rows.json").read_text())["rows"][0]
    predictor = row["tokens"].index("<|predictor_1|>")
    _, description = opened.execute_script(LOOK, predictor)
    assert description == (
        f'Token {predictor} "<|predictor_1|>", predictor 1, position {row["position"][predictor]}. '
        "Sees system, question, header, step 0, itself. It is where the predicted embedding of step 1 is read."
    )
    _, description = opened.execute_script(LOOK, predictor + 1)
    assert "target 1, position" in description
    assert description.endswith("Sees itself. It feeds the target embedding of step 1.")
    _, description = opened.execute_script(LOOK, 0)
    assert description.endswith("Sees itself. It feeds the predicted embeddings of step 1, step 2.")
    _, description = opened.execute_script(LOOK, next(start for name, start, _ in row["regions"] if name == "step 2"))
    assert description.endswith("It feeds no embedding. The language model learns to write it.")


def test_the_explorer_goes_by_keyboard_and_by_pointer(opened, home):
    from selenium.webdriver import ActionChains, Keys

    def here():
        return opened.execute_script("return document.activeElement.getAttribute('aria-label')").split()[1]

    opened.execute_script(LOOK, 0)
    starts = [start for _, start, _ in json.loads((home / "out" / "a" / "rows.json").read_text())["rows"][0]["regions"]]
    for key, place in [
        *((Keys.ARROW_RIGHT, 1), (Keys.ARROW_DOWN, starts[1]), (Keys.ARROW_DOWN, starts[2])),
        *((Keys.ARROW_UP, starts[1]), (Keys.ARROW_LEFT, starts[1] - 1), (Keys.HOME, 0), (Keys.ARROW_LEFT, 0)),
    ]:
        ActionChains(opened).send_keys(key).perform()
        assert here() == str(place)
    stops = "return [...document.querySelectorAll('#row .token')].filter((each) => each.tabIndex === 0).length"
    assert opened.execute_script(stops) == 1  # one stop of the tabulator for the whole row
    token = opened.find_elements("css selector", "#row .token")[5]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", token)
    ActionChains(opened).move_to_element(token).perform()
    assert opened.find_element("id", "token-description").text.startswith("Token 5 ")
    assert opened.get_log("browser") == []


def test_a_check_box_hides_a_run_everywhere(opened):
    places = "[...document.querySelectorAll('[data-group]')]"
    hidden = f"return {places}.map((each) => [each.dataset.group, each.getClientRects().length > 0])"

    def visible() -> set[str]:
        return {group for group, is_visible in opened.execute_script(hidden) if is_visible}

    boxes = opened.find_elements("css selector", "#groups input")
    assert visible() == {"0", "1"}
    boxes[1].click()
    assert visible() == {"0"}
    opened.find_element("id", "none").click()
    assert visible() == set()
    opened.find_element("id", "all").click()
    assert visible() == {"0", "1"}
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_and_can_be_read(opened, scheme, width):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    colours = opened.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (ink < 150 and paper > 700) if scheme == "light" else (ink > 650 and paper < 120)
