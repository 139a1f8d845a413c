"""`step-jepa inspect pipeline`: all stages of one example."""

import json
from dataclasses import dataclass, field

from rich.console import Console

from step_jepa.inspection.preparation import RowArguments, specimen_of
from step_jepa.inspection.stages import STAGES


@dataclass
class PipelineArguments(RowArguments):
    """Which example."""

    json: bool = field(default=False, metadata={"help": "JSON on stdout instead of tables."})


def run(args: PipelineArguments) -> None:
    """Print the stages one after another; as JSON {"index"} and, by its name, what each stage's `describe` has. Raises
    UserError."""
    specimen = specimen_of(args)
    if args.json:
        print(json.dumps({"index": args.index} | {name: stage.describe(specimen) for name, stage in STAGES.items()}))
        return
    console = Console(highlight=False, markup=False)
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        console.rule(f"{number} {name}, example {args.index}")
        console.print(stage.show(specimen))
