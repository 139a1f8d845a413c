"""The two-pass oracle: literal spans and masks, isolation, and the equivalences that make it an oracle."""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Trainer,
    TrainingArguments,
    set_seed,
)

from step_jepa import standalone
from step_jepa.standalone import Example, StepJEPATrainer, add_predictors, collate, encode, second_rows, views

ROWS = 270  # more embedding rows than the tokenizer has tokens
TINY = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY),
    "mistral": MistralConfig(**TINY, sliding_window=3),
    "gemma3": Gemma3TextConfig(**TINY, sliding_window=3, layer_types=["sliding_attention", "full_attention"]),
}
# Two pairs of different lengths, and a row with one step, which trains the LM term only.
EXAMPLES = [
    Example([5, 6, 7, 8, 9, 10, 11, 12], [-100, -100, 7, 8, 9, 10, 11, 12], [(2, 4), (4, 6), (6, 8)]),
    Example(list(range(20, 33)), [-100] * 3 + list(range(23, 33)), [(3, 8), (8, 13)]),
    Example([40, 41, 42, 43, 44], [-100, -100, 42, 43, 44], [(2, 5)]),
    Example(list(range(50, 60)), [-100] + list(range(51, 60)), [(1, 5), (5, 9)]),
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(kind="llama", predictors=None, attention="sdpa", **changes):
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), **changes})
    set_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for weight in model.parameters():  # the default init is so small that a lost window would hardly show
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    if predictors is not None:
        add_predictors(model, predictors, seed=3)
    return model


def tiny_tokenizer(template=TEMPLATE):
    """One token per byte, but ".\\n\\n" and " b" are single ones, as with Llama 3 and Qwen 3. It would add a BOS."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, ".\u010a", ".\u010a\u010a", "\u0120b"])}
    merges = [(".", "\u010a"), (".\u010a", "\u010a"), ("\u0120", "b")]
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    bos = ("<|im_start|>", backend.token_to_id("<|im_start|>"))
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer.chat_template = template
    return tokenizer


def conversation(answer, question="Q"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# ---- boundaries


def test_spans_and_labels_by_hand():
    tokenizer = tiny_tokenizer()
    example = encode(tokenizer, conversation("a.\n\nb."), ["a.", "b."], 100)
    tokens = tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens[:10] == ["<|im_start|>", *"user", "\u010a", "Q", "<|im_end|>", "\u010a", "<|im_start|>"]
    assert tokens[20:] == ["a", ".\u010a\u010a", "b", ".", "<|im_end|>", "\u010a"]
    assert example.spans == [(20, 22), (22, 24)]
    assert example.labels == [-100] * 20 + example.input_ids[20:25] + [-100]


def test_the_answer_is_found_where_it_stands_and_not_where_its_words_occur():
    example = encode(tiny_tokenizer(), conversation("user", "user assistant placeholder"), ["user"], 100)
    assert example.spans == [(45, 49)]


def test_a_token_belongs_to_the_step_that_it_spells():
    assert encode(tiny_tokenizer(), conversation("a. b."), ["a.", "b."], 100).spans == [(20, 22), (22, 24)]


def test_multi_byte_characters_share_offsets():
    example = encode(tiny_tokenizer(), conversation("\u00e9\u20ac\n\u00e9"), ["\u00e9\u20ac", "\u00e9"], 100)
    assert example.spans == [(20, 26), (26, 28)]


@pytest.mark.parametrize(
    ("max_length", "spans"), [(26, [(20, 22), (22, 24)]), (24, [(20, 22), (22, 24)]), (23, [(20, 22)])]
)
def test_long_rows_keep_whole_steps(max_length, spans):
    example = encode(tiny_tokenizer(), conversation("a.\n\nb."), ["a.", "b."], max_length)
    assert example.spans == spans
    assert len(example.input_ids) == (26 if max_length == 26 else spans[-1][1])
    assert example.labels.count(-100) == 20 + (max_length == 26)  # the cut rows end with their last labelled step
    assert encode(tiny_tokenizer(), conversation("a.\n\nb."), ["a.", "b."], 21) is None


@pytest.mark.parametrize(
    ("steps", "span", "target"),
    [
        (["a", "bb"], (22, 24), True),
        (["a", "b"], (22, 23), False),  # one token, whose state read alone is that of any other
        (["a", "#### 3"], (22, 28), False),
        (["a", "so \\boxed{3}"], (22, 34), False),
        (["a", "##### 3"], (22, 29), True),
        (["a", "3 ####"], (22, 28), True),
        (["a", "#### 3", "c"], (22, 29), True),  # only the last step can be the answer step,
        (["a", "#### 3", "c" * 99], (22, 29), True),  # even where the row is cut before it
    ],
)
def test_a_second_step_that_is_the_answer_or_one_token_is_no_target(steps, span, target):
    messages = conversation("\n".join(steps))
    example = encode(tiny_tokenizer(), messages, steps, 60)
    assert example.spans[1] == span  # the step itself stays: only the pair goes
    assert example.second_step == (span if target else (0, 0))
    assert collate([example], 0)["second_step"].tolist() == [list(example.second_step)]
    kept = encode(tiny_tokenizer(), messages, steps, 60, skip_answer_step=False).second_step
    assert kept == (span if len(steps[1]) > 1 else (0, 0))


def test_thinking_that_the_template_writes_anew():
    qwen_like = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set parts = m.content.split('</think>') %}<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if "
        "parts|length > 1 else '' }}\n</think>\n\n{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}"
    )
    answer = "<think>\na\n\nb\n</think>\n\nc"
    example = encode(tiny_tokenizer(qwen_like), conversation(answer), ["<think>\na", "b\n</think>", "c"], 100)
    assert example.spans == [(20, 31), (31, 43), (43, 44)]
    assert encode(tiny_tokenizer(qwen_like), conversation("c"), ["c"], 100).spans == [(39, 40)]  # behind empty thinking


@pytest.mark.parametrize(
    ("answer", "steps", "template", "message"),
    [
        (" a", ["a"], TEMPLATE.replace("{{ m.content }}", "{{ m.content | trim }}"), "rewrites the answer"),
        ("\n\na", ["a"], TEMPLATE.replace("}}\n{{", "}}.{{"), "header's end"),
        ("a", ["a"], TEMPLATE.replace("<|im_end|>", "\n"), "no special token"),
        ("a", ["a"], None, "chat template"),
        ("a", ["a"], "{{ raise_exception('roles') }}", "refuses"),
        ("a b", ["a", "c"], TEMPLATE, "step 2 does not follow"),
        ("a x b", ["a", "b"], TEMPLATE, "step 2 does not follow"),
        ("a x", ["a"], TEMPLATE, "after its last step"),
    ],
)
def test_encode_refuses_to_guess(answer, steps, template, message):
    with pytest.raises(ValueError, match=message):
        encode(tiny_tokenizer(template), conversation(answer), steps, 100)


def test_offsets_with_gaps_are_refused():
    offsets = [(0, 4), (4, 6), (7, 9)]  # " b" trimmed to "b"
    with pytest.raises(ValueError, match="leave out ' b\\.'"):
        standalone.content_tokens("head" + "a. b.", offsets, 4, 9)


def test_padding_never_takes_a_label_away():
    example = encode(tiny_tokenizer(), conversation("a"), ["a"], 100)
    batch = collate([example, EXAMPLES[0]], pad_id=example.input_ids[-2])  # pad = eos = <|im_end|>
    assert batch["labels"][0].tolist() == example.labels
    assert batch["labels"][1, 8:].eq(-100).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(example.input_ids), 8]
    assert batch["second_step"].tolist() == [[0, 0], [4, 6]]


# ---- the second pass


def test_how_large_masks_are():
    short, long = Example([1] * 20, [], [(5, 9), (9, 20)]), Example([1] * 300, [], [(5, 9), (9, 30), (30, 300)])
    assert standalone.mask_cells([short, long], batch_size=1) == 30**2  # pass 1 has no padding
    assert standalone.mask_cells([short, long], batch_size=2) == 2 * 300**2


def test_mask_positions_and_reads_by_hand():
    rows = second_rows(collate([EXAMPLES[0], EXAMPLES[2], EXAMPLES[3]], 0), vocabulary=ROWS, predictors=1)
    assert rows["input_ids"].tolist() == [
        [5, 6, 7, 8, ROWS, 9, 10, 0, 0, 0],
        [50, 51, 52, 53, 54, ROWS, 55, 56, 57, 58],
    ]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 0, 0], [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]]
    assert rows["read"].tolist() == [[4, 6], [5, 9]]
    drawn = ["".join("x" if seen else "." for seen in row) for row in rows["sees"][0].tolist()]
    assert drawn == [
        "x.........",
        "xx........",
        "xxx.......",
        "xxxx......",
        "xxxxx.....",  # P sees the prompt, step 1 and itself
        ".....x....",  # step 2 sees nothing but itself
        ".....xx...",
        ".......x..",  # padding sees itself
        "........x.",
        ".........x",
    ]


@pytest.mark.parametrize("predictors", [0, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_second_pass_is_two_separate_readings(kind, attention, predictors):
    model = tiny_model(kind, predictors, attention)
    with torch.no_grad():
        predicted, target = views(model, collate(EXAMPLES, 0))
        for p, example in enumerate([EXAMPLES[0], EXAMPLES[1], EXAMPLES[3]]):
            start, end = example.spans[1]
            prefix = model.get_input_embeddings()(torch.tensor([example.input_ids[:start]]))
            if predictors:
                scale = 32**0.5 if kind == "gemma3" else 1.0
                prefix = torch.cat([prefix, scale * model.predictor_tokens.weight[None]], dim=1)
            alone = torch.tensor([example.input_ids[start:end]])
            positions = torch.arange(start, end)[None]
            expected_predicted = model.model(inputs_embeds=prefix).last_hidden_state[0, -1]
            expected_target = model.model(alone, position_ids=positions).last_hidden_state[0, -1]
            torch.testing.assert_close(predicted[p], expected_predicted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(target[p], expected_target, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolation_to_the_last_bit(attention):
    model, batch = tiny_model("llama", 1, attention), collate(EXAMPLES[:2], 0)
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    for row, (start, end) in enumerate(batch["second_step"].tolist()):
        changed["input_ids"][row, :start] += 100
        changed["input_ids"][row, end:] += 100
    with torch.no_grad():
        (predicted, target), (other_predicted, other_target) = views(model, batch), views(model, changed)
    assert torch.equal(target, other_target)
    assert not torch.allclose(predicted, other_predicted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"_attn_implementation": "flash_attention_2"}, "sdpa"), ({"layer_types": ["chunked_attention"]}, "chunked")],
)
def test_attention_that_cannot_isolate_is_refused(changes, message):
    model = tiny_model("qwen3", 1)
    for name, value in changes.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        views(model, collate(EXAMPLES, 0))


@pytest.mark.parametrize(("loss", "expected"), [("cosine", [0.2, 2.0]), ("l2", [2**0.5, 2.0]), ("mse", [1.0, 2.0])])
def test_distances_by_hand(loss, expected):
    first, second = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([[2.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(standalone.distances(first, second, loss), torch.tensor(expected))


# ---- predictors


@pytest.mark.parametrize("tied", [True, False])
def test_predictors_change_no_word_and_lie_beside_the_model(tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    batch = collate(EXAMPLES, 0)
    with torch.no_grad():
        before = standalone.language_model_pass(model, batch)
        add_predictors(model, 2, seed=3)
        add_predictors(model, 2, seed=4)  # already there: kept
        after = standalone.language_model_pass(model, batch)
    torch.testing.assert_close(before, after)
    assert standalone.sizes(model) == (ROWS, 2)
    with pytest.raises(ValueError, match="has 2"):
        add_predictors(model, 1)

    rows = model.predictor_tokens.weight.detach().clone()
    model.save_pretrained(tmp_path)
    standalone.save_predictors(model, str(tmp_path))
    assert torch.equal(load_file(tmp_path / "predictors.safetensors")["predictors"], rows)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert loaded.get_input_embeddings().weight.shape == loaded.get_output_embeddings().weight.shape == (ROWS, 32)
    with torch.no_grad():
        torch.testing.assert_close(standalone.language_model_pass(loaded, batch), before)


# ---- the trainer


def train(trainer_class, model, folder, examples=EXAMPLES, **options):
    ours = {name: options.pop(name) for name in ("lbd", "gamma", "loss") if name in options}
    settings = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "logging_steps": 1}
    settings |= {"remove_unused_columns": False, "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    args = TrainingArguments(output_dir=str(folder), **{**settings, **options})

    def collator(examples):
        batch = collate(examples, pad_id=0)
        return batch if trainer_class is StepJEPATrainer else {k: v for k, v in batch.items() if k != "second_step"}

    trainer = trainer_class(model=model, args=args, train_dataset=examples, data_collator=collator, **ours)
    trainer.train()
    return trainer


def test_lbd_0_is_trainer_bit_for_bit(tmp_path):
    options = {"gradient_accumulation_steps": 2}
    plain = train(Trainer, tiny_model(), tmp_path, **options)
    ours = train(StepJEPATrainer, tiny_model(), tmp_path, lbd=0.0, **options)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, ours.model.state_dict()[name]), name
    assert [log.get("loss") for log in plain.state.log_history] == [log.get("loss") for log in ours.state.log_history]


@pytest.mark.parametrize("loss", standalone.LOSSES)
def test_1_x_4_is_4_x_1(loss, tmp_path):
    # SGD, so that a wrong scale of the gradient shows (Adam's steps hardly depend on it); lbd large enough to matter.
    common = {"lbd": 0.5, "gamma": 0.7, "loss": loss, "optim": "sgd", "max_grad_norm": 1.0, "max_steps": 2}
    model = tiny_model("llama", 1)
    model.accepts_loss_kwargs = False  # Trainer would divide by the number of micro-batches, were it not told
    runs = [
        train(StepJEPATrainer, copy.deepcopy(model), tmp_path, per_device_train_batch_size=size,
              gradient_accumulation_steps=4 // size, **common)
        for size in (1, 4)
    ]  # fmt: skip
    for accumulated, whole in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(accumulated, whole, atol=1e-5, rtol=1e-5)
    for accumulated, whole in zip(*(run.state.log_history[:2] for run in runs), strict=True):
        for name in ("loss", "lm_loss", "jepa_loss", "grad_norm"):
            assert accumulated[name] == pytest.approx(whole[name], rel=1e-4), name
        assert whole["loss"] == pytest.approx(0.7 * whole["lm_loss"] + 0.5 * whole["jepa_loss"], rel=1e-5)


PROCESS = """
import json, os, sys
sys.path.insert(0, {tests!r})
from test_standalone import EXAMPLES, StepJEPATrainer, tiny_model, train
first, second, unpaired, third = EXAMPLES
examples = [first, unpaired, second, third, unpaired, unpaired]
trainer = train(StepJEPATrainer, tiny_model(predictors=1), {out!r}, examples,
    lbd=0.5, train_sampling_strategy="sequential", per_device_train_batch_size={size}, optim="sgd")
if trainer.is_world_process_zero():
    json.dump(trainer.state.log_history, open({out!r} + ".json", "w"))
os._exit(0)  # gloo now and then aborts a process that ends the usual way
"""


def test_two_processes_are_one_where_a_rank_has_no_pair(tmp_path):
    logs = []
    for size, launcher in (2, []), (1, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        script, out = tmp_path / f"run{size}.py", tmp_path / f"out{size}"
        script.write_text(PROCESS.format(tests=str(Path(__file__).parent), out=str(out), size=size))
        subprocess.run([sys.executable, *launcher, str(script)], check=True, capture_output=True, timeout=120)
        logs.append(json.loads(out.with_suffix(".json").read_text()))
    for name in ("loss", "lm_loss", "jepa_loss", "grad_norm"):
        expected, logged = ([entry[name] for entry in log if name in entry] for log in logs)
        assert logged == pytest.approx(expected, rel=1e-5), name


def test_logged_terms_are_the_means_and_evaluation_counts_for_itself(tmp_path):
    model = tiny_model("llama", 1)
    still = {"learning_rate": 0.0, "per_device_train_batch_size": 4, "logging_steps": 3}
    trainer = train(StepJEPATrainer, model, tmp_path, lbd=2.0, **still)
    with torch.no_grad():
        lm_sum, jepa_sum = standalone.losses(model.eval(), collate(EXAMPLES, 0))
    logged = trainer.state.log_history[0]
    labelled = 6 + 10 + 3 + 9
    assert logged["lm_loss"] == pytest.approx(lm_sum.item() / labelled, rel=1e-5)
    assert logged["jepa_loss"] == pytest.approx(jepa_sum.item() / 3, rel=1e-5)
    evaluated = trainer.evaluate(EXAMPLES[:1])["eval_loss"]
    with torch.no_grad():
        lm_sum, jepa_sum = standalone.losses(model.eval(), collate(EXAMPLES[:1], 0))
    assert evaluated == pytest.approx(lm_sum.item() / 6 + 2 * jepa_sum.item(), rel=1e-5)


def test_gradients_reach_predictors_and_both_views():
    model = tiny_model("llama", 2, tie_word_embeddings=False)
    views(model, collate(EXAMPLES[:1], 0))[0].sum().backward()
    touched = model.get_input_embeddings().weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == [5, 6, 7, 8]
    assert (model.predictor_tokens.weight.grad.abs().sum(dim=1) > 0).tolist() == [True, True]
    model.zero_grad()
    views(model, collate(EXAMPLES[:1], 0))[1].sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [9, 10]
    assert not model.predictor_tokens.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lbd": -1.0}, "lbd"), ({"lbd": 0.1}, "add_predictors"), ({"remove_unused_columns": True}, "remove_unused")],
)
def test_trainer_refusals(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(StepJEPATrainer, tiny_model(), tmp_path, **options)


# ---- the file and the command


def test_file_stands_alone():
    tree = ast.parse(Path(standalone.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(getattr(node, "level", 0) for node in imports)
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in imports
        for alias in node.names
    }
    assert names - set(sys.stdlib_module_names) == {"torch", "transformers", "safetensors"}


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {"messages": conversation("a.\n\nb.\n\nc."), "steps": ["a.", "b.", "c."]},
        {"messages": conversation("d"), "steps": ["d"]},
        {"messages": conversation("e", "Q" * 90), "steps": ["e"]},
        {"messages": conversation("f\n#### 6"), "steps": ["f", "#### 6"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "broken.jsonl").write_text(json.dumps(rows[0]) + "\n{\n")
    (tmp_path / "other.jsonl").write_text('\n{"text": "a"}\n')
    (tmp_path / "single.jsonl").write_text(json.dumps(rows[1]) + "\n")
    (tmp_path / "answers.jsonl").write_text(json.dumps(rows[3]) + "\n")
    return tmp_path


def command(folder, *flags, file="train.jsonl"):
    fixed = ["--train_file", folder / file, "--model_name", folder / "model", "--output_dir", folder / "out"]
    return standalone.main([str(part) for part in [*fixed, "--max_length", 60, "--max_steps", 2, *flags]])


def test_main_end_to_end(folder, capsys):
    assert command(folder, "--predictors", "2", "--loss", "mse", "--learning_rate", "1e-3") == 0
    printed = capsys.readouterr().out
    assert "1 rows with a pair, 2 without (LM term only), 1 dropped" in printed
    assert "jepa_loss" in printed
    assert AutoModelForCausalLM.from_pretrained(folder / "out").config.vocab_size == ROWS
    assert load_file(folder / "out" / "predictors.safetensors")["predictors"].shape == (2, 32)
    assert command(folder) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_main_pairs_the_answer_where_it_is_told_to(folder, capsys):
    assert command(folder, "--no_skip_answer_step", file="answers.jsonl") == 0
    assert "1 rows with a pair, 0 without" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "file", "message"),
    [
        (["--lora"], "train.jsonl", "step-jepa train --approach adapted"),
        (["--pairs", "all"], "train.jsonl", "step-jepa train --approach adapted"),
        (["--loss", "infonce"], "train.jsonl", "step-jepa train --approach adapted"),
        (["--lbd", "nan"], "train.jsonl", "lbd"),
        (["--lbd", "x"], "train.jsonl", "--lbd"),
        (["--predictors", "-1"], "train.jsonl", "-1 predictors"),
        ([], "missing.jsonl", "missing.jsonl"),
        ([], "broken.jsonl", "broken.jsonl:2"),
        ([], "other.jsonl", "other.jsonl:2"),
        ([], "single.jsonl", "no rows with usable steps"),
        ([], "answers.jsonl", "step 2 always the answer"),
        (["--max_length", "10"], "train.jsonl", "no rows with usable steps"),
        (["--model_name", "/nowhere"], "train.jsonl", "/nowhere"),
    ],
)
def test_main_refuses_in_one_line(flags, file, message, folder, capsys):
    assert command(folder, *flags, file=file) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line and "it/s" not in line]
    assert error.startswith("error: ")
    assert message in error


def test_a_tokenizer_larger_than_the_model_is_refused(folder, capsys):
    tiny_model(vocab_size=200).save_pretrained(folder / "model")
    assert command(folder) == 2
    assert "261 tokens" in capsys.readouterr().err
