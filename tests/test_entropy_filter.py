"""--entropy_filter: which pairs are kept, by either model's entropy, and what they are worth."""

import math
from random import Random

import pytest
import torch
from test_objectives import RECORDS, batch_of, history, trained, trainer_for

from step_jepa import StepJEPAConfig
from step_jepa.batches.batch import without_branches
from step_jepa.batches.collate import BranchCollator, FlatCollator
from step_jepa.batches.entropy_filter import kept_pairs
from step_jepa.data.example import Example
from step_jepa.errors import UserError
from step_jepa.models import lm_head
from step_jepa.models.lm_head import entropy
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.rows.branches import Pair, Row
from step_jepa.rows.controls import SamplingContext
from step_jepa.rows.least_certain import least_certain
from step_jepa.train.standalone_trainer import unknown_to_standalone


@pytest.mark.parametrize(
    ("entropies", "rows", "count", "kept"),
    [
        ([1.0, 3.0, 2.0], [0, 0, 0], 2, [1, 2]),
        ([1.0, 3.0, 3.0, 3.0], [0, 0, 0, 0], 2, [1, 2]),  # of equal ones the earlier
        ([0.0, 0.0], [0, 0], 1, [0]),
        ([1.0, 2.0, 5.0, 4.0, 3.0], [0, 0, 1, 1, 1], 1, [1, 2]),
        ([1.0, 2.0], [0, 0], 5, [0, 1]),
        ([], [], 1, []),
    ],
)
def test_the_least_certain_of_each_row(entropies, rows, count, kept):
    assert least_certain(entropies, rows, count) == kept


def test_entropy_is_in_nats():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, -math.inf], [500.0, -500.0]])
    by_hand = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0, 0.0]
    assert entropy(logits).tolist() == pytest.approx(by_hand)


def rows_with_boundaries() -> list[Row]:
    """Three pairs, the first without a boundary; and two."""
    first, second = (Row(input_ids=list(range(5)), labels=list(range(5)), problem=7) for _ in range(2))
    first.pairs = [Pair([(0, 1.0)], [(1, 1.0)], boundary=boundary) for boundary in (None, 1, 3)]
    second.pairs = [Pair([(0, 1.0)], [(1, 1.0)], boundary=boundary) for boundary in (0, 2)]
    return [first, second]


@pytest.mark.parametrize(
    ("collator", "columns"), [(BranchCollator(0), [-1, 1, 3, 0, 2]), (FlatCollator(), [-1, 1, 3, 5, 7])]
)
def test_a_batch_keeps_some_of_each_row(collator, columns):
    batch = collator(rows_with_boundaries())
    assert batch["pair_boundary"].tolist() == columns
    entropies = torch.tensor([1.0, 2.0, 4.0, 3.0])
    assert kept_pairs(batch, 1, entropies).tolist() == [True, False, True, True, False]
    assert kept_pairs(batch, 2, entropies).tolist() == [True] * 5 == kept_pairs(batch, None).tolist()
    assert kept_pairs(batch, 1).sum() == kept_pairs(batch, 1, entropies).sum()
    assert kept_pairs(without_branches(batch), 1).tolist() == []


def test_the_base_models_entropies_choose_what_is_planned():
    spans = [(2, 4), (4, 6), (6, 8), (8, 10)]
    example = Example("", list(range(10)), list(range(10)), spans, [(0, 0)] * 4, None, index=3)
    objective = StepJEPA(pairs="all", entropy_filter=2, entropy_of="base", predictor_ids=[99])
    row = Row(list(range(10)), list(range(10)))
    sampling = SamplingContext(Random(0), entropies={3: [0.1, 0.3, 0.2, math.nan]})
    assert [pair.step for pair in objective.pairs_of(row, example, sampling)] == [2, 3]
    assert row.input_ids[10:] == [99, 6, 7, 99, 8, 9]  # two branches of each of two pairs


def least_certain_steps(trainer, count):
    """(problem, target step) of the pairs, each row's entropies taken from an ordinary pass."""
    kept = set()
    for example in trainer.train_dataset.examples:
        pairs = [wanted for _, wanted in StepJEPA(pairs="all").kept(example)]
        out = trainer.model(torch.tensor([example.input_ids])).logits[0].detach()
        found = [_entropy(out[example.steps[step][0] - 1]) for step in pairs]
        highest = sorted(range(len(pairs)), key=lambda place: -found[place])[:count]
        kept |= {(example.index, pairs[place]) for place in highest}
    return kept


def _entropy(logits):
    chances = logits.softmax(-1)
    return float(-(chances * chances.log()).sum())


def flat_batch_of(trainer, places):
    return trainer.data_collator([trainer.train_dataset[place] for place in places])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("collate", [batch_of, flat_batch_of])
def test_the_same_pass_tells_where_the_model_is_least_certain(collate, whole, tmp_path, monkeypatch):
    if not whole:
        monkeypatch.setattr(lm_head, "WHOLE", 4096)
        monkeypatch.setattr(lm_head, "LEAST_CHUNK", 2)
    trainer = trainer_for(tmp_path, entropy_filter=1)
    views = trainer.representation.forward.training(collate(trainer, range(4))).views
    kept = set(zip(views.problem.tolist(), views.step.tolist(), strict=True))
    assert kept == least_certain_steps(trainer, 1)
    assert len(kept) == 4 < len(trainer.representation.forward(collate(trainer, range(4))).views)


def test_both_ways_choose_the_same_pairs(tmp_path):
    in_pass = trainer_for(tmp_path, entropy_filter=1)
    planned = trainer_for(tmp_path, entropy_filter=1, entropy_of="base")
    one, other = (each.representation.forward.training(batch_of(each, range(4))).views for each in (in_pass, planned))
    assert one.step.tolist() == other.step.tolist()
    assert len({*one.step.tolist()}) > 1  # not the first pair of every row
    torch.testing.assert_close(one.predicted, other.predicted)
    torch.testing.assert_close(one.target, other.target)
    assert len(planned.train_dataset[0].input_ids) < len(in_pass.train_dataset[0].input_ids)
    assert not planned.model.training


@pytest.mark.parametrize("entropy_of", ["model", "base"])
@pytest.mark.parametrize("options", [{}, {"loss": "infonce"}, {"objective": ["step_jepa", "ssp"]}])
def test_a_filter_that_keeps_all_changes_no_bit(entropy_of, options, tmp_path):
    without = trained(tmp_path, **options)
    kept = trained(tmp_path, entropy_filter=3, entropy_of=entropy_of, **options)
    for name in ("loss", "jepa_loss", "grad_norm", "pairs"):
        assert history(kept, name) == history(without, name) != []
    for one, other in zip(kept.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_loss_is_a_mean_over_the_pairs_that_are_kept(tmp_path):
    small, large = (
        trained(tmp_path, entropy_filter=1, per_device_train_batch_size=rows, gradient_accumulation_steps=4 // rows)
        for rows in (1, 4)
    )
    assert history(small, "pairs") == history(large, "pairs") == [4.0] * 3
    assert history(small, "jepa_loss") == pytest.approx(history(large, "jepa_loss"), rel=1e-5)
    assert history(small) == pytest.approx(history(large), rel=1e-5)


@pytest.mark.parametrize("control", ["shuffled_pairs", "shuffled_steps", "past_target", "random_boundaries", "no_loss"])
def test_controls_train_with_it(control, tmp_path):
    trainer = trained(tmp_path, entropy_filter=1, control=control, max_steps=1)
    assert history(trainer, "pairs") == [4.0]


@pytest.mark.parametrize("entropy_of", ["model", "base"])
def test_held_out_figures_are_of_all_pairs(entropy_of, tmp_path):
    trainer = trainer_for(tmp_path, entropy_filter=1, entropy_of=entropy_of)
    assert trainer.evaluate(RECORDS)["eval_pairs"] == 6
    assert trainer._run_rows.counts["pairs"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"entropy_filter": 0}, "entropy_filter = 0: give 1 or more"),
        ({"entropy_filter": -2}, "entropy_filter = -2"),
        ({"entropy_filter": 2, "pairs": "first"}, "--pairs all or random"),
        ({"entropy_of": "base"}, "--entropy_filter"),
        ({"entropy_filter": 2, "objective": ["llm_jepa"]}, "for the objective step_jepa"),
        ({"entropy_filter": 2, "objective": ["stp"], "pairs": "all"}, "for the objective step_jepa"),
        ({"entropy_filter": 2, "objective": ["none"]}, "needs a JEPA term"),
        ({"entropy_filter": 2, "entropy_of": "base", "streaming": True, "max_steps": 2}, "a stream does not have"),
        ({"entropy_filter": 2, "entropy_of": "base", "fsdp": "full_shard"}, "before the model is sharded"),
        ({"entropy_filter": 2, "entropy_of": "base", "control": "random_boundaries"}, "moves the boundaries"),
        ({"entropy_filter": 1, "loss": "infonce", "negatives": "same"}, "needs several pairs of an example"),
    ],
)
def test_what_it_does_not_go_with(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        trainer_for(tmp_path, **{"pairs": "all", **options})


def test_standalone_refuses_it_by_name(tmp_path):
    config = StepJEPAConfig(output_dir=str(tmp_path), pairs="all", entropy_filter=2, use_cpu=True)
    assert unknown_to_standalone(config)["entropy_filter"] == 2
