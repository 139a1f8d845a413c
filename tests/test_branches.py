"""Literal rows, masks and batches, written out by hand; then properties."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from step_jepa.batches.attention import may_see, within
from step_jepa.batches.batch import PAIR_COLUMNS, READ_COLUMNS, STATE_COLUMNS, without_branches
from step_jepa.batches.collate import BranchCollator, PlainCollator
from step_jepa.batches.planned_rows import PlannedRows
from step_jepa.batches.views import read_trajectories, read_views
from step_jepa.data.example import IGNORED, Example, Turn, Turns
from step_jepa.objectives import LLMJEPA, StepJEPA
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.step_jepa import JUST_THE_ANSWER, SINK
from step_jepa.rows.branches import Pair, Row, difference, last, mean, trunk
from step_jepa.rows.controls import SamplingContext

# prompt 10 11, step one 12 13, step two 14 15, end of turn 16
EXAMPLE = Example(
    "", [10, 11, 12, 13, 14, 15, 16], [IGNORED, IGNORED, 12, 13, 14, 15, 16], [(2, 4), (4, 6)], [], (0, 2)
)
# the turns alone: 5 begins one, 16 ends it
TURNS = Turns(Turn([5, 10, 11, 16], (1, 3)), Turn([5, 12, 13, 14, 15, 16], (1, 5)))
# prompt 10, steps 11 12 / 13 / 14 15, end of turn 16
THREE = Example("", [10, 11, 12, 13, 14, 15, 16], [IGNORED, 11, 12, 13, 14, 15, 16], [(1, 3), (3, 4), (4, 6)], [], None)


def planned(objective, example=EXAMPLE, seed=0) -> Row:
    return Planner([objective], seed)(example, 0)


def drawn(text: str) -> list[list[bool]]:
    return [[cell == "x" for cell in line.split()] for line in text.strip().splitlines()]


def seen(row: Row) -> torch.Tensor:
    return may_see(torch.tensor([row.branch]), torch.tensor([row.visible_length]))[0]


def test_views_are_sums_of_states():
    assert last(range(3, 6)) == [(5, 1.0)]
    assert mean(range(3, 5)) == [(3, 0.5), (4, 0.5)]
    assert difference(after=7, before=2) == [(7, 1.0), (2, -1.0)]


def test_hang_returns_the_rows_indices_of_the_branch():
    row = trunk(EXAMPLE)
    assert row.append_branch([90, 91], position_offset=4, visible_length=4) == range(7, 9)
    assert row.append_branch([14], position_offset=4, visible_length=0) == range(9, 10)
    assert row.position_ids[7:] == [4, 5, 4]
    assert row.branch[7:] == [1, 1, 2]


def test_first_pair_with_one_predictor():
    row = planned(StepJEPA(predictor_ids=(90,)))
    assert row.input_ids == [10, 11, 12, 13, 14, 15, 16, 90, 14, 15]
    assert row.labels == [IGNORED, IGNORED, 12, 13, 14, 15, 16, IGNORED, IGNORED, IGNORED]
    assert row.position_ids == [0, 1, 2, 3, 4, 5, 6, 4, 4, 5]
    assert row.branch == [0, 0, 0, 0, 0, 0, 0, 1, 2, 2]
    assert row.visible_length == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]
    assert row.pairs == [Pair([(7, 1.0)], [(9, 1.0)], step=1, objective=0)]


def test_an_objective_alone_hangs_on_a_row():
    row = trunk(EXAMPLE)
    pairs = list(StepJEPA(predictor_ids=(90,)).pairs_of(row, EXAMPLE, SamplingContext(Random(0))))
    assert pairs == planned(StepJEPA(predictor_ids=(90,))).pairs
    assert row.input_ids[7:] == [90, 14, 15]


def test_the_mask_of_that_row():
    row = planned(StepJEPA(predictor_ids=(90,)))
    expected = drawn("""
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
    """)
    assert seen(row).tolist() == expected


def test_a_window_slides_over_positions_back_into_the_prefix():
    row = planned(StepJEPA(predictor_ids=(90,)))
    near = seen(row) & within(torch.tensor([row.position_ids]), 2)[0]
    assert near[7].nonzero().flatten().tolist() == [3, 7]
    assert near[6].nonzero().flatten().tolist() == [5, 6]


def test_no_predictor_reads_the_trunk():
    assert planned(StepJEPA()).pairs == [Pair([(3, 1.0)], [(8, 1.0)], step=1)]


def test_horizon_two():
    row = planned(StepJEPA(predictor_ids=(90,), horizon=2, pairs="all"), THREE)
    assert row.input_ids[7:] == [90, 14, 15]
    assert row.position_ids[7:] == [3, 4, 5]
    assert row.visible_length[7:] == [3, 0, 0]
    assert row.pairs == [Pair([(7, 1.0)], [(9, 1.0)], step=2)]
    assert planned(StepJEPA(predictor_ids=(90,), horizon=3, pairs="all"), THREE).pairs == []


def test_a_target_in_context_hangs_no_branch():
    row = planned(StepJEPA(predictor_ids=(90,), target="context"))
    assert row.input_ids[7:] == [90]
    assert row.pairs == [Pair([(7, 1.0)], [(5, 1.0)], step=1)]
    row = planned(StepJEPA(target="context", pairs="all"), THREE)
    assert row.branch == [0] * 7
    assert row.pairs == [Pair([(2, 1.0)], [(3, 1.0)], step=1), Pair([(3, 1.0)], [(5, 1.0)], step=2)]


def test_mean_pooling():
    row = planned(StepJEPA(predictor_ids=(90, 91), pooling="mean"))
    assert row.input_ids[7:] == [90, 91, 14, 15]
    assert row.pairs == [Pair([(7, 0.5), (8, 0.5)], [(9, 0.5), (10, 0.5)], step=1)]
    row = planned(StepJEPA(pooling="mean", target="context"))
    assert row.pairs == [Pair([(2, 0.5), (3, 0.5)], [(4, 0.5), (5, 0.5)], step=1)]


def test_reading_where_the_content_ends():
    example = replace(EXAMPLE, contents=[3, 5])  # 13 and 15 are separators
    assert planned(StepJEPA(predictor_ids=(90,), read="content"), example).pairs == []  # 14 read alone is a sink
    row = planned(StepJEPA(predictor_ids=(90,), read="content", target_sees="bos"), example)
    assert row.input_ids[7:] == [90, 14]
    assert row.position_ids[7:] == [4, 4]
    assert row.visible_length[7:] == [4, 1]  # the separator before is seen: it closed a step that was read
    assert row.pairs == [Pair([(7, 1.0)], [(8, 1.0)], step=1)]
    row = planned(StepJEPA(read="content", target="context"), example)
    assert row.pairs == [Pair([(2, 1.0)], [(4, 1.0)], step=1)]
    assert planned(StepJEPA(predictor_ids=(90,)), example).input_ids[7:] == [90, 14, 15]


def test_a_target_that_sees_the_first_token():
    row = planned(StepJEPA(predictor_ids=(90,), target_sees="bos"))
    assert row.position_ids[7:] == [4, 4, 5]
    expected = drawn("""
        x . . . . . . . . .
        x x . . . . . . . .
        x x x . . . . . . .
        x x x x . . . . . .
        x x x x x . . . . .
        x x x x x x . . . .
        x x x x x x x . . .
        x x x x . . . x . .
        x . . . . . . . x .
        x . . . . . . . x x
    """)
    assert seen(row).tolist() == expected


def test_pairs_to_the_final_answer_or_to_one_token_are_skipped():
    two, three = replace(EXAMPLE, answer=1), replace(THREE, answer=2)
    skip = StepJEPA(predictor_ids=(90,), pairs="all", target_sees="bos")
    keep = replace(skip, skip_answer_step=False)
    alone = replace(skip, target_sees="nothing")  # where step 1 of THREE is one token
    context = replace(skip, predictor_ids=(), target_sees="nothing", target="context")

    def steps(objective):
        return [[pair.step for pair in planned(objective, x).pairs] for x in (two, three, THREE)]

    assert (steps(skip), steps(keep)) == ([[], [1], [1, 2]], [[1], [1, 2], [1, 2]])
    assert (steps(alone), steps(context)) == ([[], [], [2]], [[], [1], [1, 2]])
    assert [skip.left_out([x]).total() for x in (two, three, THREE)] == [1, 1, 0]
    assert [keep.left_out([x]).total() for x in (two, three, THREE)] == [0, 0, 0]
    assert alone.left_out([two, three, THREE]) == {JUST_THE_ANSWER: 2, SINK: 2}
    assert steps(replace(alone, pairs="first")) == [[], [], []]
    assert planned(skip, two).input_ids == EXAMPLE.input_ids  # and no branch is appended for them
    assert planned(replace(skip, horizon=2), three).pairs == []
    assert planned(replace(skip, pairs="first"), three).input_ids[7:] == [90, 13]


def test_llm_jepa_reads_text_and_answer_alone():
    row = planned(LLMJEPA(predictor_ids=(90, 91), plain=True), replace(EXAMPLE, turns=TURNS))
    assert row.input_ids[7:] == [10, 11, 90, 91, 12, 13, 14, 15]
    assert row.position_ids[7:] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert row.branch[7:] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert row.visible_length == [0] * 15
    assert row.pairs == [Pair([(10, 1.0)], [(14, 1.0)])]


def test_llm_jepa_reads_turns_in_their_framing():
    row = planned(LLMJEPA(predictor_ids=(90, 91)), replace(EXAMPLE, turns=TURNS))
    assert row.input_ids[7:] == [5, 10, 11, 90, 91, 16, 5, 12, 13, 14, 15, 16]
    assert row.position_ids[7:] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert row.branch[7:] == [1] * 6 + [2] * 6
    assert row.visible_length == [0] * 19
    assert row.labels[7:] == [IGNORED] * 12
    assert row.pairs == [Pair([(12, 1.0)], [(18, 1.0)])]


@pytest.mark.parametrize(
    ("options", "branches", "read_at"),
    [
        ({"front_pred": True}, [5, 90, 10, 11, 16, 5, 12, 13, 14, 15, 16], (11, 17)),
        ({"front_pred": True, "plain": True}, [90, 10, 11, 12, 13, 14, 15], (9, 13)),
        ({"reverse_pred": True}, [5, 12, 13, 14, 15, 90, 16, 5, 10, 11, 16], (13, 17)),
        ({"last_token": -2}, [5, 10, 11, 90, 16, 5, 12, 13, 14, 15, 16], (10, 16)),
        ({"last_token": -5, "plain": True}, [10, 11, 90, 12, 13, 14, 15], (7, 10)),  # no further than the first
    ],
)
def test_llm_jepa_options(options, branches, read_at):
    row = planned(LLMJEPA(predictor_ids=(90,), **options), replace(EXAMPLE, turns=TURNS))
    assert row.input_ids[7:] == branches
    assert row.pairs == [Pair([(read_at[0], 1.0)], [(read_at[1], 1.0)])]


def test_pairs():
    steps = [(place, place + 2) for place in range(1, 17, 2)]
    example = Example("", list(range(18)), [IGNORED] * 18, steps, [], None)
    assert [row.pairs for row in (trunk(example), planned(LLMJEPA(), example))] == [[], []]
    assert len(planned(StepJEPA(predictor_ids=(90,), pairs="first"), example).pairs) == 1
    assert len(planned(StepJEPA(predictor_ids=(90,), pairs="all"), example).pairs) == 7
    drawn = [
        tuple(planned(StepJEPA(predictor_ids=(90,), pairs="random", pairs_per_example=3), example, seed).input_ids[18:])
        for seed in range(20)
    ]
    assert {len(tokens) for tokens in drawn} == {9}
    assert len(set(drawn)) > 5


def test_examples_with_one_step_or_an_empty_span_have_no_pair():
    one = Example("", [1, 2, 3], [IGNORED, 2, 3], [(1, 2)], [], None)
    merged = Example("", [1, 2, 3], [IGNORED, 2, 3], [(1, 2), (2, 2)], [], None)
    assert [planned(StepJEPA(predictor_ids=(90,), pairs="all"), x).pairs for x in (one, merged)] == [[], []]


def pair_table(batch):
    """Row, objective, problem, step of each pair."""
    return torch.stack([batch[name] for name in PAIR_COLUMNS], 1).tolist()


def read_table(batch):
    """View, row, column of each state that is read."""
    return torch.stack([batch[name] for name in READ_COLUMNS[:3]], 1).tolist()


def test_batches():
    rows = [planned(StepJEPA(predictor_ids=(90,))), trunk(Example("", [7, 7], [IGNORED, 7], [(1, 2)], [], None))]
    batch = BranchCollator(pad_id=7)(rows)
    assert batch["input_ids"][1].tolist() == [7] * 10
    assert batch["labels"][1].tolist() == [IGNORED, 7] + [IGNORED] * 8  # pad = eos is not labelled
    assert batch["branch"][1].tolist() == [0, 0] + [-1] * 8
    assert pair_table(batch) == [[0, 0, 0, 1]]
    assert read_table(batch) == [[0, 0, 7], [1, 0, 9]]
    assert may_see(batch["branch"], batch["visible_length"]).any(-1).all()  # no empty row, which is NaN under eager
    assert not may_see(batch["branch"], batch["visible_length"])[1, :2, 2:].any()
    cut = without_branches(batch)
    assert cut["input_ids"].shape == (2, 7)
    assert cut["labels"].tolist() == [rows[0].labels[:7], [IGNORED, 7] + [IGNORED] * 5]
    assert {cut[name].shape for name in (*PAIR_COLUMNS, *READ_COLUMNS)} == {(0,)}
    assert cut["attention_mask"].tolist() == [[1] * 7, [1] * 2 + [0] * 5]
    assert not {"branch", "visible_length", "position_ids"} & cut.keys()
    plain = PlainCollator(pad_id=7)(rows)
    assert plain["attention_mask"][1].tolist() == [1, 1] + [0] * 8


def two_rows() -> list[Row]:
    """Problem 3 with a pair of Step-JEPA, problem 8 with a mean and a difference of five trunk states."""
    second = Row([20, 21, 22, 23, 24], [IGNORED] * 5, problem=8)
    second.pairs.append(Pair(mean([1, 2]), difference(4, 0), step=2, objective=1))
    return [planned(StepJEPA(predictor_ids=(90,)), replace(EXAMPLE, index=3)), second]


def test_which_states_a_batch_reads():
    batch = BranchCollator(pad_id=0)(two_rows())
    assert pair_table(batch) == [[0, 0, 3, 1], [1, 1, 8, 2]]  # row, objective, problem, step
    assert read_table(batch) == [[0, 0, 7], [1, 0, 9], [2, 1, 1], [2, 1, 2], [3, 1, 4], [3, 1, 0]]
    assert batch["read_weight"].tolist() == [1.0, 1.0, 0.5, 0.5, 1.0, -1.0]
    assert batch["read_weight"].dtype == torch.float32
    assert {batch[name].dtype for name in batch.keys() - {"read_weight"}} == {torch.int64}


def test_the_views_that_it_reads():
    states = torch.arange(20.0).view(2, 10, 1) ** 2 * torch.tensor([1.0, -1.0])  # 0, 1, 4, ... and what is below zero
    views = read_views(states, BranchCollator(pad_id=0)(two_rows()))
    assert views.predicted.tolist() == [[49, -49], [132.5, -132.5]]  # 7 * 7; the mean of 11 * 11 and 12 * 12
    assert views.target.tolist() == [[81, -81], [96, -96]]  # 9 * 9; 14 * 14 - 10 * 10
    assert [x.tolist() for x in (views.objective, views.problem, views.step)] == [[0, 1], [3, 8], [1, 2]]


def test_the_trajectory_is_the_end_of_every_step_with_tokens():
    merged = replace(EXAMPLE, steps=[(2, 4), (4, 4), (4, 6)], contents=[4, 4, 6])
    row = Planner(trajectory=True)(replace(merged, index=3))
    assert row.trajectory == [3, 5]
    batch = BranchCollator(pad_id=0)([trunk(EXAMPLE), row])
    columns = [batch[name].tolist() for name in STATE_COLUMNS]
    assert columns == [[1, 1], [3, 5], [3, 3], [0, 1]]  # row, column, problem, place
    states = torch.arange(14.0).view(2, 7, 1)
    found = read_trajectories(states, batch)
    assert found.states.tolist() == [[10.0], [12.0]]


def test_the_planner_numbers_its_objectives():
    row = Planner([StepJEPA(predictor_ids=(90,)), LLMJEPA(predictor_ids=(90,)), StepJEPA(target="context")], 0)(
        replace(EXAMPLE, turns=TURNS), 0
    )
    assert [(pair.objective, pair.step) for pair in row.pairs] == [(0, 1), (1, 0), (2, 1)]
    assert row.branch[7:] == [1] + [2] * 2 + [3] * 5 + [4] * 6


def test_a_batch_of_trunks_takes_the_models_own_causal_path():
    rows = [planned(StepJEPA(target="context")), trunk(Example("", [7, 7], [IGNORED, 7], [(1, 2)], [], None))]
    batch = BranchCollator(pad_id=7)(rows)
    assert batch.keys() - {*PAIR_COLUMNS, *READ_COLUMNS, *STATE_COLUMNS} == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15, 16], [7] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [EXAMPLE.labels, [IGNORED, 7] + [IGNORED] * 5]
    assert read_table(batch) == [[0, 0, 3], [1, 0, 5]]
    cut = without_branches(batch)
    assert all(torch.equal(cut[name], batch[name]) for name in ("input_ids", "attention_mask", "labels"))
    assert {cut[name].shape for name in (*PAIR_COLUMNS, *READ_COLUMNS)} == {(0,)}
    assert read_table(BranchCollator(pad_id=7)(rows[1:])) == []


def test_random_choices_follow_seed_epoch_and_index():
    steps = [(place, place + 2) for place in range(1, 59, 2)]
    example = Example("", list(range(60)), [IGNORED] * 60, steps, [], None)
    examples = [replace(example, index=index) for index in range(3)]
    objectives = [StepJEPA(predictor_ids=(90,), pairs="random", pairs_per_example=4)]
    rows = PlannedRows(examples, Planner(objectives, seed=1))
    first = [rows[index].pairs for index in range(3)]
    ids = [rows[index].input_ids for index in range(3)]
    assert [rows[index].input_ids for index in (2, 0, 1)] == [ids[2], ids[0], ids[1]]
    assert len({tuple(each) for each in ids}) == 3
    assert PlannedRows(examples[::-1], Planner(objectives, seed=1))[0].input_ids == ids[2]  # wherever it stands
    rows.epoch.fill_(1)
    assert [rows[index].input_ids for index in range(3)] != ids
    assert PlannedRows(examples, Planner(objectives, seed=2))[0].input_ids != ids[0]
    assert all(len(pairs) == 4 for pairs in first)


@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=6), st.integers(0, 3), st.sampled_from(["first", "all", "random"])
)
def test_every_view_sees_what_it_should(lengths, count, pairs):
    edges = [2]
    for length in lengths:
        edges.append(edges[-1] + length)
    spans = list(pairwise(edges))
    example = Example("", list(range(edges[-1] + 1)), [IGNORED] * (edges[-1] + 1), spans, [], None)
    row = planned(StepJEPA(predictor_ids=tuple(range(900, 900 + count)), pairs=pairs, pairs_per_example=2), example)
    sees = seen(row)
    assert len(row.pairs) == min(len(spans) - 1, {"first": 1, "all": 9, "random": 2}[pairs])
    for pair in row.pairs:
        ((predicted, weight),), ((target, other),) = pair.predicted, pair.target
        assert (weight, other) == (1.0, 1.0)
        step = [row.position_ids[k] for k in sees[target].nonzero().flatten()]
        past = [row.position_ids[k] for k in sees[predicted].nonzero().flatten()]
        index = next(index for index, (_, stop) in enumerate(spans) if stop - 1 == row.position_ids[target])
        assert step == list(range(*spans[index]))
        assert past == list(range(spans[index][0] + count))
        assert pair.step == index
    assert not sees[: edges[-1] + 1, edges[-1] + 1 :].any()
