"""`step-jepa surprise`: how far each step of answers is from the one that the model expected; what it tells."""

from dataclasses import dataclass
from typing import Literal

from step_jepa.data.read_arguments import ReadingOptions
from step_jepa.options import MOST_SEED, check_bounds, option
from step_jepa.run_files import SUMMARY_FILE

SURPRISE_FILE, PICTURE_FILE = "surprise.jsonl", "surprise.png"


@dataclass
class SurpriseArguments(ReadingOptions):
    """Whose surprise, at which answers. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2; best of a run with step_jepa.", is_path=True)
    test_file: str = option(
        help="Answers: the data's own, which may have wrong steps that are labelled, or a folder of `evaluate`.",
        is_path=True,
    )
    output_dir: str = option(help=f"Where {SURPRISE_FILE}, {SUMMARY_FILE} and {PICTURE_FILE} go.")
    base_model: str | None = option(
        None, help="The model before training, whose scores need no predictor and stand beside.", is_path=True
    )
    limit: int | None = option(None, help="Take the first so many records only.", least=1)
    batch_size: int = option(16, help="Answers that are read at once.", least=1)
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Of the weights.")
    seed: int = option(42, help="Of resamples.", least=0, most=MOST_SEED)
    overwrite: bool = option(False, help="Replace the results that output_dir holds.")

    def __post_init__(self) -> None:
        check_bounds(self)
