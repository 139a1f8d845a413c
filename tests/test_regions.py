"""Regions tile a row, and the sentences say what the mask shows."""

import torch
from conftest import conversation

from step_jepa.batches.attention import may_see
from step_jepa.data.tokens import Example, encode
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.rows.regions import in_place_regions, regions, sight

EXAMPLE = Example(
    text="", input_ids=list(range(10)), labels=[-100] * 10, steps=[(4, 6), (6, 8)], chars=[], user=(1, 3), index=0
)


def test_regions_of_a_row_by_hand():
    row = Planner([StepJEPA(predictor_ids=(90, 91))])(EXAMPLE)
    named = [(part.name, part.places.start, part.places.stop) for part in regions(EXAMPLE, row)]
    trunk_parts = [("system", 0, 1), ("question", 1, 3), ("header", 3, 4), ("step 0", 4, 6), ("step 1", 6, 8)]
    assert named == [*trunk_parts, ("end", 8, 10), ("predictor 1", 10, 12), ("target 1", 12, 14)]


def test_sentences_by_hand():
    row = Planner([StepJEPA(predictor_ids=(90,))])(EXAMPLE)
    seen = may_see(torch.tensor([row.branch]), torch.tensor([row.visible_length]))[0]
    said = dict(sentence.split(" sees ") for sentence in sight(regions(EXAMPLE, row), seen))
    assert said["step 0"] == "system, question, header and itself up to each token."
    assert said["predictor 1"] == "system, question, header, step 0 and itself up to each token."
    assert said["target 1"] == "nothing but itself up to each token."
    seen[7, 4] = False  # the last token of step 1 overlooks one of step 0
    seen[12, 11] = False
    said = dict(sentence.split(" sees ") for sentence in sight(regions(EXAMPLE, row), seen))
    assert "part of step 0" in said["step 1"]
    assert said["target 1"] == "nothing but part of itself."


def test_regions_of_the_second_pass_by_hand():
    named = [(part.name, part.places.start, part.places.stop) for part in in_place_regions(EXAMPLE, 2)]
    assert named[-3:] == [("step 0", 4, 6), ("predictor 1", 6, 8), ("target 1", 8, 10)]
    assert [part.name for part in in_place_regions(EXAMPLE, 0)][-2:] == ["step 0", "target 1"]


def test_regions_tile_real_rows(tokenizer):
    record = conversation("So 1 + 1 = 2.", "So 2 + 1 = 3.", "#### 3")
    example = encode(tokenizer, record["messages"], record["steps"])
    for objective in (StepJEPA(predictor_ids=(260,), pairs="all"), StepJEPA(pairs="all", target="context")):
        row = Planner([objective])(example)
        parts = regions(example, row)
        assert [place for part in parts for place in part.places] == list(range(len(row.input_ids)))
