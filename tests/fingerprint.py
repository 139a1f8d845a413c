"""Digests of what training computes, to hold two builds against each other: losses, gradients and held-out figures of
every objective, loss, control and target encoder, from fixed seeds on tiny models; and the JSON of whole commands.

    PYTHONPATH=OLD/src python tests/fingerprint.py old.json
    PYTHONPATH=src     python tests/fingerprint.py new.json --against old.json

It uses nothing of the package but what users import, so that one script runs both builds: `make same-numbers
BASE=COMMIT`.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from conftest import byte_tokenizer, conversation, tiny_model
from peft import LoraConfig
from transformers import TrainerCallback

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.cli import main

RECORDS = [
    conversation(*[f"So {a} + {b} = {a + b}." for b in range(2 + a % 4)], f"#### {a}", question=f"Is it {a}?")
    for a in range(1, 9)
]
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 3}
ALL = {"pairs": "all"}

CASES = {
    "none": {"objective": ["none"]},
    "first": {},
    "all": ALL,
    "random": {"pairs": "random", "pairs_per_example": 2},
    "context": {**ALL, "target": "context"},
    "mean": {**ALL, "pooling": "mean", "predictors": 2},
    "content": {**ALL, "read": "content"},
    "bos": {**ALL, "target_sees": "bos"},
    "horizon": {**ALL, "horizon": 2},
    "answers": {**ALL, "skip_answer_step": False},
    "no_predictors": {**ALL, "predictors": 0},
    "three_predictors": {**ALL, "predictors": 3},
    "head": {**ALL, "predictor_head": "linear"},
    "layer": {**ALL, "layer": 1},
    "plain": {**ALL, "plain": True},
    "llm_jepa": {"objective": ["llm_jepa"]},
    "llm_jepa_front": {"objective": ["llm_jepa"], "front_pred": True, "predictors": 2},
    "llm_jepa_reverse": {"objective": ["llm_jepa"], "reverse_pred": True},
    "llm_jepa_last_token": {"objective": ["llm_jepa"], "last_token": -2, "plain": True},
    "llm_jepa_shuffled": {"objective": ["llm_jepa"], "control": "shuffled_pairs"},
    "stp": {"objective": ["stp"], "pairs": "all"},
    "stp_released": {"objective": ["stp_released"], "pairs": "random"},
    "ssp": {"objective": ["ssp"], "read": "content"},
    "several": {"objective": ["step_jepa", "ssp", "llm_jepa"], "weights": [1.0, 0.5, 2.0], **ALL},
    "ema": {**ALL, "target_encoder": "ema", "ema_decay": 0.5},
    "stop_gradient": {**ALL, "target_encoder": "stop_gradient"},
    "lbd_auto": {**ALL, "lbd": "auto"},
    "jepa_ratio": {**ALL, "jepa_ratio": 0.5},
    "same_flop": {**ALL, "same_flop": True},
    "gamma_0": {**ALL, "gamma": 0.0},
    "compat": {"objective": ["llm_jepa"], "compat": ["llm_jepa"]},
    "train_all": {**ALL, "train_all": True},
    "redraw": {**ALL, "control": "shuffled_steps", "redraw": True},
    "max_length": {**ALL, "max_length": 90},
    **{
        f"loss_{loss}": {**ALL, "loss": loss}
        for loss in ("centred_cosine", "l2", "mse", "normalised_l2", "normalised_mse", "infonce", "centred_infonce")
    },
    **{f"negatives_{which}": {**ALL, "loss": "infonce", "negatives": which} for which in ("others", "same")},
    **{f"regulariser_{name}": {**ALL, "regulariser": name} for name in ("vicreg", "sigreg")},
    **{
        f"control_{name}": {**ALL, "control": name}
        for name in (
            *("shuffled_pairs", "shuffled_steps", "past_target", "random_boundaries", "frozen_target"),
            *("random_target", "no_loss"),
        )
    },
}
ARCHITECTURES = ("llama", "mistral", "gemma3")
COMMANDS = {
    "evaluate": ["evaluate", "--model_name", "M", "--test_file", "F", "--output_dir", "E", "--max_new_tokens", "4"],
    "pairing": ["pairing", "--model_name", "M", "--base_model", "B", "--test_file", "F", "--output_dir", "P"],
    "audit": ["audit", "--model_name", "M", "--train_file", "F", "--json"],
    "compare": ["compare", "--model_name", "M", "--train_file", "F", "--json"],
    "verify": ["verify", "--model_name", "M", "--train_file", "F", "--json"],
    "inspect": ["inspect", "pipeline", "--model_name", "M", "--train_file", "F", "--json"],
    "standalone": ["train", "--approach", "standalone", "--model_name", "M", "--train_file", "F", "--output_dir", "S"]
    + ["--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--use_cpu"],
}


class Digest(TrainerCallback):
    """Of all gradients, before each optimisation step."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [each.grad for _, each in sorted(model.named_parameters()) if each.grad is not None]
        content = b"".join(gradient.detach().contiguous().numpy().tobytes() for gradient in gradients)
        self.steps.append(hashlib.sha256(content).hexdigest()[:16])


def trained(options: dict, folder: str, *, architecture: str = "llama", peft_config: LoraConfig | None = None) -> dict:
    """Gradient digests, logged losses and held-out figures of three steps."""
    options = {**QUIET, **SGD, "lbd": 0.7, "per_device_train_batch_size": 4, "diagnostics_steps": 2, **options}
    config = StepJEPAConfig(output_dir=folder, **options)
    model = tiny_model(architecture, num_hidden_layers=2)
    trainer = StepJEPARepresentationTrainer(
        model, config, RECORDS, RECORDS[:5], processing_class=byte_tokenizer(), peft_config=peft_config
    )
    digest = Digest()
    trainer.add_callback(digest)
    trainer.train()
    logs = [
        {name: value for name, value in entry.items() if not any(word in name for word in ("second", "runtime"))}
        for entry in trainer.state.log_history
    ]
    held_out = {
        name: value for name, value in trainer.evaluate().items() if "second" not in name and "runtime" not in name
    }
    return {"gradients": digest.steps, "logs": logs, "held_out": held_out}


def commands(folder: Path) -> dict:
    """What whole commands print or write about a tiny model."""
    model, base, file = folder / "model", folder / "base", folder / "rows.jsonl"
    for path, seed in ((model, 0), (base, 1)):
        tiny_model(seed=seed).save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
    rows = [
        {**record, "question": record["messages"][0]["content"], "answer": str(n)} for n, record in enumerate(RECORDS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {"M": model, "B": base, "F": file, **{name: folder / name for name in "EPS"}}
    found: dict = {}
    for name, words in COMMANDS.items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([str(places.get(word, word)) for word in words])
        if "--json" in words:
            found[name] = json.loads(text.getvalue()[text.getvalue().index("{") :])
    found["evaluate"] = json.loads((folder / "E" / "summary.json").read_text())
    found["pairing"] = json.loads((folder / "P" / "pairing.json").read_text())
    found["standalone"] = json.loads((folder / "S" / "trainer_state.json").read_text())["log_history"]
    return found


def without_places(found: object, folder: str) -> object:
    """Figures that depend on neither the clock nor the folder."""
    if isinstance(found, dict):
        timed = ("second", "runtime", "written", "modified", "settings")
        return {
            name.replace(folder, ""): without_places(value, folder)
            for name, value in found.items()
            if not any(word in name for word in timed)
        }
    if isinstance(found, list):
        return [without_places(value, folder) for value in found]
    return found.replace(folder, "") if isinstance(found, str) else found


def fingerprint() -> dict:
    found: dict = {}
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = trained(options, folder)
        print(name, found[name]["gradients"], file=sys.stderr)
    for architecture in ARCHITECTURES:
        for name in ("all", "llm_jepa"):
            with tempfile.TemporaryDirectory() as folder:
                found[f"{architecture} {name}"] = trained(CASES[name], folder, architecture=architecture)
    for name in ("all", "head", "loss_infonce", "none"):
        with tempfile.TemporaryDirectory() as folder:
            found[f"lora {name}"] = trained({**CASES[name], "keep_adapter": True}, folder, peft_config=lora)
    with tempfile.TemporaryDirectory() as folder:
        found["commands"] = without_places(commands(Path(folder)), folder)
    return json.loads(json.dumps(found))


def differences(old: object, new: object, where: str = "") -> list[str]:
    """Where two fingerprints are not equal to the bit."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for name in names for line in differences(old.get(name), new.get(name), f"{where}/{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for place, pair in pairs for line in differences(*pair, f"{where}[{place}]")]
    same = old == new or (old != old and new != new)
    return [] if same else [f"{where}: {str(old)[:80]} became {str(new)[:80]}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    now = fingerprint()
    given.output.write_text(json.dumps(now, indent=1))
    if given.against:
        apart = differences(json.loads(given.against.read_text()), now)
        print("\n".join(apart) or f"equal to the bit: {len(now)} cases")
        sys.exit(bool(apart))
