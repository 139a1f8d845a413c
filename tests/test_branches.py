"""Literal rows, masks and batches, written out by hand; then properties."""

from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from step_jepa.branches import Row, llm_jepa, step_jepa, trunk
from step_jepa.collate import BranchCollator, PlainCollator, PlannedRows, without_branches
from step_jepa.masks import may_see, within
from step_jepa.tokens import IGNORED, Example

RNG = Random(0)
# prompt 10 11, step one 12 13, step two 14 15, end of turn 16
EXAMPLE = Example(
    "", [10, 11, 12, 13, 14, 15, 16], [IGNORED, IGNORED, 12, 13, 14, 15, 16], [(2, 4), (4, 6)], [], (0, 2)
)


def test_first_pair_with_one_predictor():
    row = step_jepa(EXAMPLE, RNG, predictors=[90])
    assert row.input_ids == [10, 11, 12, 13, 14, 15, 16, 90, 14, 15]
    assert row.labels == [IGNORED, IGNORED, 12, 13, 14, 15, 16, IGNORED, IGNORED, IGNORED]
    assert row.position_ids == [0, 1, 2, 3, 4, 5, 6, 4, 4, 5]
    assert row.branch == [0, 0, 0, 0, 0, 0, 0, 1, 2, 2]
    assert row.prefix == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]
    assert row.pairs == [(7, 9)]


def test_the_mask_of_that_row():
    row = step_jepa(EXAMPLE, RNG, predictors=[90])
    drawn = """
        x . . . . . . . . .
        x x . . . . . . . .
        x x x . . . . . . .
        x x x x . . . . . .
        x x x x x . . . . .
        x x x x x x . . . .
        x x x x x x x . . .
        x x x x . . . x . .
        . . . . . . . . x .
        . . . . . . . . x x
    """
    expected = [[cell == "x" for cell in line.split()] for line in drawn.strip().splitlines()]
    assert may_see(torch.tensor([row.branch]), torch.tensor([row.prefix]))[0].tolist() == expected


def test_a_window_slides_over_positions_back_into_the_prefix():
    row = step_jepa(EXAMPLE, RNG, predictors=[90])
    seen = may_see(torch.tensor([row.branch]), torch.tensor([row.prefix])) & within(torch.tensor([row.position_ids]), 2)
    assert seen[0, 7].nonzero().flatten().tolist() == [3, 7]
    assert seen[0, 6].nonzero().flatten().tolist() == [5, 6]


def test_no_predictor_reads_the_trunk():
    assert step_jepa(EXAMPLE, RNG).pairs == [(3, 8)]


def test_llm_jepa_reads_text_and_answer_alone():
    row = llm_jepa(EXAMPLE, RNG, predictors=[90, 91])
    assert row.input_ids[7:] == [10, 11, 90, 91, 12, 13, 14, 15]
    assert row.position_ids[7:] == [0, 1, 2, 3, 2, 3, 4, 5]
    assert row.prefix == [0] * 15
    assert row.pairs == [(10, 14)]


def test_pairs():
    steps = [(place, place + 1) for place in range(1, 9)]
    example = Example("", list(range(10)), [IGNORED] * 10, steps, [], None)
    assert [row.pairs for row in (trunk(example), llm_jepa(example, RNG))] == [[], []]
    assert len(step_jepa(example, RNG, [90], "first").pairs) == 1
    assert len(step_jepa(example, RNG, [90], "all").pairs) == 7
    drawn = [tuple(step_jepa(example, Random(seed), [90], "random", 3).input_ids[10:]) for seed in range(20)]
    assert {len(tokens) for tokens in drawn} == {6}
    assert len(set(drawn)) > 5


def test_examples_with_one_step_or_an_empty_span_have_no_pair():
    one = Example("", [1, 2, 3], [IGNORED, 2, 3], [(1, 2)], [], None)
    merged = Example("", [1, 2, 3], [IGNORED, 2, 3], [(1, 2), (2, 2)], [], None)
    assert [step_jepa(x, RNG, [90], "all").pairs for x in (one, merged)] == [[], []]


def test_batches():
    rows = [step_jepa(EXAMPLE, RNG, [90]), trunk(Example("", [7, 7], [IGNORED, 7], [(1, 2)], [], None))]
    batch = BranchCollator(pad_id=7)(rows)
    assert batch["input_ids"][1].tolist() == [7] * 10
    assert batch["labels"][1].tolist() == [IGNORED, 7] + [IGNORED] * 8  # pad = eos is not labelled
    assert batch["branch"][1].tolist() == [0, 0] + [-1] * 8
    assert batch["pairs"].tolist() == [[[7, 9]], [[-1, -1]]]
    assert may_see(batch["branch"], batch["prefix"]).any(-1).all()  # no empty row, which is NaN under eager
    assert not may_see(batch["branch"], batch["prefix"])[1, :2, 2:].any()
    cut = without_branches(batch)
    assert cut["input_ids"].shape == (2, 7)
    assert cut["pairs"].shape == (2, 0, 2)
    assert cut["branch"].tolist() == [[0] * 7, [0] * 2 + [-1] * 5]
    plain = PlainCollator(pad_id=7)(rows)
    assert plain["attention_mask"][1].tolist() == [1, 1] + [0] * 8


def test_random_choices_follow_seed_epoch_and_index():
    steps = [(place, place + 1) for place in range(1, 30)]
    example = Example("", list(range(31)), [IGNORED] * 31, steps, [], None)

    def plan(example: Example, rng: Random) -> Row:
        return step_jepa(example, rng, [90], "random", 4)

    rows = PlannedRows([example] * 3, plan, seed=1)
    first = [rows[index].pairs for index in range(3)]
    ids = [rows[index].input_ids for index in range(3)]
    assert [rows[index].input_ids for index in (2, 0, 1)] == [ids[2], ids[0], ids[1]]
    rows.epoch.fill_(1)
    assert [rows[index].input_ids for index in range(3)] != ids
    assert PlannedRows([example] * 3, plan, seed=2)[0].input_ids != ids[0]
    assert all(len(pairs) == 4 for pairs in first)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3), st.sampled_from(["first", "all", "random"])
)
def test_every_view_sees_what_it_should(lengths, count, pairs):
    edges = [2]
    for length in lengths:
        edges.append(edges[-1] + length)
    spans = list(pairwise(edges))
    example = Example("", list(range(edges[-1] + 1)), [IGNORED] * (edges[-1] + 1), spans, [], None)
    row = step_jepa(example, Random(0), list(range(900, 900 + count)), pairs, 2)
    seen = may_see(torch.tensor([row.branch]), torch.tensor([row.prefix]))[0]
    for predicted, target in row.pairs:
        step = [row.position_ids[k] for k in seen[target].nonzero().flatten()]
        past = [row.position_ids[k] for k in seen[predicted].nonzero().flatten()]
        index = next(index for index, (_, stop) in enumerate(spans) if stop - 1 == row.position_ids[target])
        assert step == list(range(*spans[index]))
        assert past == list(range(spans[index][0] + count))
    assert not seen[: edges[-1] + 1, edges[-1] + 1 :].any()


@pytest.mark.parametrize("loss", ["cosine", "l2", "mse", "infonce"])
def test_losses_against_their_formula_in_float64(loss):
    from step_jepa.losses import distance

    p, t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    unit = [x / x.pow(2).sum(-1, keepdim=True).sqrt() for x in (p, t)]
    scores = (unit[0] @ unit[1].T / 0.07).exp()
    formula = {
        "cosine": 1 - (unit[0] * unit[1]).sum(-1),
        "l2": (p - t).pow(2).sum(-1).sqrt(),
        "mse": (p - t).pow(2).sum(-1) / 7,
        "infonce": -(scores.diagonal() / scores.sum(-1)).log(),
    }
    torch.testing.assert_close(distance(loss)(p, t), formula[loss], rtol=1e-12, atol=1e-12)
