"""`--compat`: each deviation of the published LLM-JEPA code, alone, shows what it is said to show."""

import logging

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from peft import LoraConfig

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.data.example import IGNORED
from step_jepa.training.jepa_options import COMPAT

SAME = [conversation("So 1 + 2 = 3.", "It is 3.", "#### 3")] * 8
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_for(tmp_path, tokenizer=None, peft_config=None, **options):
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    config = StepJEPAConfig(output_dir=str(tmp_path), **{**settings, "max_steps": 2, "optim": "sgd", **options})
    tokenizer = tokenizer or byte_tokenizer()
    return StepJEPARepresentationTrainer(
        tiny_model(), config, SAME, processing_class=tokenizer, peft_config=peft_config
    )


def history(trainer, name):
    return torch.tensor([entry[name] for entry in trainer.state.log_history if name in entry])


def labelled(trainer):
    """The labelled tokens of the first row, as text."""
    row = trainer.train_dataset[0]
    assert all(label in (token, IGNORED) for token, label in zip(row.input_ids, row.labels, strict=True))
    return trainer.processing_class.decode([label for label in row.labels if label != IGNORED])


ANSWER = "So 1 + 2 = 3.\n\nIt is 3.\n\n#### 3"
PROMPT = "<|start|>user\nHow many?<|end|>\n<|start|>assistant\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, ANSWER + "<|end|>"),
        ({"compat": ["unlabelled_end"]}, ANSWER),  # pad is eos: the model never learns to stop
        ({"compat": ["train_all"]}, PROMPT + ANSWER + "<|end|>\n"),
        ({"train_all": True}, PROMPT + ANSWER + "<|end|>\n"),
        ({"compat": ["train_all", "unlabelled_end"]}, (PROMPT + ANSWER + "\n").replace("<|end|>", "")),
        ({"compat": ["llm_jepa"]}, (PROMPT + ANSWER + "\n").replace("<|end|>", "")),
    ],
)
def test_label_mask(tmp_path, options, text):
    assert labelled(trainer_for(tmp_path, **options)) == text


@pytest.mark.parametrize("objective", ["step_jepa", "llm_jepa", "none"])
def test_undivided_loss_grows_with_accumulation(tmp_path, objective):
    options = {"objective": objective, "per_device_train_batch_size": 2, "learning_rate": 0.0, "lbd": 1.0}
    runs = {}
    for compat in ([], ["undivided_loss"]):
        for accumulated in (1, 4):
            trainer = trainer_for(tmp_path, compat=compat, gradient_accumulation_steps=accumulated, **options)
            trainer.train()
            runs[len(compat), accumulated] = trainer
    for name in ("loss", "grad_norm"):  # the rows are all alike, so every micro-batch has the same
        right, wrong = history(runs[0, 1], name), history(runs[1, 1], name)
        torch.testing.assert_close(history(runs[0, 4], name), right, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(wrong, right, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(history(runs[1, 4], name), 4 * right, rtol=1e-5, atol=1e-6)


def test_frozen_predictors_stay_as_they_were_drawn(tmp_path):
    options = {"peft_config": LORA, "learning_rate": 0.1, "lbd": 1.0, "predictors": 2}
    for compat, moves in ([], True), (["frozen_predictors"], False):
        trainer = trainer_for(tmp_path, compat=compat, **options)

        def rows(model=trainer.model):
            return model.get_input_embeddings()(torch.tensor([264, 265])).detach().clone()

        before = rows()
        trainer.train()
        assert torch.equal(rows(), before) != moves


def test_double_bos(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<|start|>" + tokenizer.chat_template
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.convert_tokens_to_ids("<|start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|start|> $A", special_tokens=[("<|start|>", bos)])
    counts = [
        trainer_for(tmp_path, tokenizer, compat=compat).train_dataset[0].input_ids.count(bos)
        for compat in ([], ["double_bos"])
    ]
    assert counts == [3, 4]  # of which two open the turns


def test_each_switch_has_a_line_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "step_jepa"):
        trainer_for(tmp_path, compat=["llm_jepa"])
    assert [line for line in caplog.messages if line.startswith("compat ")] == [
        f"compat {name}: {meaning}" for name, meaning in sorted(COMPAT.items())
    ]
