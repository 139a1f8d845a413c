"""A user's SFT script with two lines changed trains what it trained before."""

import pytest
from conftest import tiny_model
from datasets import Dataset
from test_trainer import history

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer

COMMON = {
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "max_length": 512,
    "seed": 3,
}


def test_two_changed_lines(tokenizer, records, tmp_path):
    trl = pytest.importorskip("trl")
    dataset = Dataset.from_list([{"messages": record["messages"]} for record in records])

    def train(config, trainer, data, **options):
        run = trainer(
            model=tiny_model(),
            args=config(output_dir=str(tmp_path), **COMMON, **options),
            train_dataset=data,
            processing_class=tokenizer,
        )
        run.train()
        return run

    ours = train(StepJEPAConfig, StepJEPARepresentationTrainer, dataset, objective="none")
    # SFTTrainer, told to train on the same tokens: it takes a mask for rows that are tokenised already.
    rows = [
        {"input_ids": x.input_ids, "completion_mask": [int(label >= 0) for label in x.labels]}
        for x in ours.train_dataset.examples
    ]
    options = {"activation_checkpointing": False, "bf16": False, "completion_only_loss": True, "packing": False}
    theirs = train(trl.SFTConfig, trl.SFTTrainer, Dataset.from_list(rows), **options)
    assert history(theirs) == pytest.approx(history(ours), rel=1e-5)
    assert len(history(ours)) == 5


def test_trls_parser_takes_our_configuration(tmp_path):
    """The facts of our options stand where argparse is not disturbed by them."""
    trl = pytest.importorskip("trl")
    options = tmp_path / "options.yaml"
    options.write_text("pairs: all\nloss: infonce\n")
    words = ["--config", str(options), "--output_dir", str(tmp_path / "out"), "--lbd", "0.5", "--report_to", "none"]
    (config,) = trl.TrlParser((StepJEPAConfig,)).parse_args_and_config(words)
    assert (config.pairs, config.loss, float(config.lbd)) == ("all", "infonce", 0.5)
