"""The acceptance figures that need the real model; `make test-slow`. Minutes each on two cores."""

import json

import pytest
from conftest import SHARED
from test_cli import code

pytestmark = pytest.mark.slow
GSM8K = SHARED / "gsm8k" / "train.jsonl"
FILES = ["--model_name", "smollm2", "--train_file", GSM8K, "--json"]


@pytest.fixture(autouse=True)
def needed():
    pytest.importorskip("gguf")
    if not GSM8K.exists():
        pytest.skip("GSM8K is not at hand")


def test_both_implementations_agree_on_32_rows(capsys):
    assert code("compare", *FILES, "--limit", "32") == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("lm_loss", "jepa_loss"):
        assert result[name]["adapted"] == pytest.approx(result[name]["standalone"], abs=1e-5)
    assert result["grad_max_rel_diff"] < 1e-3
    assert result["n"] == 32


def test_one_pass_at_the_price_of_fine_tuning(capsys):
    variants = ["--variants", "one_pass_first", "two_pass", "two_pass_padded"]
    assert code("benchmark", *FILES, "--batch_size", "4", *variants) == 0
    result = json.loads(capsys.readouterr().out)
    one = result["one_pass_first"]["ratio_to_sft"]
    assert one <= 1.25
    assert result["two_pass"]["ratio_to_sft"] / one >= 1.5
    assert result["two_pass_padded"]["ratio_to_sft"] / one >= 5
