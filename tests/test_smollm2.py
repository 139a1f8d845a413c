"""The acceptance figures that need the real model; `make test-slow`. Minutes each on two cores."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from test_cli import code

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.batches.collate import BranchCollator
from step_jepa.data.reading import read_records

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


def test_llm_jepa_in_one_pass_is_three_passes(tmp_path):
    config = StepJEPAConfig(
        output_dir=str(tmp_path), objective="llm_jepa", predictors=2, report_to="none", use_cpu=True
    )
    records = list(read_records(str(GSM8K), max_examples=4))
    trainer = StepJEPARepresentationTrainer("smollm2", config, records)
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    with torch.no_grad():
        terms = trainer.terms(
            model, BranchCollator(tokenizer.pad_token_id)([trainer.train_dataset[i] for i in range(4)])
        )
        lm, jepa = (float(each) for each in trainer.means_of_batch(terms)[:2])
        nll, distances = [], []
        for record, example in zip(records, trainer.train_dataset.examples, strict=True):
            logits = model(torch.tensor([example.input_ids])).logits[0, :-1, : len(tokenizer)]
            nll.append(F.cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="none"))
            views = []
            for turn, added in ((record["messages"][-2], "<|one|><|two|>"), (record["messages"][-1], "")):
                text = tokenizer.apply_chat_template([{**turn, "content": turn["content"] + added}], tokenize=False)
                head, _, tail = text.partition(added) if added else (text, "", "")
                ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, tail)]
                row = [*ids[0], *([49152, 49153] if added else []), *ids[1]]
                views.append(model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1])
            distances.append(1 - F.cosine_similarity(*views, dim=0))
    labels = torch.cat([torch.tensor(example.labels[1:]) for example in trainer.train_dataset.examples])
    assert lm == pytest.approx(float(torch.cat(nll)[labels >= 0].mean()), rel=1e-5)
    assert jepa == pytest.approx(float(torch.stack(distances).mean()), rel=1e-5)
    print(json.dumps({"lm_loss": lm, "jepa_loss": jepa, "separate": float(torch.stack(distances).mean())}))
