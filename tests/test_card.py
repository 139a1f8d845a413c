"""The card of a model, and what of a run goes to a hub: a stand-in of the hub's HTTP interface takes it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
import yaml
from conftest import tiny_model
from huggingface_hub import ModelCard, constants
from pydantic import BaseModel, ConfigDict, Field
from test_cli import code
from transformers import AutoModelForCausalLM
from transformers.utils import hub as transformers_hub

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.errors import UserError
from step_jepa.models.builtin import resolve
from step_jepa.run_files.identity import last_modified
from step_jepa.run_files.writing import write_json
from step_jepa.training.hub import exported_files
from step_jepa.training.model_card import MARK, base_model_id, data_id, public, write_card

HubId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Task(Strict):
    type: Literal["text-generation"]


class DataSet(Strict):
    type: str = Field(pattern=r"^([\w.-]+/)?[\w.-]+$")
    name: str = Field(min_length=1)


class Metric(Strict):
    type: str = Field(pattern=r"^\w+$")
    value: float
    name: str


class Result(Strict):
    task: Task
    dataset: DataSet
    metrics: list[Metric] = Field(min_length=1)


class Results(Strict):
    name: str
    results: list[Result] = Field(min_length=1)


class Metadata(Strict):
    """What the hub's documentation of model cards allows, as far as ours go."""

    base_model: HubId | None = None
    base_model_relation: Literal["adapter", "finetune"] | None = None
    datasets: list[HubId] | None = None
    library_name: Literal["peft", "transformers"]
    pipeline_tag: Literal["text-generation"]
    tags: list[Annotated[str, Field(pattern=r"^[\w-]+$")]]
    model_index: list[Results] | None = Field(None, alias="model-index")


RUN = {
    "model_name": "owner/base",
    "train_file": "/home/me/secret/train.jsonl",
    "eval_file": "/home/me/secret/held.jsonl",
    "lora": {"r": 16, "lora_alpha": 32},
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "world_size": 1,
    "seed": 42,
    "dtype": "float32",
    "max_steps": 24,
    "num_train_epochs": 3.0,
    "versions": {"torch": "2.13.0"},
    "data": {"examples": 96, "left_out": 1},
}
OPTIONS = {"objective": ["step_jepa"], "lbd": 0.1, "loss": "cosine", "control": "none", "horizon": 2, "redraw": False}
OPTIONS |= {"chat_template": "/home/me/secret/t.jinja"}
SUMMARY = {
    "settings": {"model_name": "out", "test_file": "/home/me/secret/test.jsonl"},
    "n": 40,
    "correct": 10,
    "accuracy": 0.25,
    "ci95": [0.142, 0.402],
    "lm_loss": 1.5,
    "cosine_paired": None,
}


@pytest.fixture
def model(tmp_path):
    """A folder as `train` leaves it, but for the weights; options given are of its step_jepa.json or run.json."""

    def made(**changes) -> Path:
        write_json(tmp_path / "out" / "run.json", RUN | {name: changes[name] for name in changes if name in RUN})
        write_json(tmp_path / "out" / "step_jepa.json", OPTIONS | {name: changes[name] for name in changes})
        return tmp_path / "out"

    return made


def card_of(folder: Path) -> ModelCard:
    card = ModelCard.load(folder / "README.md")
    Metadata.model_validate(yaml.safe_load(card.data.to_yaml()))
    return card


def test_the_card_says_what_was_trained_and_found(model, tmp_path, capsys):
    folder = model()
    history = [{"eval_lm_loss": 9.0}, {"eval_lm_loss": 1.25, "eval_cosine_paired": 0.5}, {"loss": 1.0}]
    write_json(folder / "trainer_state.json", {"log_history": history})
    write_json(tmp_path / "scores" / "summary.json", SUMMARY)
    assert code("card", folder, tmp_path / "scores") == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    card = card_of(folder)
    assert card.data.tags == ["step-jepa", "step_jepa", "lora"]
    assert (card.data.base_model, card.data.datasets, card.data.library_name) == ("owner/base", None, "transformers")
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        *(("lm_loss", 1.25), ("cosine_paired", 0.5), ("accuracy", 0.25), ("lm_loss", 1.5))
    ]
    for line in (
        "| base model | owner/base |",
        "| data | train.jsonl (96 examples, 1 left out) |",
        "| adapter | LoRA, rank 16, alpha 32 |",
        "| length | 24 steps |",
        "| accuracy (10 of 40) | `test.jsonl` | 0.25 | 0.142 to 0.402 |",
        "| LM loss | `held.jsonl` | 1.25 | - |",
        "- `horizon`: 2",
        "- `chat_template`: t.jinja",
    ):
        assert line in card.text.splitlines()
    assert "does not show that the pairing was learned" in card.text
    assert "No answers were judged" not in card.text
    assert "`redraw`" not in card.text
    assert "secret" not in str(card)


@pytest.mark.parametrize(
    ("changes", "tags", "words"),
    [
        ({"objective": "none", "lora": None}, ["step-jepa"], "Plainly fine-tuned"),
        ({"control": "shuffled_pairs"}, ["step-jepa", "step_jepa", "lora"], "This is a control, not a model to use"),
        ({"pretrain": True}, ["step-jepa", "step_jepa", "lora"], "From random weights, in the shape of `owner/base`"),
        (
            {"model_name": "/home/me/secret/base"},
            ["step-jepa", "step_jepa", "lora"],
            "From `base`, which is on no hub.",
        ),
    ],
)
def test_cards_of_other_runs(model, changes, tags, words):
    folder = model(**changes)
    assert write_card(folder)
    card = card_of(folder)
    assert card.data.tags == tags
    assert words in card.text
    assert "None were taken." in card.text
    assert "secret" not in str(card)
    assert (card.data.base_model is None) == ("pretrain" in changes or "model_name" in changes)


def test_a_card_of_ones_own_stays(model, capsys):
    folder = model()
    assert write_card(folder)
    before = last_modified(folder)
    (folder / "README.md").write_text((folder / "README.md").read_text().replace(MARK, "") + "Mine.")
    assert last_modified(folder) == before  # an evaluation of the model is still one of it
    assert not write_card(folder)
    assert (folder / "README.md").read_text().endswith("Mine.")
    assert code("card", folder) == 2
    assert "is not of step-jepa's making" in capsys.readouterr().err
    assert code("card", folder.parent) == 2
    assert "holds no run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "base", "data", "shown"),
    [
        ("owner/name", "owner/name", "owner/name", "owner/name"),
        ("openai/gsm8k:main[train[:100]]", None, "openai/gsm8k", "openai/gsm8k:main[train[:100]]"),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", None, "smollm2"),
        ("gsm_symbolic", None, None, "gsm_symbolic"),
        ("data/train.jsonl", None, None, "train.jsonl"),
        ("../base", None, None, "base"),
        ("/home/me/base", None, None, "base"),
    ],
)
def test_names_that_may_be_published(name, base, data, shown):
    assert data_id(name) == data
    assert public(name) == shown
    assert base_model_id(name) == base


# The hub

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """What uploading and downloading need of it: files are small, and travel within the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.answer({"url": f"{hub.url}/me/{json.loads(body)['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            hub.commit([json.loads(line) for line in body.splitlines()])
            self.answer({"commitUrl": f"{hub.url}/me/out/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({})

    def do_GET(self):
        files = self.server.files.items()
        tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files]
        if "/resolve/" in self.path:
            self.answer_file()
        else:
            self.answer(tree if "/tree/" in self.path else {"id": "me/out", "sha": COMMIT})

    def do_HEAD(self):
        self.answer_file()

    def answer(self, value):
        self.answer_bytes(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer_file(self):
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if name in self.server.files:
            self.answer_bytes(self.server.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer_bytes(b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, status=404)

    def answer_bytes(self, content, headers, status=200):
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.commits, self.tokens = {}, [], set()

    def commit(self, lines):
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
        self.commits.append((lines[0]["value"]["summary"], {*self.files}))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made anew, with the endpoint
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_is_pushed_as_a_model_that_loads(hub, records, tokenizer, tmp_path, model_folder):
    """At a checkpoint its adapter, at the end the merged model; neither the data nor paths of this machine."""
    from peft import LoraConfig

    config = StepJEPAConfig(
        output_dir=str(tmp_path / "secret" / "out"),
        push_to_hub=True,
        hub_token="hf_1234",
        max_steps=2,
        save_steps=1,
        save_total_limit=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
    )
    trainer = StepJEPARepresentationTrainer(model_folder, config, records, peft_config=LoraConfig(r=2))
    trainer.train()
    assert [message for message, _ in hub.commits] == ["Training in progress, step 1", "Training in progress, step 2"]
    assert "adapter_model.safetensors" in hub.files
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == Path(model_folder).name
    trainer.push_to_hub(commit_message="Done")
    assert hub.commits[-1][0] == "Done"
    assert hub.tokens == {"Bearer hf_1234"}
    assert {*hub.files} == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("predictors.safetensors", "step_jepa.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert not any(str(tmp_path).encode() in content for content in hub.files.values())
    ids = torch.arange(7)[None]
    trained = AutoModelForCausalLM.from_pretrained(config.output_dir)(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained("me/out")(ids).logits, trained)
    assert "lora" in card_of(Path(resolve("me/out"))).data.tags
    assert evaluated("me/out", tmp_path) == evaluated(config.output_dir, tmp_path)


def evaluated(model, tmp_path):
    """Held-out figures of two problems, which depend on the predictor tokens and options beside the weights."""
    problems, out = tmp_path / "problems.jsonl", tmp_path / "scores"
    problems.write_text('{"question": "Is it 1?", "answer": "So 1 + 1 = 2.\\nSo 2 + 1 = 3.\\n#### 3"}\n' * 2)
    options = ("--max_new_tokens", "2", "--overwrite")
    assert code("evaluate", "--model_name", model, "--test_file", problems, "--output_dir", out, *options) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["trained_predictors"]
    return {name: summary[name] for name in ("lm_loss", "jepa_loss", "cosine_paired")}


def test_a_hub_that_is_away_is_said_and_ends_no_run(records, tokenizer, tmp_path, caplog):
    """conftest.py takes it away."""
    config = StepJEPAConfig(output_dir=str(tmp_path / "out"), push_to_hub=True, use_cpu=True, report_to="none")
    with pytest.raises(UserError, match=r"the hub does not take the model .* leave out push_to_hub"):
        StepJEPARepresentationTrainer(tiny_model(), config, records, processing_class=tokenizer)
    trainer = StepJEPARepresentationTrainer(
        tiny_model(),
        StepJEPAConfig(output_dir=str(tmp_path / "out"), use_cpu=True),
        records,
        processing_class=tokenizer,
    )
    trainer.hub_model_id = "me/out"
    trainer._push_from_checkpoint(str(tmp_path))
    assert "the hub does not take the model" in caplog.text


def test_the_card_and_its_model_are_pushed_after_an_evaluation(hub, model, tmp_path, capsys):
    folder = model()
    (folder / "model.safetensors").write_bytes(b"weights")
    hub.files["adapter_config.json"] = b"of an earlier kind of export"
    write_json(tmp_path / "scores" / "summary.json", SUMMARY)
    assert code("card", folder, tmp_path / "scores", "--hub_model_id", "out") == 0
    assert {*hub.files} == {"README.md", "model.safetensors", "step_jepa.json"}
    assert b"10 of 40" in hub.files["README.md"]
    assert json.loads(hub.files["step_jepa.json"])["chat_template"] == "t.jinja"


def test_what_belongs_to_a_model(tmp_path):
    belongs = {
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "tokenizer.json"),
        *("added_tokens.json", "vocab.json", "tokenizer.model", "additional_chat_templates/rag.jinja", "README.md"),
    }
    others = {
        *(
            "run.json",
            "rows.json",
            "trainer_state.json",
            "training_args.bin",
            "optimizer.pt",
            "notes.txt",
            "report.html",
        ),
        *(
            "token",
            "checkpoint-2/model.safetensors",
            "checkpoint-2/added_tokens.json",
            "runs/events.out",
            ".step-jepa.lock",
            "train.jsonl",
        ),
    }
    for name in belongs | others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {file.relative_to(tmp_path).as_posix() for file in exported_files(tmp_path)} == belongs
