"""The names of the files that commands write, and what lies beside a model."""

import os
import tempfile
from pathlib import Path

# Beside a model
OPTIONS_FILE = "step_jepa.json"  # objective, control and all options of the JEPA term
RUN_FILE = "run.json"  # the other settings, and counts of the data
ROWS_FILE = "rows.json"  # the first training rows
STATE_FILE = "jepa.safetensors"  # what the JEPA term carries from step to step
CARD_FILE = "README.md"  # what a person reads of all that
PREDICTORS_FILE = "predictors.safetensors"  # the embeddings of the predictor tokens, (K, H)
# In the folder of `evaluate`
PREDICTIONS_FILE = "predictions.jsonl"
PARTIAL_FILE = "predictions.partial.jsonl"
SUMMARY_FILE = "summary.json"
VIEWS_FILE = "views.safetensors"
# In the folder of `pairing`
PAIRING_FILE, PAIRING_TABLE = "pairing.json", "pairing.md"
# In the folder of `surprise`
SURPRISE_FILE, SURPRISE_PICTURE = "surprise.jsonl", "surprise.png"
SURPRISE_PARTIAL = "surprise.partial.json"  # what an interrupted call has measured
# In the folder of `experiment` and `ab`
RESULTS_FILE, RESULTS_TEXT, RESULTS_CSV, RESULTS_PICTURE = "results.json", "results.md", "results.csv", "results.png"
EXPERIMENT_FILE = "experiment.yaml"
CELL_FILE = "cell.json"
# In any folder that a process writes into
LOCK_FILE = ".step-jepa.lock"
# What may lie beside a model and is not of it
NOT_OF_THE_MODEL = (
    PREDICTIONS_FILE,
    PARTIAL_FILE,
    SUMMARY_FILE,
    VIEWS_FILE,
    PAIRING_FILE,
    PAIRING_TABLE,
    SURPRISE_FILE,
    SURPRISE_PICTURE,
    SURPRISE_PARTIAL,
    CARD_FILE,
    LOCK_FILE,
)


def cache_folder() -> Path:
    """Where what can be made again is kept, of one user."""
    home = os.path.expanduser("~")
    without_home = Path(tempfile.gettempdir(), f"cache-{os.getuid()}") if home == "~" else None  # as in some containers
    return Path(os.environ.get("XDG_CACHE_HOME") or without_home or Path(home, ".cache"), "step-jepa")
