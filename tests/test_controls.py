"""Controls on examples written out by hand; and every combination of options that is refused, with its remedy."""

import json
import logging
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import save_file

from step_jepa import RepresentationConfig, RepresentationTrainer, StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.data.example import Example, Turn, Turns
from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES, StepJEPA
from step_jepa.objectives.llm_jepa import LLMJEPA
from step_jepa.objectives.planner import Planner, unchanged_pairs
from step_jepa.objectives.stp import STP
from step_jepa.rows.controls import CONTROL_MEANINGS, NEAREST, NegativeSampler, with_random_boundaries
from step_jepa.run_files.names import OPTIONS_FILE
from step_jepa.train.arguments import TrainArguments
from step_jepa.train.standalone_trainer import standalone_trainer
from step_jepa.training.saved_options import save_options

PREDICTOR = 99
# With target_sees, steps of one token are targets too.
ALL = StepJEPA(predictor_ids=[PREDICTOR], pairs="all", skip_answer_step=False, target_sees="bos")


def example(index, *lengths, answer=False, start=2):
    """Steps of these lengths after `start` tokens of a prompt; token i of example n is 1000 n + i. The last one may be
    the answer."""
    edges = [start + sum(lengths[:count]) for count in range(len(lengths) + 1)]
    ids = [1000 * index + place for place in range(edges[-1] + 1)]
    steps = list(pairwise(edges))
    return Example(
        text="",
        input_ids=ids,
        labels=ids,
        steps=steps,
        chars=steps,
        user=(0, start),
        answer=len(lengths) - 1 if answer else None,
        turns=Turns(
            Turn([1000 * index + 500, 1000 * index + 501], (0, 2)),
            Turn([1000 * index + 700 + place for place in range(sum(lengths))], (0, sum(lengths))),
        ),
        index=index,
    )


def targets(row):
    """Of each pair, the ids and position ids of its target branch."""
    found = []
    for pair in row.pairs:
        branch = row.branch[pair.target[-1][0]]
        places = [place for place, each in enumerate(row.branch) if each == branch]
        found.append(([row.input_ids[at] for at in places], [row.position_ids[at] for at in places]))
    return found


def planner(control, examples, objective=ALL, **options):
    sampler = NegativeSampler(examples) if control == "shuffled_pairs" else None
    return Planner([objective], control=control, negative_sampler=sampler, **options)


# Literal rows


def test_without_control_the_target_is_the_next_step():
    row = Planner([ALL])(example(0, 3, 2, 1))
    assert targets(row) == [([5, 6], [5, 6]), ([7], [7])]
    assert [pair.step for pair in row.pairs] == [1, 2]


def test_past_target_is_the_step_that_was_just_read():
    row = planner("past_target", [])(example(0, 3, 2, 1))
    assert targets(row) == [([2, 3, 4], [2, 3, 4]), ([5, 6], [5, 6])]
    assert row.input_ids[8:10] == [8, PREDICTOR]  # the predicted view is what it was
    assert [pair.step for pair in row.pairs] == [1, 2]


def test_past_target_of_a_context_is_in_the_trunk():
    row = planner("past_target", [], replace(ALL, target="context"))(example(0, 3, 2, 1))
    assert [pair.target for pair in row.pairs] == [[(4, 1.0)], [(6, 1.0)]]


def test_shuffled_steps_is_another_step_of_the_same_example():
    whole = example(0, 3, 2, 1, 4, 1, answer=True)
    plan = planner("shuffled_steps", [], replace(ALL, skip_answer_step=True), redraw=True)
    drawn: list[set] = [set(), set(), set()]
    for epoch in range(30):
        for seen, (ids, places) in zip(drawn, targets(plan(whole, epoch)), strict=True):
            assert ids == places
            seen.add(tuple(ids))
    steps = {0: (2, 3, 4), 1: (5, 6), 2: (7,), 3: (8, 9, 10, 11)}
    # never the true one, never the one just read, never the answer
    assert drawn == [{steps[2], steps[3]}, {steps[0], steps[3]}, {steps[0], steps[1]}]


def test_shuffled_steps_of_two_steps_is_the_first_and_of_an_answer_alone_the_answer():
    pair = replace(ALL, pairs="first")
    assert targets(planner("shuffled_steps", [], pair)(example(0, 3, 2))) == [([2, 3, 4], [2, 3, 4])]
    row = planner("shuffled_steps", [], replace(ALL, horizon=1))(example(0, 3, 2, answer=True))
    assert targets(row) == [([2, 3, 4], [2, 3, 4])]


def test_shuffled_steps_takes_the_answer_rather_than_the_step_just_read():
    plan = planner("shuffled_steps", [], replace(ALL, pairs="first"), redraw=True)
    for epoch in range(20):
        assert targets(plan(example(0, 3, 2, 4, answer=True), epoch)) == [([7, 8, 9, 10], [7, 8, 9, 10])]


def test_shuffled_pairs_is_a_step_of_another_example_at_its_own_place():
    examples = [example(0, 3, 2, 1, answer=True), example(1, 1, 4, 2, start=3, answer=True)]
    assert targets(planner("shuffled_pairs", examples)(examples[0])) == [
        ([1004, 1005, 1006, 1007], [4, 5, 6, 7]),
        ([1008, 1009], [8, 9]),
    ]
    assert targets(planner("shuffled_pairs", examples)(examples[1])) == [([5, 6], [5, 6]), ([7], [7])]


def test_a_donor_is_of_the_same_index_and_kind():
    """Example 0's answer is step 2, its step 1 is none: negatives are an answer and no answer."""
    examples = [example(0, 3, 2, 1, answer=True), example(1, 3, 2, 1), example(2, 3, 2, answer=True)]
    sampler = NegativeSampler(examples)
    for seed in range(20):
        donor, step = sampler.mismatched_step(examples[0], 1, Random(seed))
        assert (donor.index, step) == (1, 1)  # step 1 of example 2 is an answer
        donor, step = sampler.mismatched_step(examples[0], 2, Random(seed))
        assert (donor.index, step) == (2, 1)  # no other answer has index 2: the nearest lower index
        donor, step = sampler.mismatched_step(examples[1], 2, Random(seed))
        assert (donor.index, step) == (0, 1)  # step 2 of example 0 is an answer; a lower index of the same kind


def test_a_donor_is_among_the_nearest_in_length():
    examples = [example(n, 1, 1 + n) for n in range(40)]  # step 1 of example n has 1 + n tokens
    sampler = NegativeSampler(examples)
    drawn = {sampler.mismatched_step(examples[20], 1, Random(seed))[0].index for seed in range(300)}
    assert drawn == {16, 17, 18, 19, 21, 22, 23, 24}
    assert len(drawn) == NEAREST
    assert {sampler.mismatched_step(examples[0], 1, Random(seed))[0].index for seed in range(300)} == set(range(1, 9))


def test_all_that_are_nearest_stand_before_any_other():
    """Nine negatives of the same length beside a longer one: that one is never drawn, wherever the own step stands."""
    examples = [*(example(n, 1, 2) for n in range(10)), example(10, 1, 3)]
    for order in range(5):
        sampler = NegativeSampler(examples, order)
        drawn = {sampler.mismatched_step(own, 1, Random(seed))[0].index for own in examples[:10] for seed in range(300)}
        assert drawn == set(range(10))


def test_donors_of_equal_length_are_drawn_about_equally_often():
    """900 examples, 300 for each of three lengths of step 1: a draw falls on each with about the same chance, so about
    63% of all (1 - 1/e) are drawn at least once, and none very often."""
    examples = [example(n, 1, 2 + n % 3) for n in range(900)]
    plan = planner("shuffled_pairs", examples)
    drawn = [[ids for ids, _ in targets(plan(each))] for each in examples]
    assert drawn == [[ids for ids, _ in targets(plan(each, 5))] for each in examples]
    assert [len(ids) for ((ids),) in drawn] == [2 + n % 3 for n in range(900)]
    negatives = Counter(ids[0] // 1000 for ((ids),) in drawn)
    assert 500 < len(negatives) < 640
    assert max(negatives.values()) <= 8
    assert not any(ids[0] // 1000 == own for own, ((ids),) in enumerate(drawn))


def test_a_data_set_of_one_has_no_donor():
    only = example(5, 3, 2)
    assert targets(planner("shuffled_pairs", [only])(only)) == targets(Planner([ALL])(only))


def test_donors_stay_over_epochs_unless_redrawn():
    examples = [example(n, 2, 1 + n % 5, 3) for n in range(30)]

    def drawn(redraw, epoch):
        plan = planner("shuffled_pairs", examples, redraw=redraw)
        return [targets(plan(each, epoch)) for each in examples]

    assert drawn(False, 0) == drawn(False, 1) == drawn(False, 7) == drawn(True, 0)
    assert drawn(True, 0) != drawn(True, 1)
    assert drawn(True, 1) == drawn(True, 1)
    for own, pairs in enumerate(drawn(True, 1)):
        assert {ids[0] // 1000 for ids, _ in pairs}.isdisjoint({own})


@pytest.mark.parametrize("control", ["shuffled_pairs", "shuffled_steps"])
def test_what_stands_in_for_a_step_does_not_depend_on_the_pairs_drawn_beside_it(control):
    """Which pairs are learned from changes with the epoch; what replaces step k of an example does not."""
    examples = [example(n, *[2 + (n * k) % 3 for k in range(6)]) for n in range(20)]
    plan = planner(control, examples, replace(ALL, pairs="random", pairs_per_example=2))
    stand_ins: dict[int, set] = {}
    chosen = set()
    for epoch in range(9):
        row = plan(examples[3], epoch)
        chosen.add(tuple(pair.step for pair in row.pairs))
        for pair, (ids, _) in zip(row.pairs, targets(row), strict=True):
            stand_ins.setdefault(pair.step, set()).add(tuple(ids))
    assert len(chosen) > 1
    assert {step: len(each) for step, each in stand_ins.items()} == dict.fromkeys(stand_ins, 1)


def test_shuffled_pairs_of_llm_jepa_swaps_the_answer():
    examples = [example(0, 3, 2), example(1, 2, 2), example(2, 4, 4)]
    row = planner("shuffled_pairs", examples, LLMJEPA(predictor_ids=[PREDICTOR]))(examples[0])
    ((ids, places),) = targets(row)
    assert ids in ([1700, 1701, 1702, 1703], [2700 + place for place in range(8)])
    assert places == list(range(len(ids)))
    branch = [row.input_ids[at] for at, each in enumerate(row.branch) if each == 1]
    assert branch == [500, 501, PREDICTOR]  # its own question
    true = targets(Planner([LLMJEPA(predictor_ids=[PREDICTOR])])(examples[0]))
    assert true == [([700, 701, 702, 703, 704], [0, 1, 2, 3, 4])]


# Random boundaries


def test_random_boundaries_cut_in_other_places():
    whole = example(0, 3, 1, 2, answer=True)
    moved = with_random_boundaries(whole, Random(0))
    assert moved.steps == [(2, 3), (3, 6), (6, 8)]  # 3 + 1 can only become 1 + 3; the answer stays put
    assert moved.contents == [3, 6, 8]
    assert moved.answer == 2
    assert moved.input_ids == whole.input_ids
    assert whole.steps == [(2, 5), (5, 6), (6, 8)]


def test_steps_of_one_length_stay():
    whole = example(0, 2, 2, 5, answer=True)
    assert with_random_boundaries(whole, Random(0)) is whole


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=7), answer=st.booleans(), seed=st.integers(0, 99))
def test_random_boundaries_tile_the_same_span_with_the_same_lengths(lengths, answer, seed):
    whole = example(0, *lengths, answer=answer)
    moved = with_random_boundaries(whole, Random(seed))
    free = lengths[:-1] if answer else lengths
    assert (moved.steps != whole.steps) == (len(set(free)) > 1)
    assert sorted(stop - start for start, stop in moved.steps) == sorted(lengths)
    assert moved.steps[0][0] == whole.steps[0][0]
    assert moved.steps[-1][1] == whole.steps[-1][1]
    assert all(one[1] == two[0] for one, two in pairwise(moved.steps))
    assert not answer or (moved.steps[-1], moved.answer) == (whole.steps[-1], whole.answer)
    assert len(moved.contents) == len(moved.steps)
    assert all(start <= content <= stop for (start, stop), content in zip(moved.steps, moved.contents, strict=True))


def test_random_boundaries_stay_over_epochs_unless_redrawn():
    whole = example(0, 1, 2, 3, 4, 5)
    fixed, redrawn = (planner("random_boundaries", [], redraw=redraw) for redraw in (False, True))
    assert targets(fixed(whole, 0)) == targets(fixed(whole, 1)) == targets(redrawn(whole, 0))
    assert len({str(targets(redrawn(whole, epoch))) for epoch in range(9)}) > 1
    assert fixed(whole).input_ids[:18] == whole.input_ids  # the trunk is what it was


def test_all_objectives_see_the_same_random_boundaries():
    whole = example(0, 1, 2, 3, 4, 5)
    steps = targets(planner("random_boundaries", [])(whole))
    ssp = Planner([OBJECTIVES["ssp"]()], control="random_boundaries")(whole)
    ends = [ids[-1] for ids, _ in steps]  # of steps 1, 2, 3, 4
    assert [pair.target[0][0] for pair in ssp.pairs] == ends[1:]


# What a control leaves as it is


def test_pairs_without_a_donor_are_unchanged():
    alone = example(5, 3, 2, 1)
    assert unchanged_pairs(planner("shuffled_pairs", [alone]), [alone]) == 2
    examples = [example(0, 3, 2, answer=True), example(1, 3, 2)]  # no other answer; step 0 of 0 for step 1 of 1
    assert unchanged_pairs(planner("shuffled_pairs", examples), examples) == 1
    assert unchanged_pairs(planner("shuffled_pairs", examples, LLMJEPA(predictor_ids=[PREDICTOR])), examples) == 0
    assert (
        unchanged_pairs(planner("shuffled_pairs", examples[:1], LLMJEPA(predictor_ids=[PREDICTOR])), examples[:1]) == 1
    )


def test_a_donor_that_says_the_same_changes_nothing():
    """Wherever it stands in its own example: an isolated step does not see its place."""
    first = example(0, 3, 2)
    ids = [0, *first.input_ids]
    later = replace(first, input_ids=ids, labels=ids, steps=[(3, 6), (6, 8)], contents=[6, 8], index=1)
    plan = planner("shuffled_pairs", [first, later])
    assert targets(plan(first)) == [([5, 6], [6, 7])]
    assert unchanged_pairs(plan, [first, later]) == 2


def test_random_boundaries_that_move_nothing_are_unchanged():
    still, moved = example(0, 2, 2, 5, answer=True), example(1, 3, 1, 2, answer=True)
    assert unchanged_pairs(planner("random_boundaries", []), [still]) == 2
    assert (
        unchanged_pairs(planner("random_boundaries", []), [moved]) == 1
    )  # from all steps to the answer is what it was
    trunk_alone = replace(ALL, predictor_ids=(), target="context")
    assert unchanged_pairs(planner("random_boundaries", [], trunk_alone), [still, moved]) == 3


def test_a_prediction_that_sees_more_has_changed():
    """Steps of 1, 2 and 1 tokens become 2, 1, 1 or 1, 1, 2: in the first, the same target is predicted from more."""
    whole, found = example(0, 1, 2, 1), set()
    for seed in range(20):
        plan = planner("random_boundaries", [], replace(ALL, horizon=2), seed=seed)
        found.add(tuple(targets(plan(whole))[0][0]))
        assert unchanged_pairs(plan, [whole]) == 0
    assert found == {(5,), (4, 5)}


@pytest.mark.parametrize("control", ["shuffled_steps", "past_target"])
def test_these_change_every_pair(control):
    assert unchanged_pairs(planner(control, []), [example(0, 3, 2), example(1, 1, 2, 3, answer=True)]) == 0


@pytest.mark.parametrize("control", ["none", "frozen_target", "random_target", "no_loss"])
def test_controls_that_do_not_act_on_rows_are_not_counted(control):
    assert unchanged_pairs(planner(control, []), [example(0, 3, 2)]) == 0


# What an objective says of the data


def test_a_horizon_beyond_all_examples_is_refused():
    examples = [example(0, 3, 2, 1), example(1, 1, 1, answer=True)]
    replace(ALL, horizon=2).check_data(examples)
    said = "horizon = 3: no step has that many after it: examples have at most 3 steps, answer lines included: lower it"
    with pytest.raises(UserError, match=f"^{said}$"):
        replace(ALL, horizon=3).check_data(examples)
    with pytest.raises(UserError, match=r"horizon = 2: .* at most 3 steps"):
        replace(ALL, horizon=2, skip_answer_step=True).check_data([example(0, 3, 2, 1, answer=True)])
    ALL.check_data(examples[1:])  # single steps are plain fine-tuning, and no mistake
    STP().check_data(examples)


def test_pairs_to_the_answer_are_counted_as_left_out():
    examples = [example(0, 3, 2, 1, answer=True), example(1, 1, 1, answer=True), example(2, 1, 2)]
    assert replace(ALL, skip_answer_step=True).left_out(examples).total() == 2
    assert StepJEPA(pairs="first").left_out(examples).total() == 1
    assert ALL.left_out(examples) == STP().left_out(examples) == Counter()


def test_a_stand_in_of_one_token_is_no_target():
    examples = [example(0, 2, 2), example(1, 2, 1)]
    alone = replace(ALL, target_sees="nothing")
    assert targets(planner("shuffled_pairs", examples, alone)(examples[0])) == []
    assert len(targets(planner("shuffled_pairs", examples)(examples[0]))) == 1


# Through the trainer


QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_for(folder, data, *, peft_config=None, quantization_config=None, after=None, **options):
    config = StepJEPAConfig(output_dir=str(folder / "out"), **{**QUIET, **options})
    for name, value in (after or {}).items():
        setattr(config, name, value)
    return StepJEPARepresentationTrainer(
        tiny_model(),
        config,
        data,
        data,
        processing_class=byte_tokenizer(),
        peft_config=peft_config,
        quantization_config=quantization_config,
    )


@pytest.mark.parametrize("control", ["shuffled_pairs", "shuffled_steps", "past_target", "random_boundaries"])
def test_held_out_rows_are_never_under_control(tmp_path, records, control):
    varied = [conversation("A" * n, f"So {n}.", f"Well, {n} then.", "#### 4", question=f"{n}?") for n in range(1, 6)]
    trainer, plain = (trainer_for(tmp_path, varied, pairs="all", control=each) for each in (control, "none"))
    examples = trainer.train_dataset.examples
    held_out = trainer.representation.evaluation_planner()
    for place, each in enumerate(examples):
        assert trainer.eval_dataset[place] == plain.eval_dataset[place] == held_out(each, 3)
    assert any(trainer.train_dataset[place] != plain.train_dataset[place] for place in range(len(examples)))
    assert all(row.pairs for row in (trainer.train_dataset[place] for place in range(len(examples))))


@pytest.mark.parametrize("control", ["frozen_target", "random_target"])
def test_held_out_figures_are_of_the_true_targets(tmp_path, records, control):
    options = {"pairs": "all", "predictors": 1, "max_steps": 2, "learning_rate": 0.01, "diagnostics_steps": 0}
    trainer = trainer_for(tmp_path, records, control=control, **options)
    trainer.train()
    figures = trainer.evaluate()
    control_off = trainer_for(tmp_path, records, **options)
    control_off.model.load_state_dict(trainer.model.state_dict())
    assert figures["eval_jepa_loss"] == pytest.approx(control_off.evaluate()["eval_jepa_loss"], rel=1e-5)


@pytest.mark.parametrize("control", [*CONTROL_MEANINGS, "none"])
def test_a_control_says_in_one_line_what_it_does(tmp_path, records, caplog, control):
    caplog.set_level(logging.INFO, "step_jepa")
    trainer_for(tmp_path, records, control=control)
    said = [record.message for record in caplog.records if record.message.startswith(f"control {control}:")]
    assert said == ([f"control {control}: {CONTROL_MEANINGS[control]}"] if control != "none" else [])


def test_every_control_means_something_for_some_objective():
    assert set().union(*(kind.controls for kind in OBJECTIVES.values())) == set(CONTROL_MEANINGS) - {"no_loss"}


# Refused combinations: the options, and what the message must say

CONFIG = [
    ({"lbd": "often"}, "lbd = often: give a number, or auto"),
    ({"lbd": -1.0}, "lbd = -1.0: give 0 or more"),
    ({"lbd": float("nan")}, "lbd = nan: give a finite number"),
    ({"gamma": float("inf")}, "gamma = inf: give a finite number"),
    ({"predictors": -1}, "predictors = -1: give 0 or more"),
    ({"regulariser_weight": -0.1}, "regulariser_weight = -0.1: give 0 or more"),
    ({"diagnostics_steps": -5}, "diagnostics_steps = -5: give 0 or more"),
    ({"diagnostics_rows": 1}, "diagnostics_rows = 1: give 2 or more"),
    ({"temperature": 0.0}, "temperature = 0.0: give more than 0"),
    ({"lbd_ratio": 0.0}, "lbd_ratio = 0.0: give more than 0"),
    ({"jepa_ratio": 1.5}, "jepa_ratio = 1.5: give a share between 0 and 1"),
    ({"ema_decay": 2.0}, "ema_decay = 2.0: give a share between 0 and 1"),
    ({"max_length": 0}, "max_length = 0: give 1 or more"),
    ({"objective": ["llm_jepa"], "last_token": 0}, "last_token = 0: give -1 for the last token"),
    ({"compat": ["all"]}, "compat = all: give llm_jepa, or some of train_all"),
    ({"control": "frozen_target", "target_encoder": "ema"}, "frozen_target .*: leave out --target_encoder"),
    ({"control": "no_loss", "lbd": "auto"}, "no_loss has no gradient to balance: give --lbd a number"),
    ({"redraw": True}, "--redraw .*: add --control, or leave it out"),
    ({"redraw": True, "control": "frozen_target"}, "--redraw .*: add --control, or leave it out"),
    ({"config_overrides": {"hidden_size": 8}}, "--config_overrides .*: add --pretrain"),
    ({"negatives": "others"}, "--negatives is read by --loss infonce alone: add that, or leave it out"),
    ({"temperature": 0.2}, "--temperature is read by --loss infonce alone"),
    ({"regulariser_weight": 1.0}, "--regulariser_weight is read by --regulariser vicreg or sigreg alone"),
    ({"ema_decay": 0.5}, "--ema_decay is read by --target_encoder ema alone"),
    ({"lbd_ratio": 0.5}, "--lbd_ratio is read by --lbd auto alone"),
    ({"objective": ["jepa"]}, "objective = jepa: give some of step_jepa, llm_jepa, stp, stp_released, ssp, or none"),
    ({"objective": []}, "give some of step_jepa"),
    ({"objective": ["stp", "stp"]}, "objective = stp stp: give each once"),
    ({"objective": ["stp", "none"]}, "objective = stp none: give each once, and none alone"),
    ({"weights": [1.0, 2.0]}, "2 weights for 1 objective: give one each"),
    ({"objective": ["stp", "ssp"], "weights": [1.0]}, "1 weight for 2 objectives: give one each"),
    ({"pairs_per_example": 0}, "pairs_per_example = 0: give 1 or more"),
    ({"horizon": 0}, "horizon = 0: give 1 or more"),
    ({"objective": ["stp"], "horizon": 2}, "--horizon is for the objective step_jepa: leave it out"),
    ({"objective": ["llm_jepa"], "target": "context"}, "--target is for the objective step_jepa: leave it out"),
    ({"objective": ["ssp"], "pooling": "mean"}, "--pooling is for the objective step_jepa: leave it out"),
    ({"objective": ["stp"], "target_sees": "bos"}, "--target_sees is for the objective step_jepa: leave it out"),
    ({"objective": ["llm_jepa"], "read": "content"}, "--read is for the objective step_jepa, ssp: leave it out"),
    ({"objective": ["stp"], "skip_answer_step": False}, "--skip_answer_step is for the objective step_jepa: leave"),
    ({"objective": ["ssp"], "pairs": "all"}, "--pairs is for the objective step_jepa, stp, stp_released: leave it out"),
    ({"objective": ["stp"], "predictors": 2}, "--predictors is for the objective step_jepa, llm_jepa: leave it out"),
    ({"objective": ["none"], "predictors": 2}, "--predictors 2 needs a JEPA term"),
    (
        {"diagnostics_steps": 0, "diagnostics_rows": 4},
        "--diagnostics_rows is read by --diagnostics_steps above 0 alone",
    ),
    ({"front_pred": True}, "--front_pred is for the objective llm_jepa: leave it out"),
    ({"reverse_pred": True}, "--reverse_pred is for the objective llm_jepa: leave it out"),
    ({"last_token": -2}, "--last_token is for the objective llm_jepa: leave it out"),
    ({"objective": ["llm_jepa"], "control": "shuffled_steps"}, "shuffled_steps means nothing .* llm_jepa: use one of"),
    (
        {"objective": ["llm_jepa"], "control": "random_boundaries"},
        "means nothing .* llm_jepa: use one of frozen_target",
    ),
    ({"objective": ["stp"], "control": "shuffled_pairs"}, "shuffled_pairs means nothing .* stp: use one of"),
    ({"objective": ["stp_released"], "control": "random_boundaries"}, "means nothing .* stp_released: use one of"),
    ({"objective": ["ssp"], "control": "past_target"}, "past_target means nothing .* ssp: use one of"),
    ({"objective": ["step_jepa", "stp"], "control": "past_target"}, "past_target means nothing .* stp: use one of"),
]
EMA: dict = {"target_encoder": "ema", "peft_config": LORA}
TRAINER = [
    ({"objective": ["llm_jepa"], "front_pred": True, "predictors": 0}, "--front_pred .*: use --predictors 1 or more"),
    (
        {"objective": ["llm_jepa"], "reverse_pred": True, "control": "shuffled_pairs"},
        "shuffled_pairs .*: leave out --reverse_pred",
    ),
    ({"target": "context", "target_sees": "bos"}, "--target_sees .*: leave it out, or use --target isolated"),
    ({"target": "context", "control": "shuffled_pairs"}, "shuffled_pairs needs --target isolated"),
    (
        {"pairs": "all", "horizon": 5},
        "horizon = 5: no step has that many after it: examples have at most 5 steps, answer lines included: lower it",
    ),
    ({"layer": 3}, "layer = 3: the model has 2: give -2 to -1, or 0 to 2"),
    ({"layer": -3}, "layer = -3: the model has 2: give -2 to -1, or 0 to 2"),
    (EMA, "--target_encoder ema .*: add --keep_adapter"),
    ({"objective": ["stp"], "predictor_head": "linear"}, "--predictor_head linear .*: leave it out"),
    ({"loss": "infonce", "per_device_train_batch_size": 1}, "infonce .*: use a larger one, or --pairs all"),
    ({"loss": "centred_infonce", "per_device_train_batch_size": 1}, "infonce .*: use a larger one, or --pairs all"),
    ({"loss": "infonce", "negatives": "same"}, "--negatives same .*: use --objective step_jepa --pairs all"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor .*: leave it out"),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha .*: leave it out"),
    ({"lbd": "auto", "after": {"fsdp": True}}, "--lbd auto .* FSDP .*: give --lbd a number"),
    ({"after": {"deepspeed": "zero.json"}}, "accelerate would run DDP in place of DeepSpeed .*: leave out --use_cpu"),
    ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "hub_strategy checkpoint would upload rows"),
    ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy must be random or sequential"),
    ({"eval_do_concat_batches": False}, "eval_do_concat_batches must stay True"),
    ({"after": {"_n_gpu": 2, "use_cpu": False}}, "several devices .*: start with torchrun, or show it one device"),
    ({"quantization_config": "anything"}, "quantised .*: add --keep_adapter"),
    ({"pretrain": True, "peft_config": LORA}, "--pretrain .*: leave out --lora"),
    ({"pretrain": True}, "random weights are for a model given by name: make them in the module"),
]
# Options that have no effect or leave nothing to learn, and are not refused yet
UNSAID = [
    ({"objective": ["llm_jepa"], "loss": "infonce", "per_device_train_batch_size": 1}, "infonce"),
    ({"objective": ["llm_jepa"], "loss": "infonce", "negatives": "same"}, "--negatives same"),
    (
        {"loss": "infonce", "negatives": "others", "pairs": "all", "per_device_train_batch_size": 1},
        "negatives others",
    ),
    ({"control": "past_target", "target": "context", "predictors": 0}, "past_target would compare a view with itself"),
    (
        {"control": "shuffled_steps", "target": "context", "predictors": 0, "pairs": "all"},
        "shuffled_steps would compare a view with itself: use --predictors 1 or more",
    ),
    ({"control": "random_target", "target_encoder": "ema"}, "random_target"),
    ({"objective": ["step_jepa", "stp"], "horizon": 9}, "horizon = 9"),
]


def ids(cases):
    return [" ".join(f"{name}={value}" for name, value in options.items())[:70] for options, _ in cases]


@pytest.mark.parametrize(("options", "said"), CONFIG, ids=ids(CONFIG))
def test_refused_options(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        StepJEPAConfig(output_dir=str(tmp_path), **{**QUIET, **options})


@pytest.mark.parametrize(("options", "said"), [*TRAINER, *UNSAID], ids=ids([*TRAINER, *UNSAID]))
def test_refused_runs(tmp_path, records, options, said):
    with pytest.raises(UserError, match=said):
        trainer_for(tmp_path, records, **options)


@pytest.mark.parametrize(
    "options",
    [
        {**EMA, "keep_adapter": True},
        {"loss": "infonce", "per_device_train_batch_size": 1, "pairs": "all"},
        {"loss": "infonce", "negatives": "same", "pairs": "all"},
        {"objective": ["stp", "step_jepa"], "horizon": 2, "predictor_head": "linear"},
        {"objective": ["llm_jepa"], "front_pred": True, "control": "shuffled_pairs"},
        {"objective": ["step_jepa", "llm_jepa"], "control": "shuffled_pairs", "redraw": True},
        {"layer": -2},
        {"control": "no_loss", "objective": ["stp"]},
        {"objective": ["none"], "compat": ["llm_jepa"]},
        {"objective": ["stp"], "pairs": "random", "pairs_per_example": 2},
        {"objective": ["ssp"], "read": "content"},
        {"control": "shuffled_steps", "target": "context", "predictors": 1},
    ],
    ids=lambda options: " ".join(options),
)
def test_their_remedies_are_taken(tmp_path, records, options):
    trainer_for(tmp_path, records, **options)


@pytest.mark.parametrize("plain", [{"lbd": 0.0}, {"objective": ["none"]}], ids=["lbd", "objective"])
@pytest.mark.parametrize(
    "option",
    [
        {"control": "shuffled_pairs"},
        {"control": "no_loss"},
        {"loss": "mse"},
        {"regulariser": "vicreg"},
        {"target_encoder": "ema"},
        {"predictor_head": "linear"},
        {"same_flop": True},
        {"jepa_ratio": 0.5},
        {"gamma": 2.0},
        {"pairs": "all"},
    ],
    ids=lambda option: " ".join(option),
)
def test_plain_fine_tuning_refuses_what_shapes_a_jepa_term(tmp_path, plain, option):
    ((name, value),) = option.items()
    said = f"^--{name} {value} needs a JEPA term: give --lbd more than 0 and an --objective, or leave it out$"
    with pytest.raises(UserError, match=said):
        StepJEPAConfig(output_dir=str(tmp_path), **QUIET, **plain, **option)


def test_the_plain_configuration_refuses_too(tmp_path):
    for control in ("past_target", "shuffled_steps", "random_boundaries"):
        with pytest.raises(UserError, match=f"{control} means nothing for the objective llm_jepa: use one of frozen"):
            RepresentationConfig(output_dir=str(tmp_path), control=control, **QUIET)
    RepresentationConfig(output_dir=str(tmp_path), control="shuffled_pairs", **QUIET)
    with pytest.raises(UserError, match="--control no_loss needs a JEPA term"):
        RepresentationConfig(output_dir=str(tmp_path), control="no_loss", lbd=0.0, **QUIET)


@pytest.mark.parametrize("option", [{"weights": [2.0]}, {"jepa_ratio": 0.5}], ids=["weights", "jepa_ratio"])
def test_standalone_refuses_what_weighs_objectives(tmp_path, option):
    ((name, value),) = option.items()
    with pytest.raises(UserError) as refused:
        standalone_trainer(TrainArguments("x", "x"), StepJEPAConfig(output_dir=str(tmp_path), **QUIET, **option))
    assert str(refused.value) == f"standalone has no --{name} {value}: use --approach adapted"


def test_options_that_json_cannot_hold_are_saved_as_text(tmp_path):
    config = StepJEPAConfig(output_dir=str(tmp_path), model_init_kwargs={"dtype": torch.bfloat16}, lbd=0.3, **QUIET)
    save_options(config, tmp_path)
    saved = json.loads((tmp_path / OPTIONS_FILE).read_text())
    assert (saved["model_init_kwargs"], saved["lbd"]) == ({"dtype": "torch.bfloat16"}, 0.3)


def test_a_saved_predictor_head_is_not_dropped_in_silence(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    save_file({"head.weight": torch.eye(32)}, tmp_path / "model" / "jepa.safetensors")
    with pytest.raises(UserError, match="holds a predictor head: use --predictor_head linear, or move it away"):
        StepJEPARepresentationTrainer(
            str(tmp_path / "model"),
            StepJEPAConfig(output_dir=str(tmp_path / "out"), **QUIET),
            processing_class=byte_tokenizer(),
        )


def test_the_plain_trainer_is_llm_jepa(tmp_path, records):
    config = RepresentationConfig(output_dir=str(tmp_path / "out"), **QUIET)
    trainer = RepresentationTrainer(tiny_model(), config, records, processing_class=byte_tokenizer())
    assert trainer.jepa.names == ["llm_jepa"]
    assert all(len(trainer.train_dataset[place].pairs) == 1 for place in range(len(records)))
