"""A teacher's answers: whoever writes them, what is right is kept, once, as records that prepare reads."""

import json
import re
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import tiny_model
from test_evaluate import FakeModel, solver, vllm  # noqa: F401
from test_evaluate import results as results_of

from step_jepa.data.prepare import PrepareArguments
from step_jepa.data.prepare import run as prepare
from step_jepa.data.reading import read_records
from step_jepa.data.records import context_of
from step_jepa.errors import UserError
from step_jepa.evaluation.chat_server import ChatPrompt, ChatServer
from step_jepa.evaluation.evaluate import EvaluateArguments
from step_jepa.evaluation.evaluate import run as evaluate
from step_jepa.evaluation.generation import Generation, SamplingParameters
from step_jepa.evaluation.sample import SampleArguments, run
from step_jepa.evaluation.traces import Traces
from step_jepa.models.loading import load_generation_config

DRAWN = {"samples": 3, "temperature": 1.5, "max_new_tokens": 40}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def arguments(solver, output, **options) -> SampleArguments:
    given = {"model_name": solver.model, "input_file": solver.test, "batch_size": 4, **DRAWN, **options}
    return SampleArguments(output_file=str(output), **given)


class Handler(BaseHTTPRequestHandler):
    """Answers a request by its seed. Once `server.most` are answered, the server is gone."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        if len(self.server.requests) > self.server.most:
            self.server.socket.close()
            self.close_connection = True
            return
        status, answer = self.server.answer(request)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.fixture
def serve(monkeypatch):
    """Starts a server: what answers a request, and how many it answers; gives its address and the requests."""
    pytest.importorskip("openai")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    servers = []

    def start(answer, most=1000):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.answer, server.most, server.requests = answer, most, []
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", server.requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def completion(text, *, finish_reason="stop", tokens=7, **message):
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text} | message}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def said_again(source, answers_file):
    """What answers a request as the teacher did whose answers the file holds."""
    _, *answers = lines(answers_file)
    problems = list(read_records(source))
    by_seed = {
        ChatPrompt(each["index"], each["sample"], context_of(problems[each["index"]])).seed(42): each
        for each in answers
    }

    def answer(request):
        known = by_seed[request["seed"]]
        reason = "length" if known["truncated"] else "stop"
        return completion(known["prediction"], finish_reason=reason, tokens=known["new_tokens"])

    return answer


def test_the_same_answers_give_the_same_records_whoever_writes_them(solver, tmp_path, serve, capsys):
    run(arguments(solver, tmp_path / "here.jsonl"))
    here = capsys.readouterr().out
    kept, (about, *answers) = lines(tmp_path / "here.jsonl"), lines(tmp_path / "here.answers.jsonl")
    assert about["sampling"] == [1.5, 42]
    assert len(answers) == 18
    assert re.search(rf"kept\W+{len(kept)}, of [1-6] problems", here)
    evaluate(
        EvaluateArguments(
            model_name=solver.model, test_file=solver.test, output_dir=str(tmp_path / "scores"), batch_size=4, **DRAWN
        )
    )
    rows, _ = results_of(tmp_path / "scores")  # one way to write and to judge
    right = [sample["prediction"] for row in rows for sample in row["samples"] if sample["correct"]]
    assert {each["messages"][-1]["content"] for each in kept} == set(right)
    assert 0 < len(set(right)) == len(kept) < 18

    answer = said_again(solver.test, tmp_path / "here.answers.jsonl")
    url, requests = serve(answer, most=7)
    served = {"model_name": "teacher", "engine": "openai", "batch_size": 2}
    with pytest.raises(UserError, match=rf"^{url}/: Connection error: answers so far are kept, the same command goes"):
        run(arguments(solver, tmp_path / "served.jsonl", base_url=url, **served))
    assert not (tmp_path / "served.jsonl").exists()
    so_far = len(lines(tmp_path / "served.answers.jsonl")) - 1
    assert so_far == 7
    path, asked = requests[0]
    assert path == "/v1/chat/completions"
    assert {name: asked[name] for name in ("model", "max_tokens", "temperature")} == {
        "model": "teacher",
        "max_tokens": 40,
        "temperature": 1.5,
    }
    assert asked["messages"] == [{"role": "user", "content": "Is it 2? Well? Well?"}]
    url, requests = serve(answer)  # elsewhere
    run(arguments(solver, tmp_path / "served.jsonl", base_url=url, **served))
    assert len(requests) == 18 - so_far
    assert (tmp_path / "served.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()

    prepare(PrepareArguments(input_file=str(tmp_path / "served.jsonl"), output_file=str(tmp_path / "train.jsonl")))
    first = lines(tmp_path / "train.jsonl")[0]
    assert (first["answer"], first["messages"]) == (kept[0]["answer"], kept[0]["messages"])
    assert first["total_steps"] > 1


def test_a_finished_call_keeps_more_or_less_without_asking_again(solver, tmp_path, monkeypatch):
    output = tmp_path / "traces.jsonl"
    run(arguments(solver, output, samples=2))
    first = output.read_bytes()
    monkeypatch.setattr("step_jepa.evaluation.sample._written", None)  # nobody is asked
    run(arguments(solver, output, samples=2))
    assert output.read_bytes() == first
    with pytest.raises(UserError, match=r"traces\.jsonl exists and holds something else: .*--overwrite"):
        run(arguments(solver, output, samples=2, keep="all"))
    with pytest.raises(UserError, match=r"traces\.jsonl exists, with 6 answers still to be written: .*--overwrite"):
        run(arguments(solver, output))
    with pytest.raises(UserError, match=r"traces\.answers\.jsonl holds answers begun with another max_new_tokens: "):
        run(arguments(solver, output, samples=2, max_new_tokens=9))
    assert output.read_bytes() == first
    run(arguments(solver, output, samples=2, keep="all", overwrite=True))
    assert len(output.read_bytes()) > len(first)
    monkeypatch.undo()
    run(arguments(solver, output, overwrite=True))
    answers = lines(tmp_path / "traces.answers.jsonl")[1:]
    assert len({(each["index"], each["sample"]) for each in answers}) == len(answers) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["traces.answers.jsonl", "traces.jsonl"]


RECORD = {
    "question": "2 + 3?",
    "answer": "5",
    "messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "#### 5"}],
    "template": 4,
}


def looked_at(*texts, truncated=(), record=RECORD, **options) -> Traces:
    traces = Traces(**options)
    for sample, text in enumerate(texts):
        traces.look_at(record, Generation(0, sample, text, sample in truncated, 3))
    return traces


def test_what_is_kept_and_why_the_rest_is_not():
    texts = [
        *("2 + 3 = 5.\n\n#### 5\n", "2 + 3 = 5. #### 5", "2 + 3 = 6.\n\n#### 6", "No idea."),
        *("<think>It is 5", "It is 5.", "Five: 5", "So 5.\n#### 5\n\nAnd 5.\n#### 5"),
    ]
    traces = looked_at(*texts, truncated=[5], per_problem=2)
    assert traces.kept[0] == {
        "messages": [RECORD["messages"][0], {"role": "assistant", "content": "2 + 3 = 5.\n\n#### 5"}],
        "answer": "5",
        "template": 4,
    }
    assert [trace["messages"][-1]["content"] for trace in traces.kept] == ["2 + 3 = 5.\n\n#### 5", "Five: 5"]
    assert traces.counts == Counter(
        {
            "the same text as another one": 1,
            "wrong": 1,
            "without an answer": 1,
            "no record that prepare reads: <think> is never closed (cut off?)": 1,
            "cut off at --max_new_tokens": 1,
            "more than --per_problem of a problem": 1,
        }
    )
    assert traces.solved == 1
    assert looked_at(texts[-1]).counts == {"kept, though they go on after their answer": 1}
    assert len(looked_at(*texts, truncated=[5], keep="all").kept) == 5
    open_problem = {**RECORD, "answer": None}
    assert looked_at("5", record=open_problem).counts == {"of a problem without a known answer": 1}
    assert looked_at("5", record=open_problem, keep="all").kept[0].keys() == {"messages", "template"}
    pattern = {**RECORD, "answer": None, "messages": [RECORD["messages"][0], {"role": "assistant", "content": "(a)+"}]}
    assert len(looked_at("(a)+", "a*", record=pattern, match="regex").kept) == 1


def server(url, **options) -> ChatServer:
    return ChatServer("m", url, SamplingParameters([], **options))


PROMPT = ChatPrompt(0, 0, [{"role": "user", "content": "2 + 3?"}], tools=[{"type": "function", "function": {}}])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_that_the_server_parts_is_put_back(serve, key):
    url, requests = serve(lambda _: completion("It is 5.", **{key: "2 + 3 = 5"}))
    [generation] = server(url).answers([PROMPT], 1)
    assert generation == Generation(0, 0, "<think>\n2 + 3 = 5\n</think>\n\nIt is 5.", truncated=False, new_tokens=7)
    assert requests[0][1]["tools"] == PROMPT.tools
    assert requests[0][1]["temperature"] == 0.0
    [trace] = looked_at(generation.prediction).kept
    assert trace["messages"][-1]["content"] == generation.prediction


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {"error": {"message": "Incorrect API key"}}), "Incorrect API key"),
        ((200, {"detail": "Not Found"}), "no answer of chat completions: check --base_url"),
    ],
)
def test_a_server_that_refuses_is_quoted(serve, answer, words):
    url, requests = serve(lambda _: answer)
    with pytest.raises(UserError, match=rf"^{url}/: .*{words}.*goes on from there$"):
        list(server(url).answers([PROMPT] * 50, 2))
    assert len(requests) < 50  # not all are tried in vain


def test_what_cannot_be_sampled(solver, tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (tmp_path / "open.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "there.jsonl").write_text("mine")
    output = tmp_path / "out.jsonl"
    for options, message in [
        ({"input_file": str(tmp_path / "open.jsonl")}, "no record has a known answer"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "--base_url is read by --engine openai alone"),
        ({"engine": "openai", "dtype": "float16"}, "--dtype is read by --engine hf or vllm alone"),
        ({"engine": "openai", "end_of_turn": "</s>"}, "--end_of_turn: a server frames conversations by itself"),
        ({"per_problem": 0}, "per_problem = 0: give 1 or more"),
        ({"output_file": solver.test}, "would be overwritten: give another --output_file"),
        ({"output_file": str(tmp_path)}, "is a folder: name a file"),
        ({"output_file": str(tmp_path / "there.jsonl")}, r"there\.jsonl exists, with 18 answers still to be written"),
        ({"max_new_tokens": 1}, "no answer can be kept: 18 cut off at --max_new_tokens; all of them lie in"),
    ]:
        with pytest.raises(UserError, match=message):
            run(arguments(solver, options.pop("output_file", output), **options))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"--engine openai needs the package openai .*pip install"):
        run(arguments(solver, tmp_path / "new.jsonl", engine="openai"))
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert not output.exists()


def test_vllm_loads_the_weights_alone(solver, tmp_path, vllm, monkeypatch):
    monkeypatch.setattr("step_jepa.evaluation.sample.setup_model_and_tokenizer", None)
    with pytest.raises(UserError, match="no answer can be kept: 18 cut off"):  # as the stand-in writes them
        run(arguments(solver, tmp_path / "traces.jsonl", engine="vllm", keep="all"))
    made, *batches = FakeModel.calls
    assert made["model"] == solver.model
    assert {each.temperature for _, params in batches for each in params} == {1.5}
    assert {tuple(each.stop_token_ids) for _, params in batches for each in params} == {(258,)}
    assert len(lines(tmp_path / "traces.answers.jsonl")) == 1 + 18


def test_a_generation_config_is_read_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"holds no model, no config\.json"):
        load_generation_config(str(tmp_path))
    tiny_model(eos_token_id=7).config.save_pretrained(tmp_path)  # as older models have it
    assert load_generation_config(str(tmp_path)).eos_token_id == 7
