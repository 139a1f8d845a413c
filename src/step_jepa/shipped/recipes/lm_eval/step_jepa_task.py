"""What step_jepa.yaml tells lm-eval: which prompts, and what is right."""

import json
from typing import Any

from datasets import Dataset

from step_jepa.data.dataset import to_example
from step_jepa.data.reading import read_records
from step_jepa.data.records import Record, answerable
from step_jepa.data.splits import TEST
from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Generation
from step_jepa.evaluation.judging import judge
from step_jepa.models.loading import load_tokenizer
from step_jepa.training.saved_options import view_options


def load(*, pretrained: str, test_file: str, **_: Any) -> dict[str, Dataset]:
    """The problems with a known answer, each with the text before the answer in training.

    pretrained, test_file   as lm-eval's --model_args and --metadata give them
    Raises UserError."""
    tokenizer = load_tokenizer(pretrained, plain=view_options(pretrained).get("plain", False))
    records = [record for record in read_records(test_file, TEST, for_evaluation=True) if record["answer"]]
    rows = [
        {
            "prompt": _prompt(record, tokenizer, f"example {index}"),
            "answer": record["answer"],
            "record": json.dumps(record),
        }
        for index, record in enumerate(records)
    ]
    return {"test": Dataset.from_list(rows)}


def _prompt(record: Record, tokenizer: Any, where: str) -> str:
    example = to_example(answerable(record), tokenizer, where)
    text = example.text[: example.chars[0][0]]
    if tokenizer(text, add_special_tokens=False)["input_ids"] != example.input_ids[: example.steps[0][0]]:
        raise UserError(f"{where}: its prompt alone has other tokens than in training: use step-jepa evaluate")
    return text


def judged(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The accuracy of one problem."""
    row = judge(json.loads(doc["record"]), [Generation(0, 0, results[0], truncated=False, new_tokens=0)])
    return {"accuracy": float(row["correct"])}
