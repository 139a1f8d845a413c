"""Flat batches and attention in parts: what they are, written out by hand; then that they equal padded rows."""

import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, tiny_model
from test_branches import EXAMPLE, pair_table, planned, read_table
from test_one_pass import trainer_for
from test_trainer import history, run
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from step_jepa.batches import attention_parts, varlen
from step_jepa.batches.attention import check, obstacle, reading
from step_jepa.batches.attention_parts import NAME, attention_in_parts, in_parts
from step_jepa.batches.batch import is_flat, row_count, tokens_read, without_branches
from step_jepa.batches.collate import BranchCollator, FlatCollator
from step_jepa.batches.parts import Parts
from step_jepa.data.example import IGNORED
from step_jepa.errors import UserError
from step_jepa.objectives import StepJEPA
from step_jepa.rows.branches import Pair, Row, difference, last, mean

PREDICTORS = (90,)


def two_rows() -> list[Row]:
    """Problem 3 with a pair of Step-JEPA; problem 8, labelled from its first token on, with views of the trunk."""
    second = Row([7, 8, 9], [7, 8, 9], problem=8)
    second.pairs.append(Pair(mean([1, 2]), difference(2, 0), step=2, objective=1))
    second.trajectory = [0, 2]
    return [planned(StepJEPA(predictor_ids=PREDICTORS), replace(EXAMPLE, index=3)), second]


def test_a_flat_batch():
    batch = FlatCollator()(two_rows())
    _ = IGNORED
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15, 16, 7, 8, 9, 14, 15, 90]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 4, 5, 4]]
    assert batch["labels"].tolist() == [[_, _, 12, 13, 14, 15, 16, _, 8, 9, _, _, _]]  # 16 has not to predict 7
    assert batch["token_row"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]]
    assert batch["branch"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 1]]
    assert batch["visible_length"].tolist() == [[0] * 12 + [4]]
    assert batch["trunk_length"].tolist() == [7, 3]
    assert batch["isolated_length"].tolist() == [2]
    assert batch["prefixed_length"].tolist() == [1, 0]
    assert batch["prefix_length"].tolist() == [4, 0]
    assert pair_table(batch) == [[0, 0, 3, 1], [0, 1, 8, 2]]  # row, objective, problem, step
    assert read_table(batch) == [[0, 0, 12], [1, 0, 11], [2, 0, 8], [2, 0, 9], [3, 0, 9], [3, 0, 7]]
    states = [batch[name].tolist() for name in ("state_row", "state_column", "state_problem", "state_place")]
    assert states == [[0, 0], [7, 9], [8, 8], [0, 1]]
    assert {batch[name].dtype for name in batch.keys() - {"read_weight"}} == {torch.int64}
    assert next(iter(batch)) == "trunk_length"  # Trainer counts samples by the first tensor
    assert (row_count(batch), int(tokens_read(batch))) == (2, 13)
    assert not {"read_view", "pair_step", "state_place"} & FlatCollator(views=False)(two_rows()).keys()


def test_what_a_flat_batch_is_cut_back_to():
    cut = without_branches(FlatCollator()(two_rows()))
    trunks = [Row([10, 11, 12, 13, 14, 15, 16], EXAMPLE.labels), Row([7, 8, 9], [7, 8, 9])]
    expected = FlatCollator()(trunks)
    assert cut.keys() == expected.keys()
    assert all(torch.equal(cut[name], expected[name]) for name in cut)


def test_its_parts():
    parts = Parts(FlatCollator()(two_rows()))
    assert parts.lengths == [7, 3, 2, 1]
    assert [bucket.tolist() for bucket in parts.buckets] == [[[0, 1]]]
    assert parts.document_ends.tolist() == [0, 7, 10, 12]
    (call,) = parts.prefixed
    assert call.prefixes == [(0, 4)]
    assert parts.mask(0, None).tolist() == [[True] * 5]
    assert parts.mask(0, 2).tolist() == [[False, False, False, True, True]]  # positions 3 and 4


def test_a_long_prefix_is_looked_up_in_several_calls(monkeypatch):
    row = Row([1] * 9, [IGNORED] * 9)
    for length, visible in ((2, 3), (4, 6), (1, 9)):
        row.append_branch([2] * length, position_offset=visible, visible_length=visible)
    monkeypatch.setattr("step_jepa.batches.parts.MOST_CELLS", 48)  # of 7 x (9 + 7)
    calls = Parts(FlatCollator()([row])).prefixed
    assert [[*call.queries] for call in calls] == [[9, 10, 11], [12, 13, 14], [15]]
    assert [[*call.own] for call in calls] == [[9, 10, 11], [11, 12, 13, 14], [15]]  # of a branch begun before, all
    assert [call.prefixes for call in calls] == [[(0, 6)], [(0, 6)], [(0, 9)]]


def test_documents_of_like_length_share_a_call():
    row = Row([1], [IGNORED])
    for length in (3, 200, 5, 12):
        row.append_branch([2] * length, position_offset=0, visible_length=0)
    parts = Parts(FlatCollator()([row]))
    shapes = [tuple(bucket.shape) for bucket in parts.buckets]
    assert shapes == [(2, 5), (1, 200), (1, 12)]
    assert parts.buckets[0].tolist() == [[0, 1, 2, 2, 2], [203, 204, 205, 206, 207]]  # padded by its own last token
    places = torch.cat([bucket.flatten() for bucket in parts.buckets])
    assert places[parts.unpadded].tolist() == list(range(220))


def awkward_rows() -> list[Row]:
    """Branches of many lengths, some as long as trunks; several see a prefix, one of them a whole trunk."""
    rows = []
    for number, (length, branches) in enumerate([(30, [(4, 0), (3, 9), (150, 0), (2, 30)]), (1, []), (20, [(9, 20)])]):
        ids = list(range(1, length + 1))
        row = Row(ids, [IGNORED, *ids[1:]], problem=number)
        for size, visible in branches:
            place = row.append_branch(range(40, 40 + size), position_offset=visible or 5, visible_length=visible)
            row.pairs.append(Pair(last(place), last(range(length))))
        rows.append(row)
    return rows


def dense(batch, window):
    """bool (1, 1, T, T), by the one rule, in loops."""
    columns = [batch[name][0].tolist() for name in ("token_row", "branch", "visible_length", "position_ids")]
    tokens = list(zip(*columns, strict=True))
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for q, (row, branch, visible, position) in enumerate(tokens):
        for k, (other_row, other_branch, _, other_position) in enumerate(tokens):
            own = branch == other_branch and k <= q
            prefix = other_branch == 0 and other_position < visible
            near = window is None or position - other_position < window
            mask[q, k] = row == other_row and (own or prefix) and near
    return mask[None, None]


class Layer(torch.nn.Module):
    layer_idx, is_causal, num_key_value_groups = 0, True, 2


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("most_cells", [2**24, 100])
def test_attention_is_that_of_the_dense_mask(window, scaling, one_call, most_cells, monkeypatch):
    monkeypatch.setattr("step_jepa.batches.parts.MOST_CELLS", most_cells)
    batch = FlatCollator()(awkward_rows())
    tokens = batch["input_ids"].shape[1]
    states = torch.randn(8, tokens, 4, generator=torch.Generator().manual_seed(0)).split([4, 2, 2])
    results = []
    for parts in (None, Parts(batch, one_call=one_call)):
        query, key, value = (each[None].clone().requires_grad_() for each in states)
        mask = dense(batch, window) if parts is None else None
        options = {"scaling": scaling, "sliding_window": window}
        output, _ = attention_in_parts(Layer(), query, key, value, mask, parts=parts, **options)
        output.square().sum().backward()
        results.append([output, query.grad, key.grad, value.grad])
    for by_mask, by_parts in zip(*results, strict=True):
        torch.testing.assert_close(by_parts, by_mask, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 16])
def test_masks_do_not_grow_with_the_square_of_a_row(window, monkeypatch):
    """Here branches with a prefix are as long as the row, as in an audit."""
    sizes = []

    def kernel(self, query, key, value, *, attn_mask=None, is_causal=False):
        sizes.append(0 if attn_mask is None else attn_mask.numel())
        return query.transpose(1, 2)

    monkeypatch.setattr(attention_parts.Attention, "_kernel", kernel)
    monkeypatch.setattr("step_jepa.batches.parts.MOST_CELLS", 2000)
    cells = []
    for length in (200, 400):
        row = Row([1] * length, [IGNORED] * length)
        for start in range(0, length, 40):
            row.append_branch([1] * 40, position_offset=start, visible_length=start + 1)
        parts = Parts(FlatCollator()([row]))
        states = torch.zeros(3, 1, 1, sum(parts.lengths), 4)
        sizes.clear()
        output = attention_parts.Attention(parts, window, {})(*states)
        assert output.shape == (1, 2 * length, 1, 4)
        assert not parts._masks  # together they would be large
        cells.append(max(sizes))
    assert max(cells) <= 2000


def by_documents(query, key, value, ends, _, longest, __, *, window_size, scale, enable_gqa):
    """What the kernel does, in loops."""
    assert ends.dtype == torch.int32
    assert longest == ends.diff().max()
    outputs = []
    for start, stop in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        place = torch.arange(stop - start)
        behind = place[:, None] - place
        mask = (behind >= 0) & (behind <= (window_size[0] if window_size[0] >= 0 else 10**9))
        piece = [states[start:stop].transpose(0, 1)[None] for states in (query, key, value)]
        options = {"attn_mask": mask, "scale": scale, "enable_gqa": enable_gqa}
        outputs.append(F.scaled_dot_product_attention(*piece, **options)[0].transpose(0, 1))
    return torch.cat(outputs)


def test_a_varlen_kernel_is_told_where_documents_end(monkeypatch):
    batch = FlatCollator()(awkward_rows())
    parts, (query, key, value) = Parts(batch), torch.randn(3, 1, 2, batch["input_ids"].shape[1], 4)
    monkeypatch.setattr(varlen, "varlen_attn", by_documents)
    for window in (None, 7):
        layer = attention_parts.Attention(parts, window, {"scale": None, "enable_gqa": False})
        causal = sum(parts.trunks) + sum(parts.isolated)
        expected = layer(query, key, value)[:, :causal]
        torch.testing.assert_close(layer._by_varlen(query, key, value), expected, rtol=1e-5, atol=1e-6)


def without_backward(*states, **options):
    return by_documents(*states, **options).detach()


def one_document(query, key, value, ends, *more, **options):
    ends = ends[[0, -1]]
    return by_documents(query, key, value, ends, ends, ends[-1], ends[-1], **options)


@pytest.mark.parametrize(
    ("kernel", "serves"),
    [(by_documents, True), (None, False), (torch.nn.attention.varlen.varlen_attn, False)]
    + [(without_backward, False), (one_document, False)],
)
def test_a_varlen_kernel_is_tried_before_it_is_used(kernel, serves, monkeypatch):
    """torch's own runs on no CPU."""
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    varlen.serves.cache_clear()
    with torch.no_grad():  # as in evaluation, which may be the first to ask
        assert varlen.serves(torch.device("cpu"), torch.bfloat16, 16) is serves
    varlen.serves.cache_clear()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 0.1}, "attention dropout"),
        ({"softcap": 30.0}, "soft-capping"),
        ({"s_aux": torch.zeros(2)}, "sinks"),
        ({"is_causal": False}, "both directions"),
    ],
)
def test_what_is_not_computed_is_refused(options, words):
    batch = FlatCollator()(two_rows())
    states = torch.randn(1, 2, 13, 4)
    with pytest.raises(ValueError, match=f"{words}.*--attention dense"):
        attention_in_parts(Layer(), states, states, states, None, parts=Parts(batch), **options)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flat_batches_give_what_padded_rows_give(name, checkpointing, tokenizer, records, tmp_path):
    model = tiny_model(name)
    trainer = trainer_for(model, tokenizer, records, tmp_path, predictor_head="linear")
    rows = [trainer.train_dataset[place] for place in range(4)]
    assert max(map(len, (row.input_ids for row in rows))) > 12  # longer than the window
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    results = []
    for collate in (BranchCollator(258), FlatCollator()):
        model.zero_grad()
        batch = collate(rows)
        with reading(model, batch):
            output = trainer.representation.forward(batch)
            distances = 1 - F.cosine_similarity(output.views.predicted, output.views.target)
            (output.nll.sum() + distances.sum()).backward()
        nll = output.nll[output.token_row.argsort(stable=True)]
        gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
        results.append([nll, distances, output.views.predicted, output.views.target, gradient])
    for padded, flat, least in zip(*results, [1e-6] * 4 + [1e-5], strict=True):
        assert (padded - flat).detach().norm() <= least * padded.detach().norm()
    assert output.token_row.bincount().tolist() == [sum(x != IGNORED for x in row.labels[1:]) for row in rows]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_isolation_to_the_last_bit(name, tokenizer, records, tmp_path):
    model = tiny_model(name)
    trainer = trainer_for(model, tokenizer, records, tmp_path)
    forward = trainer.representation.forward
    batch = FlatCollator()([trainer.train_dataset[place] for place in range(3)])
    row, branch = batch["token_row"][0], batch["branch"][0]

    @torch.no_grad()
    def states(others=None):
        ids = batch["input_ids"] if others is None else torch.where(others, 77, batch["input_ids"])
        return forward.hidden_states({**batch, "input_ids": ids})[0]

    before = states()
    for number in range(3):  # rows against each other
        assert torch.equal(states(row != number)[row == number], before[row == number])
    assert torch.equal(states(branch > 0)[branch == 0], before[branch == 0])
    isolated = (branch > 0) & (batch["visible_length"][0] == 0)
    documents = {(int(row[place]), int(branch[place])) for place in isolated.nonzero()[:, 0]}
    assert len(documents) > 3
    for number, own in documents:
        inside = (row == number) & (branch == own)
        after = states(~inside)
        assert torch.equal(after[inside], before[inside])
        assert not torch.equal(after[~inside], before[~inside])
    changed = states(branch == 0)
    assert not torch.equal(changed[batch["visible_length"][0] > 0], before[batch["visible_length"][0] > 0])


def test_a_pass_through_another_attention_fails_and_is_not_wrong(tokenizer, records, tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, tokenizer, records, tmp_path)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(RuntimeError, match="size of tensor"):
        model(**trainer.representation.forward.inputs(batch))
    output = trainer.representation.forward(batch, model.train())
    with pytest.raises(RuntimeError, match=r"size|shape|expand"):
        output.nll.sum().backward()


def test_a_model_is_left_as_it_was(tokenizer, records, tmp_path):
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    trainer = run(tokenizer, records, tmp_path, model=model, learning_rate=0.0)
    model.eval()
    assert is_flat(trainer.data_collator([trainer.train_dataset[0]]))
    assert model.config._attn_implementation == "sdpa"
    written = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, tiny_model().generate(ids, max_new_tokens=4, do_sample=False))
    with in_parts(model):
        assert model.config._attn_implementation == NAME
        trainer.save_model()
    for path in (tmp_path / "out").glob("*.json"):
        assert NAME not in path.read_text(), path
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 264
    states = torch.randn(1, 2, 5, 4)
    plain, _ = sdpa_attention_forward(Layer(), states, states, states, None)
    assert torch.equal(attention_in_parts(Layer(), states, states, states, None)[0], plain)  # whoever brings no parts


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ({}, {"padding": True}, "--padding"),
        ({}, {"attention": "dense"}, "--attention dense"),
        ({"attn_implementation": "eager"}, {}, "loaded with eager attention"),
        ({"attention_dropout": 0.1}, {}, "attention dropout"),
        ({}, {"objective": "none", "label_smoothing_factor": 0.1}, "--label_smoothing_factor"),
    ],
)
def test_what_is_padded_is_said_in_a_line(model, options, reason, tokenizer, records, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trainer = trainer_for(tiny_model(**model), tokenizer, records, tmp_path, **options)
    lines = [message for message in caplog.messages if message.startswith("rows are padded and attention is dense")]
    assert len(lines) == 1
    assert reason in lines[0]
    assert not is_flat(trainer.data_collator([trainer.train_dataset[0]]))


def test_padded_and_flat_runs_train_alike(tokenizer, records, tmp_path):
    options = {"optim": "sgd", "jepa_ratio": 0.6, "gradient_accumulation_steps": 2, "target_encoder": "ema"}
    flat, padded = (run(tokenizer, records, tmp_path, padding=padding, **options) for padding in (False, True))
    for name in ("loss", "lm_loss", "jepa_loss", "grad_norm", "pairs"):
        assert history(flat, name) == pytest.approx(history(padded, name), rel=1e-5), name
    figures = [trainer.evaluate(records) for trainer in (flat, padded)]
    for name in ("eval_loss", "eval_lm_loss", "eval_jepa_loss", "eval_pairs", "eval_cosine_unpaired"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-5), name


def test_evaluation_without_a_jepa_term_does_not_depend_on_the_batching(tokenizer, records, tmp_path):
    figures = []
    for size, padding in ((1, False), (4, False), (4, True)):
        options = {"objective": "none", "per_device_eval_batch_size": size, "padding": padding}
        figures.append(
            trainer_for(tiny_model(), tokenizer, None, tmp_path, **options).evaluate(records)["eval_lm_loss"]
        )
    assert figures == pytest.approx([figures[0]] * 3, rel=1e-6)


def test_models_that_cannot_take_flat_batches(monkeypatch):
    for name in ARCHITECTURES:
        assert obstacle(tiny_model(name)) is None
        check(tiny_model(name), flat=True)
    strange = tiny_model("gemma3")
    strange.config.layer_types = ["chunked_attention", "full_attention"]
    assert obstacle(strange) == "it has layers of type chunked_attention"
    gpt2 = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2)
    assert obstacle(AutoModelForCausalLM.from_config(gpt2)) == "it has attention dropout"
    gpt2.attn_pdrop = 0.0
    assert obstacle(AutoModelForCausalLM.from_config(gpt2)) is None
    mamba = MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert "eager" in obstacle(AutoModelForCausalLM.from_config(mamba))
    router = tiny_model()
    router.config.output_router_logits = True
    assert obstacle(router) == "its routers have a loss of their own"
    with pytest.raises(UserError, match="routers"):
        check(router)


def test_a_window_that_layers_do_not_tell_is_noticed():
    model = tiny_model("mistral")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="do not say the window"):
        check(model, flat=True)


def test_a_leaking_part_is_noticed(monkeypatch):
    class OneDocument(Parts):
        """Takes the isolated branch for a part of the trunk."""

        def __init__(self, batch):
            nothing = batch["isolated_length"][:0]
            super().__init__({**batch, "trunk_length": torch.tensor([7]), "isolated_length": nothing})

    monkeypatch.setattr(attention_parts, "Parts", OneDocument)
    with pytest.raises(UserError, match="lets an isolated branch see the trunk"):
        check(tiny_model(), flat=True)
