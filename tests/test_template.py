"""Chat templates of every kind, small and written by hand: what is rendered, labelled, refused and said."""

import copy
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest
from conftest import CHATML, conversation
from test_tokens import labelled, merging, pieces, with_template

from step_jepa import cli
from step_jepa.cli import dispatch
from step_jepa.data.conversations import Conversation, to_conversation
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import IGNORED
from step_jepa.data.raw_record import Rejected
from step_jepa.data.template import (
    CONTENT_TO_PARTS,
    PLAIN_TEMPLATE,
    TemplateOptions,
    check_same_template,
    settle_template,
    template_identity,
)
from step_jepa.data.template_notes import prompt_difference, say_what_is_special
from step_jepa.data.tokens import encode, encode_rows
from step_jepa.errors import UserError, say_once
from step_jepa.options import options_of
from step_jepa.run_files.names import OPTIONS_FILE
from step_jepa.run_files.writing import write_json
from step_jepa.training.saved_options import view_options

# Commands that read no conversation, or have others read it by their own options; benchmark only takes the time
WITHOUT_CONVERSATIONS = {"prepare", "experiment", "ab", "report", "card", "recipes", "completion", "demo", "benchmark"}
LINES = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
THINKING = CHATML.replace("m['content']", "('<think>' if m['role'] == 'assistant' else '') + m['content']").replace(
    "assistant\n'", "assistant\n' + ('' if enable_thinking | default(true) else '<think>')"
)
OWN_TEMPLATE = (
    (Path(__file__).parents[1] / "docs/chat-templates.md").read_text().partition("```jinja\n")[2].partition("\n```")[0]
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
WITH_TOOLS = "{{ tools | tojson if tools else '' }}" + CHATML.replace(
    "m['content'] +", "m['content'] + (('<|start|>' + (m['tool_calls'] | tojson)) if m['tool_calls'] else '') +"
)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    say_once.cache_clear()


def settled(tokenizer, template, **options):
    other = with_template(tokenizer, template)
    settle_template(other, TemplateOptions(**options))
    return other


def encoded(tokenizer, record, **options):
    return encode(tokenizer, record["messages"], record["steps"], "example 0", Encoding(**options))


def label_texts(tokenizer, example):
    return [tokenizer.decode([label]) for label in example.labels if label != IGNORED]


def with_system(record):
    return record | {"messages": [{"role": "system", "content": "Be brief."}, *record["messages"]]}


# Where contents begin and end


def test_a_space_that_the_header_ends_with_may_belong_to_the_first_token(tokenizer):
    other = with_template(merging(tokenizer, ("\u0120", "a")), CHATML.replace("m['role'] + '\n'", "m['role'] + ': '"))
    example = encoded(other, conversation("ab", "c"))
    assert [pieces(other, example, span) for span in example.steps] == [[" a", "b", "\n\n"], ["c"]]
    assert label_texts(other, example) == [" a", "b", "\n\n", "c", "<|end|>"]
    assert other.decode(example.input_ids[: example.steps[0][0]]).endswith("assistant:")
    assert example.text[slice(*example.chars[0])] == "ab\n\n"


def test_a_template_without_an_end_of_turn_is_given_one(tokenizer):
    with pytest.raises(UserError, match=r"example 0: .* no end-of-turn .* give --end_of_turn '<\|end\|>'"):
        encoded(settled(tokenizer, LINES), conversation("a"))
    other = settled(tokenizer, LINES, end_of_turn="<|end|>")
    example = encoded(other, conversation("a"))
    assert example.text == "user: How many?\nassistant: a\n<|end|>"
    assert label_texts(other, example) == ["a", "\n", "<|end|>"]
    assert other.apply_chat_template(conversation("a")["messages"][:1], tokenize=False) == "user: How many?\n"
    before = other.chat_template
    settle_template(other, TemplateOptions(end_of_turn="<|end|>"))
    assert other.chat_template == before


@pytest.mark.parametrize(
    ("token", "message"),
    [("<|start|>", r"ends turns with <\|end\|>: leave it out"), ("<|x|>", r"no token .* such as <\|end\|>")],
)
def test_an_end_of_turn_that_cannot_be(tokenizer, token, message):
    with pytest.raises(UserError, match=message):
        settled(tokenizer, CHATML, end_of_turn=token)


def test_an_added_token_that_is_not_special_ends_no_turn(tokenizer):
    other = with_template(tokenizer, LINES.replace("'\n'", "'\n~'"))
    other.add_tokens(["\n", "~"])
    with pytest.raises(UserError, match="give --end_of_turn '~'"):
        encoded(other, conversation("a"))
    settle_template(other, TemplateOptions(end_of_turn="~"))
    assert label_texts(other, encoded(other, conversation("a"))) == ["a", "\n", "~"]


# What is written into the template


def test_a_system_turn_that_the_template_refuses_goes_to_the_user(tokenizer, caplog):
    record = with_system(conversation("a"))
    with pytest.raises(UserError, match="no system role"):
        encoded(with_template(tokenizer, NO_SYSTEM), record)
    other = settled(tokenizer, NO_SYSTEM)
    example = encoded(other, record)
    assert example.text == "<|start|>user\nBe brief.\n\nHow many?<|end|>\n<|start|>assistant\na<|end|>\n"
    assert "".join(pieces(other, example, example.user)) == "How many?"
    for _ in range(2):
        say_what_is_special(other, [to_conversation(record)])
    assert [entry.getMessage() for entry in caplog.records] == [
        "the chat template takes no system turn: its text is put before the first user turn's"
    ]
    assert settled(tokenizer, CHATML).chat_template == CHATML


def test_a_system_turn_that_the_template_leaves_out_is_said(tokenizer, caplog):
    other = settled(tokenizer, CHATML.replace("messages %}", "messages if m['role'] != 'system' %}"))
    say_what_is_special(other, [to_conversation(with_system(conversation("a")))])
    assert "leaves out the system turn" in caplog.text


@pytest.mark.parametrize("renders", [False, True])
def test_tools_and_calls_that_the_template_leaves_out_are_said(renders, tokenizer, caplog):
    added = "{{ tools }}{% for m in messages %}{{ m.tool_calls }}{% endfor %}" if renders else ""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    question, answer = conversation("a")["messages"]
    calling = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    record = {"messages": [question, *calling, answer], "steps": ["a"], "tools": tools}
    say_what_is_special(
        settled(tokenizer, added + CHATML), [to_conversation(conversation("a")), to_conversation(record)]
    )
    said = [what for what in ("`tools`", "tool calls") if f"leaves out {what}, which is not trained" in caplog.text]
    assert said == ([] if renders else ["`tools`", "tool calls"])


def test_contents_in_parts(tokenizer):
    """What models that see pictures want, also beside a template that refuses a system turn."""
    parts = CHATML.replace(
        "m['content']", "m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join"
    )
    record = with_system(conversation("a", "b"))
    for template in (parts, NO_SYSTEM.removesuffix(CHATML) + parts):
        other = settled(tokenizer, template)
        assert CONTENT_TO_PARTS in other.chat_template
        assert label_texts(other, encoded(other, record)) == ["a", "\n\n", "b", "<|end|>"]
    assert encoded(settled(tokenizer, parts), record) == encoded(settled(tokenizer, CHATML), record)
    assert CONTENT_TO_PARTS not in settled(tokenizer, CHATML).chat_template
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "How?"}]}]
    assert "How?" in settled(tokenizer, parts).apply_chat_template(in_parts, tokenize=False)


def test_a_template_of_ones_own_mends_one_that_rewrites(tokenizer, tmp_path):
    """Falcon's turns blank lines into line breaks."""
    rewrites = CHATML.replace("m['content']", "m['content'].replace('\n\n', '\n')")
    record = conversation("a", "b")
    with pytest.raises(UserError, match=r"rewrites the content of the assistant turn: .*another --chat_template"):
        encoded(settled(tokenizer, rewrites), record)
    file = tmp_path / "own.jinja"
    file.write_text(OWN_TEMPLATE)
    other = settled(tokenizer, rewrites, chat_template=str(file))
    assert label_texts(other, encoded(other, record)) == ["a", "\n\n", "b", other.eos_token]


def test_arguments_are_defaults_of_the_saved_template(tokenizer, tmp_path):
    record = conversation("a")
    difference = "answers are trained behind '<think>' where other engines prompt with ''"
    remedy = ": --chat_template_kwargs '{\"enable_thinking\": false}' makes them equal"
    assert prompt_difference(settled(tokenizer, THINKING), to_conversation(record)) == difference + remedy
    other = settled(tokenizer, THINKING, chat_template_kwargs='{"enable_thinking": false}')
    assert prompt_difference(other, to_conversation(record)) is None
    prompt = other.apply_chat_template(record["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("assistant\n<think>")
    arguments = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
    assert other.apply_chat_template(record["messages"][:1], **arguments).endswith("assistant\n")
    assert encoded(other, record) == encoded(settled(tokenizer, THINKING), record)


@pytest.mark.parametrize("arguments", ["enable_thinking", "[1]", '{"a b": 1}'])
def test_arguments_that_are_none(tokenizer, arguments):
    with pytest.raises(UserError, match="--chat_template_kwargs: give JSON"):
        settled(tokenizer, CHATML, chat_template_kwargs=arguments)


def test_the_date_is_kept(tokenizer, tmp_path, caplog):
    other = settled(tokenizer, DATED, chat_template_date="2025-01-02")
    assert encoded(other, conversation("a")).text.startswith("02 Jan 2025<|start|>user")
    assert "writes the date: 2025-01-02 is kept" in caplog.text
    assert date.today().strftime("%d %b %Y") in settled(tokenizer, DATED).chat_template
    other.save_pretrained(tmp_path)
    check_same_template(other, tmp_path)
    with pytest.raises(UserError, match="begun with another chat template: give its"):
        check_same_template(settled(tokenizer, DATED, chat_template_date="2025-01-03"), tmp_path)
    with pytest.raises(UserError, match="give a date such as"):
        settled(tokenizer, DATED, chat_template_date="soon")


def test_a_template_from_a_file(tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(NO_SYSTEM)
    options = TemplateOptions(chat_template=str(file))
    before = template_identity(options)
    assert settled(tokenizer, CHATML, chat_template=str(file)).chat_template.endswith(NO_SYSTEM)
    file.write_text(LINES)
    assert template_identity(options) != before
    write_json(tmp_path / OPTIONS_FILE, {"chat_template": "gone.jinja", "end_of_turn": "~", "lbd": 1})
    assert view_options(tmp_path) == {"chat_template": str(tmp_path / "chat_template.jinja"), "end_of_turn": "~"}
    with pytest.raises(UserError, match="contradict"):
        settle_template(tokenizer, options, plain=True)
    with pytest.raises(UserError, match=r"none\.jinja cannot be read"):
        settled(tokenizer, CHATML, chat_template=str(tmp_path / "none.jinja"))
    file.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(UserError, match=r"line 2 of the chat template: unexpected '\}'"):
        settled(tokenizer, CHATML, chat_template=str(file), chat_template_kwargs={"a": 1})


# Conversations


def two_answers(tokenizer, template=CHATML, first="x", **options):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": first}]
    record = conversation("a", "b", question="r")
    example = encoded(with_template(tokenizer, template), record | {"messages": turns + record["messages"]}, **options)
    return label_texts(tokenizer, example), labelled(example)


def test_every_answer_can_be_trained(tokenizer):
    assert two_answers(tokenizer)[0] == ["a", "\n\n", "b", "<|end|>"]
    texts, places = two_answers(tokenizer, train_turns="all")
    assert texts == ["x", "<|end|>", "a", "\n\n", "b", "<|end|>"]
    assert places == [20, 21, 43, 44, 45, 46]
    assert two_answers(tokenizer, train_turns="all", unlabelled_end=True)[0] == ["x", "a", "\n\n", "b"]


def test_an_earlier_answer_that_cannot_be_trained(tokenizer):
    with pytest.raises(UserError, match="no end-of-turn"):  # the next one is not its own
        two_answers(tokenizer, PLAIN_TEMPLATE, train_turns="all")
    strips = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    thought = "<think>\nHm.\n</think>\n\nx"
    assert two_answers(tokenizer, strips, thought)[0] == ["a", "\n\n", "b", "<|end|>"]
    with pytest.raises(UserError, match="rewrites the content of the assistant turn"):
        two_answers(tokenizer, strips, thought, train_turns="all")


def test_tools_and_calls(tokenizer):
    record = conversation("a")
    record["messages"][-1]["tool_calls"] = [{"name": "f"}]
    other = with_template(tokenizer, WITH_TOOLS)
    (refused,) = encode_rows(other, [to_conversation(record | {"tools": [{"name": "<|end|>"}]})])
    assert str(refused) == "`tools` holds the special token <|end|>: take it out"
    (example,) = encode_rows(other, [to_conversation(record | {"tools": '[{"name": "f"}]'})])
    assert example.text.startswith('[{"name": "f"}]<|start|>user')
    assert "".join(label_texts(other, example)) == 'a<|start|>[{"name": "f"}]<|end|>'
    assert example.steps == [(example.steps[0][0], example.steps[0][0] + 1)]
    (plain,) = encode_rows(other, [to_conversation(record | {"tools": None})])
    assert plain.text.startswith("<|start|>user")
    with pytest.raises(Rejected, match=r"^tools is neither a list nor the JSON of one"):
        to_conversation(record | {"tools": "f"})


def test_calls_are_trained_whole_or_not_at_all(tokenizer):
    call, tool = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "3"}
    question, answer = conversation("a")["messages"]
    record = to_conversation({"messages": [question, call, tool, {"role": "assistant", "content": ""}, answer]})
    for template, labels in ((CHATML, "a<|end|>"), (WITH_TOOLS, '<|start|>[{"name": "f"}]<|end|>a<|end|>')):
        other = with_template(tokenizer, template)
        (example,) = encode_rows(other, [record], Encoding(train_turns="all"))
        assert "".join(label_texts(other, example)) == labels
    last = to_conversation({"messages": [question, answer | {"tool_calls": [{"name": "f"}]}]})
    (refused,) = encode_rows(with_template(tokenizer, CHATML), [last])
    assert str(refused).startswith("the chat template leaves out the tool calls of the last turn: give another")


def test_contents_of_other_kinds():
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    turns = [{"role": "user", "content": parts, "tool_calls": None}, call, {"role": "assistant", "content": "a\n\nb"}]
    assert to_conversation({"messages": turns}) == Conversation(
        [{"role": "user", "content": "How many?"}, call | {"content": ""}, {"role": "assistant", "content": "a\n\nb"}],
        ["a", "b"],
    )
    image = [{"role": "user", "content": [{"type": "image"}]}, turns[-1]]
    with pytest.raises(Rejected, match=r"^messages, turn 1, holds a part that is not text"):
        to_conversation({"messages": image})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_of_the_answer_is_refused_under_any_key(key):
    record = conversation("a")
    record["messages"][-1][key] = "Hm."
    with pytest.raises(Rejected, match=f"^{key} would be read but not trained: run step-jepa prepare"):
        to_conversation(record)
    record["messages"].append({"role": "assistant", "content": "b"})
    assert to_conversation(record | {"steps": None}).steps == ["b"]


def test_records_from_python_are_read_as_those_of_files():
    """A data frame has NaN where a cell is empty; steps are texts; ShareGPT's names of roles."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a\n\nb"}]
    assert to_conversation({"messages": turns, "steps": float("nan"), "tools": float("nan")}) == Conversation(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\n\nb"}], ["a", "b"]
    )
    for steps in ([1, 2], "ab"):
        with pytest.raises(Rejected, match=r"^steps is not a list of texts"):
            to_conversation({"messages": turns, "steps": steps})


# Frames


def test_many_rows_of_a_shape_are_rendered_in_one_call(tokenizer):
    other = copy.deepcopy(tokenizer)
    rows = [Conversation(**conversation(f"{row}", "c", question=f"{row}?")) for row in range(50)]
    rows += [Conversation(**conversation("<think>\na", "b\n</think>", "c"))]
    calls = []
    render = other.apply_chat_template
    other.apply_chat_template = lambda *args, **kwargs: calls.append(args) or render(*args, **kwargs)
    examples = encode_rows(other, rows)
    assert len(calls) == 3  # all of them, and a frame for each shape
    assert examples == [encode(tokenizer, row.messages, row.steps) for row in rows]


def test_a_row_that_does_not_fit_the_frame_is_looked_at_by_itself(tokenizer):
    trims = with_template(tokenizer, CHATML.replace("m['content']", "m['content'].strip()"))
    rows = [Conversation(**conversation("a", question=question)) for question in ("q", " q")]
    fits, trimmed = encode_rows(trims, rows)
    assert (fits.text, fits.labels, fits.steps) == (trimmed.text, trimmed.labels, trimmed.steps)
    assert (fits.user, trimmed.user) == ((6, 7), None)
    shouts = with_template(tokenizer, "{{ 'Long. ' if messages[0]['content'] | length > 20 }}" + CHATML)
    short, long = encode_rows(shouts, [rows[0], Conversation(**conversation("a", question="q" * 21))])
    assert (short.text[:5], long.text[:5], long.user) == ("<|sta", "Long.", None)
    assert label_texts(shouts, long) == ["a", "<|end|>"]


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in WITHOUT_CONVERSATIONS])
def test_every_command_that_frames_conversations_can_be_told_how(command):
    options = options_of(dispatch.dataclasses_of(cli.COMMANDS[command]))
    assert {each.name for each in fields(TemplateOptions)} <= {each.name for each, _ in options}


def test_what_is_asked_for_goes_before_the_runs_own(tmp_path):
    (tmp_path / "step_jepa.json").write_text('{"chat_template_date": "2026-01-02", "end_of_turn": "<|end|>"}')
    assert view_options(tmp_path, TemplateOptions()) == view_options(tmp_path)
    asked = view_options(tmp_path, TemplateOptions(chat_template_date="2026-03-04"))
    assert asked == {"chat_template_date": "2026-03-04", "end_of_turn": "<|end|>"}
