"""What the pages in docs/ say is what the code does."""

import re
import runpy
import shlex
from dataclasses import fields
from pathlib import Path
from random import Random

import links
import pytest
import torch
from conftest import tiny_model

import step_jepa
from step_jepa import StepJEPAConfig, cli
from step_jepa.arguments.parsing import parse
from step_jepa.batches.attention import may_see
from step_jepa.batches.collate import BranchCollator
from step_jepa.cli import dispatch
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.objectives import OBJECTIVES
from step_jepa.options import is_required
from step_jepa.rows.branches import trunk
from step_jepa.rows.controls import SamplingContext
from step_jepa.train.arguments import TrainArguments
from step_jepa.training.jepa_options import COMPAT

DOCS = Path(__file__).resolve().parents[1] / "docs"
THEIRS = (DOCS / "from-llm-jepa.md").read_text(encoding="utf-8")
PAGE = (DOCS / "adding-an-objective.md").read_text(encoding="utf-8")
ROOMS = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## The rooms")[2].partition("\n## ")[0]

# The flags of LLM-JEPA's two programs, as their argument parsers list them; PR: of two unmerged pull requests.
FLAGS = {
    "both": """train_file eval_file data_file model_name output_dir max_length batch_size grad_accum learning_rate
        num_epochs eval_steps lora lora_rank eval_split split_seed finetune_seed predictors lbd gamma last_token debug
        regular track_flop pretrain train_all plain additive_mask jepa_l2 jepa_mse front_pred reverse_pred infonce
        same_flop jepa_ratio""",
    "PR": """no_save wandb wandb_project wandb_run_name eval_accuracy max_new_tokens_eval max_eval_samples temperature
        do_sample top_p top_k""",
    "stp": """linear plain_jepa linear_predictor lbd_warmup min_lbd length_adjustment random_span_zero random_span_e2e
        random_span_all random_span_mask random_span_mask_recover enable_save load_lp random_span_max_length
        random_span_times random_span_draw_both random_span_uniform random_span_layer constant_lr curvature_sign
        same_predictor avg_encoding""",
}


def rooms():
    """What the table names in each room: files, and folders that it names as a whole."""
    named, room = {}, ""
    for line in ROOMS.splitlines():
        if line.startswith("| "):
            first, files = line.split("|")[1:3]
            room = first.strip("` /") or room
            named.setdefault(room, set()).update(re.findall(r"`([\w/.]+)`", files))
    return named


def test_the_table_of_rooms_names_every_file():
    everywhere = set(re.findall(r"`([\w/.]+)`", ROOMS))
    for file in Path(step_jepa.__file__).parent.rglob("[a-z]*.py"):
        folder = file.parent.name
        named = everywhere if folder == "step_jepa" else rooms().get(folder, set())
        whole = f"{folder}/" in everywhere and folder not in rooms()
        assert whole or file.name in named, file


def table(heading):
    """The cells of the rows below the heading and the line of dashes."""
    lines = THEIRS.partition(f"| {heading} |")[2].splitlines()[2:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[:end]]


def ours():
    """All that the page says but for its column of their flags."""
    rows = table("there | in | here | remark")
    return " ".join(cell for row in rows for cell in row[2:]) + THEIRS.partition("\n## ")[2]


@pytest.fixture(scope="module")
def example(tmp_path_factory, tokenizer, records):
    """What the python blocks of the page leave behind: its names, and the model that was trained. Its objective is
    registered no longer, as other tests may come between those that ask for it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    names = {"__name__": __name__, "model": tiny_model(), "tokenizer": tokenizer, "records": records}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        exec(compile(code, "adding-an-objective.md", "exec"), names)
    del OBJECTIVES["conclusion"]
    return names


@pytest.fixture
def objective_of_the_page(example, monkeypatch):
    """Registered for one test."""
    monkeypatch.setitem(OBJECTIVES, "conclusion", example["Conclusion"])


@pytest.fixture
def batch(example, tokenizer):
    rows = example["trainer"].train_dataset
    return BranchCollator(tokenizer.pad_token_id)([rows[index] for index in range(9)])


def test_every_flag_of_theirs_has_one_row_and_the_row_an_answer():
    rows = table("there | in | here | remark")
    assert len(rows) == 67
    named = {home: {f"`--{flag}`" for flag in flags.split()} for home, flags in FLAGS.items()}
    assert {home: {flag for flag, of, *_ in rows if of == home} for home in FLAGS} == named
    for flag, _, here, remark in rows:  # four cells each
        assert here.startswith("`") or here in ("none", "always"), flag
        assert remark or here.startswith("`"), flag


def test_every_option_that_the_page_calls_ours_exists():
    known = {field.name for kind in (StepJEPAConfig, TrainArguments, EvaluateArguments) for field in fields(kind)}
    named = set(re.findall(r"--(\w+)", ours()))
    assert len(named) > 50
    assert named <= known


def test_every_option_with_a_value_on_the_page_is_accepted(tmp_path):
    examples = [text for text in re.findall(r"`(--[^`]+)`", ours()) if " " in text]
    assert "--objective stp_released" in examples
    for example in examples:
        adapter = ["--lora"] if example.startswith("--lora_") else []
        needed = ["--train_file", "f", "--model_name", "m", "--output_dir", str(tmp_path), *adapter]
        given = [*needed, *shlex.split(example)]
        parse("train", [TrainArguments, StepJEPAConfig], given)


def test_every_deviation_has_a_row():
    rows = table("name | what it does | what it lets you test")
    assert [name for name, *_ in rows] == [f"`{name}`" for name in COMPAT]


def test_the_table_of_options_is_made_from_the_code():
    made = runpy.run_path(str(DOCS / "make_options.py"))["page"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == made.rstrip() + "\n"


PAGES = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
CALL = re.compile(r"(?:step-jepa|-m step_jepa) ([a-z].*)")
NUMBER = "N"  # stands for one
LEFT_OUT = {"...", "OPTIONS"}  # stand for options


def commands(page):
    """(line, words after `step-jepa`) of every command with options: lines of their own, and in a sentence."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "   ")  # a command over several lines is one
    for number, line in enumerate(text.splitlines(), 1):
        alone = re.match(r"(?:    )?(?:step-jepa|accelerate|torchrun) ", line)
        spans = re.findall(r"`([^`]+)`", line) if line.count("`") % 2 == 0 else []  # else one goes on in the next line
        for text in [line] if alone else spans:
            text = re.sub(r".*\$\((.*)\).*", r"\1", text)  # what a shell puts in its place
            call = CALL.search(text.partition("  #")[0])
            words = shlex.split(call[1].replace("\\|", "|")) if call else []
            if len(words) > 1 and words[:2] != ["inspect", words[-1]]:
                yield number, ["3" if word == NUMBER else word for word in words]


COMMANDS = [
    pytest.param(words, id=f"{page.name}:{number}:{words[0]}") for page in PAGES for number, words in commands(page)
]


def completed(words, kinds):
    """The words, with options that must be given and are left out; and without a GPU."""
    missing = [f"--{each.name}" for kind in kinds for each in fields(kind) if is_required(each)]
    in_place = bool(words) and not words[0].startswith(("-", *LEFT_OUT))  # the first one is given without its name
    added = [f"{option}=x" for option in missing[in_place:] if option not in words]
    added += ["--use_cpu=true"] if "--bf16" in words else []
    return [word for word in words if word not in LEFT_OUT] + added


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_the_pages_is_parsed(words, monkeypatch, request):
    monkeypatch.chdir(DOCS.parent)
    name = " ".join(words[:2]) if words[0] == "inspect" else words[0]
    given = words[len(name.split()) :]
    if "--import" in given:
        request.getfixturevalue("objective_of_the_page")
        del given[(place := given.index("--import")) : place + 2]
    kinds = dispatch.dataclasses_of(cli.COMMANDS[name])
    parse(name, kinds, completed(given, kinds))


def test_every_target_of_make_that_the_pages_name_exists():
    targets = set(re.findall(r"^([\w-]+):", (DOCS.parent / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"(?:^    |`|^```bash\n)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(named) > 8
    assert named <= targets


def test_every_internal_link_leads_somewhere():
    internal = [(page, link) for page in links.pages() for link in links.links(page) if not links.is_external(link)]
    assert len(internal) > 60
    assert not {(page.name, link): fault for page, link in internal if (fault := links.fault(page, link))}


def test_the_readme_is_one_page():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 120


def test_the_page_on_objectives_is_short():
    assert len(PAGE.splitlines()) < 75


def test_the_objective_of_the_page_trains(example):
    trainer = example["trainer"]
    assert trainer.state.global_step == 20
    assert not torch.equal(trainer.model.get_input_embeddings().weight[:264].cpu(), tiny_model().lm_head.weight)
    # Nine rows in two steps an epoch, one of them with nothing but the answer.
    assert [log["pairs"] for log in trainer.state.log_history if "pairs" in log] == [40, 40]


def test_the_objective_of_the_page_sees_what_the_page_says(batch, tokenizer):
    assert batch["pair_row"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch["pair_step"].tolist() == [2, 3, 1, 2, 3, 1, 2, 3]  # the step before the answer
    sees = may_see(batch["branch"], batch["visible_length"])
    reads = list(zip(batch["read_row"].tolist()[:2], batch["read_column"].tolist()[:2], strict=True))
    seen = [batch["input_ids"][row, sees[row, column]].tolist() for row, column in reads]
    assert [int(batch["position_ids"][row, column]) for row, column in reads] == [27, 65]
    assert seen[0].pop() == 264  # the predictor token itself
    assert [tokenizer.decode(ids) for ids in seen] == [
        "<|start|>user\nIs it 1?<|end|>\n<|start|>assistant\n",
        "So 1 + 2 = 3.\n\n",
    ]


@torch.no_grad()
def test_the_objective_of_the_page_is_what_separate_passes_give(example, batch):
    model = example["trainer"].model.cpu().eval()
    views = example["trainer"].representation.forward(batch, model).views
    for row, step in enumerate([2, 3, 1, 2, 3, 1, 2, 3]):
        encoded = example["trainer"].train_dataset.examples[row]
        (question, _), (start, stop) = encoded.steps[0], encoded.steps[step]
        passes = [
            ([*encoded.input_ids[:question], 264], range(question + 1)),
            (encoded.input_ids[start:stop], range(start, stop)),
        ]
        for ids, places in passes:
            inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([[*places]])}
            state = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
            found = views.predicted if places.start == 0 else views.target
            torch.testing.assert_close(found[row], state, rtol=1e-5, atol=1e-5)


def test_without_predictor_tokens_the_questions_last_state_predicts(example):
    encoded = example["trainer"].train_dataset.examples[0]
    row = trunk(encoded)
    (pair,) = example["Conclusion"]().pairs_of(row, encoded, SamplingContext(Random(0)))
    assert pair.predicted == [(encoded.steps[0][0] - 1, 1.0)]
