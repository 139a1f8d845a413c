"""Regions tile a row."""

from conftest import conversation

from step_jepa.data.example import Example
from step_jepa.data.tokens import encode
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.step_jepa import StepJEPA
from step_jepa.rows.regions import in_place_regions, row_regions

EXAMPLE = Example(
    text="", input_ids=list(range(10)), labels=[-100] * 10, steps=[(4, 6), (6, 8)], chars=[], user=(1, 3), index=0
)


def test_regions_of_a_row_by_hand():
    row = Planner([StepJEPA(predictor_ids=(90, 91))])(EXAMPLE)
    named = [(part.name, part.indices.start, part.indices.stop) for part in row_regions(EXAMPLE, row)]
    trunk_parts = [("system", 0, 1), ("question", 1, 3), ("header", 3, 4), ("step 0", 4, 6), ("step 1", 6, 8)]
    assert named == [*trunk_parts, ("end", 8, 10), ("predictor 1", 10, 12), ("target 1", 12, 14)]


def test_regions_of_the_second_pass_by_hand():
    named = [(part.name, part.indices.start, part.indices.stop) for part in in_place_regions(EXAMPLE, 2)]
    assert named[-3:] == [("step 0", 4, 6), ("predictor 1", 6, 8), ("target 1", 8, 10)]
    assert [part.name for part in in_place_regions(EXAMPLE, 0)][-2:] == ["step 0", "target 1"]


def test_regions_tile_real_rows(tokenizer):
    record = conversation("So 1 + 1 = 2.", "So 2 + 1 = 3.", "#### 3")
    example = encode(tokenizer, record["messages"], record["steps"])
    for objective in (StepJEPA(predictor_ids=(260,), pairs="all"), StepJEPA(pairs="all", target="context")):
        row = Planner([objective])(example)
        regions = row_regions(example, row)
        assert [place for region in regions for place in region.indices] == list(range(len(row.input_ids)))
