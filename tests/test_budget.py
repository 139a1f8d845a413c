"""Batches filled by tokens: --max_tokens_per_batch and --pair_tokens."""

from dataclasses import replace
from itertools import chain
from random import Random

import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_branches import planned
from test_one_pass import trainer_for
from test_trainer import history, run

from step_jepa.batches.budget import TokenBudgetSampler, divisible, packed
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.data.example import IGNORED, Example
from step_jepa.data.examples import Examples
from step_jepa.errors import UserError
from step_jepa.objectives import StepJEPA
from step_jepa.objectives.planner import Planner

FIVE_STEPS = Example("", list(range(18)), [IGNORED] * 18, [(1, 4), (4, 6), (6, 9), (9, 13), (13, 18)], [], None)


def test_rows_are_put_where_they_fit_tightest():
    groups = packed([0, 1, 2, 3, 4, 5], [6, 3, 7, 4, 2, 1], 10)
    assert sorted(groups) == [[0, 3], [2, 1], [4, 5]]
    assert packed([], [], 10) == []


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 50), st.integers(0, 9))
def test_batches_hold_every_row_once_within_the_budget(sizes, room, seed):
    order = list(range(len(sizes)))
    straight = packed(order, sizes, room)
    Random(seed).shuffle(order)
    shuffled = packed(order, sizes, room)
    assert len(shuffled) == len(straight)
    assert sorted(chain.from_iterable(shuffled)) == sorted(order)
    assert all(sum(sizes[index] for index in group) <= room for group in shuffled)
    fullest_two = sorted(sum(sizes[index] for index in group) for group in shuffled)[:2]
    assert len(shuffled) < 2 or sum(fullest_two) > room  # no two of them fit into one


def test_a_number_of_batches_that_ranks_share():
    assert divisible([[1, 2], [3, 4, 5]], 2) == [[1, 2], [3, 4, 5]]
    assert divisible([[1, 2], [3, 4, 5, 6], [7]], 2) == [[1, 2], [3, 4], [7], [5, 6]]
    assert divisible([[1]], 2) == [[1], [1]]


def budgeted(tokenizer, records, tmp_path, **options):
    options = {"max_tokens_per_batch": 300, "pairs": "all", **options}
    return trainer_for(tiny_model(), tokenizer, records, tmp_path, **options)


def token_counts(trainer):
    return [batch["input_ids"].numel() for batch in trainer.get_train_dataloader()]


def test_a_loader_fills_its_batches(tokenizer, records, tmp_path):
    trainer = budgeted(tokenizer, records, tmp_path)
    lengths = [len(trainer.train_dataset[index].input_ids) for index in range(len(records))]
    counts = token_counts(trainer)
    assert sum(counts) == sum(lengths)
    assert max(lengths) < max(counts) <= 300
    assert len(counts) < len(records)
    assert len(trainer.get_train_dataloader()) == len(counts)
    trainer.train_dataset.epoch.fill_(1)
    assert token_counts(trainer) != counts
    trainer.train_dataset.epoch.fill_(0)
    assert token_counts(trainer) == counts
    assert token_counts(budgeted(tokenizer, records, tmp_path, dataloader_num_workers=2)) == counts
    assert token_counts(budgeted(tokenizer, records, tmp_path, data_seed=7)) != counts


def test_ranks_share_the_batches(tokenizer, records, tmp_path):
    rows = budgeted(tokenizer, records, tmp_path).train_dataset
    shares = [list(TokenBudgetSampler(rows, 300, seed=1, rank=rank, ranks=3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    read = [index for share in shares for batch in share for index in batch]
    assert sorted(read) == list(range(len(rows)))


def test_a_budget_is_kept_to_the_token():
    examples = [Example("", [1] * 129, [IGNORED] * 129, [(1, 129)], [], None, index=index) for index in range(2)]
    rows = PlannedRows(examples, Planner())
    assert len(TokenBudgetSampler(rows, 257, seed=1)) == 2
    assert len(TokenBudgetSampler(rows, 260, seed=1)) == 1


def test_what_does_not_fit_is_refused(tokenizer, records, tmp_path):
    with pytest.raises(UserError, match=r"example \d+ has \d+ tokens with its branches.*--max_length"):
        budgeted(tokenizer, records, tmp_path, max_tokens_per_batch=30)
    with pytest.raises(UserError, match="rows are padded: --padding"):
        budgeted(tokenizer, records, tmp_path, padding=True)
    with pytest.raises(UserError, match="leave out --train_sampling_strategy"):
        budgeted(tokenizer, records, tmp_path, train_sampling_strategy="sequential")


@pytest.mark.parametrize("objective", ["step_jepa", "none"])
def test_small_batches_are_one_large_one(objective, tokenizer, records, tmp_path):
    """A step's loss is over its tokens and pairs, however they are parted."""
    options = {"objective": objective, "optim": "sgd", "max_steps": 3}
    many = run(tokenizer, records, tmp_path, max_tokens_per_batch=300, gradient_accumulation_steps=99, **options)
    one = run(tokenizer, records, tmp_path, max_tokens_per_batch=10**5, gradient_accumulation_steps=1, **options)
    assert len(many.get_train_dataloader()) > len(one.get_train_dataloader()) == 1
    for name in ("loss", "grad_norm"):
        assert history(many, name) == pytest.approx(history(one, name), rel=1e-5), name


def test_a_resumed_run_reads_the_batches_that_are_left(tokenizer, records, tmp_path):
    options = {"max_tokens_per_batch": 300, "lbd": 1.0, "max_steps": 9, "save_strategy": "steps", "save_steps": 4}
    options |= {"pairs": "random", "pairs_per_example": 1}
    whole = run(tokenizer, records, tmp_path, **options)
    assert whole.state.epoch > 1.5
    again = trainer_for(tiny_model(), tokenizer, records, tmp_path, **{**vars_of(whole), "save_strategy": "no"})
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert history(again) == pytest.approx(history(whole), rel=1e-6)


def vars_of(trainer):
    names = ("max_tokens_per_batch", "lbd", "max_steps", "pairs", "pairs_per_example", "skip_answer_step", "predictors")
    names += ("learning_rate", "per_device_train_batch_size", "logging_steps", "optim", "disable_tqdm", "seed")
    names += ("lr_scheduler_type", "diagnostics_steps")
    return {name: getattr(trainer.args, name) for name in names}


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({}, [2, 3, 4, 5]),  # and a predictor token each
        ({"pair_tokens": 18}, [2, 3, 4, 5]),
        ({"pair_tokens": 3}, [2]),
        ({"pair_tokens": 2}, []),
        ({"pair_tokens": 6}, [5]),
        ({"pair_tokens": 3, "target": "context"}, [0, 0, 0]),
        ({"pair_tokens": 3, "pairs": "first"}, [2]),
        ({"pair_tokens": 2, "pairs": "first"}, []),
    ],
)
def test_pairs_within_a_budget(options, targets):
    objective = StepJEPA(predictor_ids=(90,), **{"pairs": "all", "skip_answer_step": False, **options})
    rows = [planned(objective, FIVE_STEPS, seed) for seed in range(30)]
    added = {len(row.input_ids) - 18 for row in rows}
    assert max(added) <= options.get("pair_tokens", 18)
    assert max(len(row.pairs) for row in rows) == len(targets)
    assert max(added) == sum(targets) + len(targets)
    assert min(len(row.pairs) for row in rows) >= min(len(targets), 1)  # none that fits is lost to one that does not
    if len(targets) == 4:
        assert all(row == rows[0] for row in rows)


def test_pairs_within_a_budget_are_drawn_anew_in_every_epoch():
    objective = StepJEPA(predictor_ids=(90,), pairs="all", skip_answer_step=False, pair_tokens=7)
    examples = [replace(FIVE_STEPS, index=index) for index in range(20)]
    rows = PlannedRows(examples, Planner([objective], seed=3))
    first = [[pair.step for pair in rows[index].pairs] for index in range(20)]
    assert all(steps == sorted(steps) for steps in first)
    assert {step for steps in first for step in steps} == {1, 2, 3, 4}
    rows.epoch.fill_(1)
    assert [[pair.step for pair in rows[index].pairs] for index in range(20)] != first


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_row_of_16k_tokens_with_200_steps_trains(checkpointing, tokenizer, tmp_path):
    steps = ["".join(Random(number).choices("abcdefgh ", k=79)) + "x" for number in range(200)]
    record = {"messages": [{"role": "user", "content": "long"}, {"role": "assistant", "content": "\n\n".join(steps)}]}
    options = {"max_length": 20_000, "pairs": "all", "activation_checkpointing": checkpointing, "lbd": 1.0}
    trainer = run(tokenizer, [{**record, "steps": steps}], tmp_path, max_steps=1, **options)
    assert trainer.data_collator([trainer.train_dataset[0]])["trunk_length"].item() > 16_000
    assert history(trainer, "pairs") == [199]
    assert torch.isfinite(torch.tensor(history(trainer, "jepa_loss"))).all()


@pytest.mark.parametrize("pairs", ["first", "all", "random"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"predictor_ids": []},
        {"horizon": 2},
        {"target": "context"},
        {"target_sees": "bos"},
        {"read": "content"},
        {"skip_answer_step": False},
        {"pair_tokens": 5},
    ],
    ids=lambda options: next(iter(options), "usual"),
)
def test_lengths_are_those_of_planned_rows(pairs, options, monkeypatch):
    """Steps without tokens, of one token, of one token and a separator; with an answer and without; no step at all."""
    spans = [[(2, 5), (5, 5), (5, 8), (8, 9), (9, 11)], [(2, 3), (3, 6), (6, 12)], [(2, 12)], []]
    contents = [[4, 5, 6, 9, 11], [3, 4, 11], [12], []]
    answers = [4, None, 0, None]
    examples = [
        Example(
            "", [*range(12)], [*range(12)], steps, [(0, 0)] * len(steps), None, contents[row], answers[row], index=row
        )
        for row, steps in enumerate(spans)
    ]
    plan = Planner([StepJEPA(**{"pairs": pairs, "predictor_ids": [90, 91], **options})])
    planned = [len(plan(example).input_ids) for example in examples]
    known = plan.lengths(Examples.of(examples))
    if pairs == "random" or "pair_tokens" in options:
        assert known is None
    else:
        assert known.tolist() == planned
    assert list(PlannedRows(examples, plan).lengths()) == planned
    assert replace(plan, control="past_target").lengths(Examples.of(examples)) is None
