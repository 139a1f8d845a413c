"""The arguments of `step-jepa benchmark`."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from step_jepa import plots
from step_jepa.benchmark.variants import VARIANTS
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.errors import UserError
from step_jepa.options import check_bounds, option


@dataclass
class BenchmarkArguments(ReadingOptions):
    """Which rows, how many at a time, how often. Raises UserError for what cannot be measured."""

    model_name: str = option(help="Hub id, folder, or smollm2 (the model of the demo).", is_path=True)
    train_file: str | None = option(
        None, help="Prepared records, or whatever `step-jepa prepare` reads; not with --lengths.", is_path=True
    )
    batch_size: int = option(4, help="Rows of one measurement.", least=1)
    repeats: int = option(3, help="Measurements, each on other rows, after one to warm up.", least=1)
    max_length: int = option(1024, help="Longest row, and the length of the padded variant.", least=1)
    predictors: int = option(1, help="K, the predictor tokens.", least=0)
    dtype: Literal["float32", "bfloat16"] = option("float32", help="Of the weights.")
    variants: list[str] = option(
        default_factory=lambda: list(VARIANTS), help=f"Which: sft and some of {', '.join(VARIANTS[1:])}."
    )
    attn_implementation: Literal["sdpa", "eager"] = option("sdpa", help="Attention backend.")
    seed: int = option(42, help="Of the predictor rows, random weights and rows of --lengths.")
    json: bool = option(False, help="JSON on stdout instead of a table.")
    against: Literal["sft", "trl"] = option(
        "sft",
        help="sft: forward and backward of our own plain fine-tuning. trl: whole training steps of TRL's SFTTrainer, "
        "like for like, and with its own defaults; sft and one_pass_* are measured against it.",
    )
    trl_defaults: bool = option(
        True, help="With --against trl: also with its own defaults. On many CPUs its bfloat16 takes minutes a step."
    )
    lengths: str | None = option(
        None,
        help="Whole training steps on made rows of these lengths instead, such as 256,1024,4096: random words of the "
        "tokenizer in steps of 40 to 120 tokens.",
    )
    memory: bool = option(
        True, help="With whole training steps on a CPU: peak memory of each, in a process of its own."
    )
    config_overrides: dict | None = option(
        None,
        help="Random weights, from the model's configuration with these fields, as JSON; a model_type makes one for "
        "any tokenizer, such as builtin:chains.",
    )
    output: str | None = option(None, help="With --lengths: draw seconds and memory to this .png or .svg.")
    overwrite: bool = option(False, help="Replace the picture that is there.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise UserError(f"--variants {unknown[0]}: give some of {', '.join(VARIANTS)}")
        if (self.train_file is None) == (self.lengths is None):
            raise UserError("benchmark measures the rows of a --train_file, or made rows of some --lengths: give one")
        if self.against == "trl" and find_spec("trl") is None:
            raise UserError("--against trl measures TRL's SFTTrainer, which is not installed: pip install trl")
        self.row_lengths = _numbers(self.lengths)
        if self.output is not None:
            if self.lengths is None:
                raise UserError("--output draws seconds and memory against length: add --lengths")
            plots.check_output(self.output, overwrite=self.overwrite)


def _numbers(text: str | None) -> list[int]:
    """The lengths, ascending. Raises UserError."""
    words = [] if text is None else text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= LEAST_LENGTH for word in words):
        raise UserError(f"--lengths {text}: give numbers of {LEAST_LENGTH} or more, such as 256,1024")
    return sorted({int(word) for word in words})


LEAST_LENGTH = 16  # a prompt and two steps
