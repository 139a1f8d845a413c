"""How raw records are read, as options: those that every command shares, and those of `prepare`."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from step_jepa.data.chains import ChainNames
from step_jepa.data.format_registry import format_names
from step_jepa.data.steps import SplitBy
from step_jepa.errors import UserError
from step_jepa.options import check_bounds, option

SYSTEM_PROMPT = "Reason step by step, then give the final answer."
_READING: dict[str, Any] = {"group": "Data", "standalone": True, "of_training": True}


@dataclass(kw_only=True)
class ReadingOptions:
    """How a raw record becomes a conversation with steps; one that was prepared is one already."""

    format: str | None = option(
        None,
        help="Input format: prepared, prm800k, messages, stepwise, processbench, math_shepherd, gsm_symbolic, "
        "deepseek_response, solution, gsm8k, problem, or one that you registered; recognised by its keys if not given.",
        **_READING,
    )
    columns: list[str] = option(
        default_factory=list,
        help="Names for columns that are not known: question=KEY,solution=KEY; also truth, thinking, messages and any "
        "other name that a format looks for.",
        **_READING,
    )
    split_by: SplitBy = option(
        "auto",
        help="What ends a step; auto: markers, else paragraphs, else lines. sentences only where asked for.",
        **_READING,
    )
    keep_thinking: bool = option(False, help="Keep the <think> tags around thinking, not just its steps.", **_READING)
    keep_annotations: bool = option(False, help="Keep GSM8K's calculator annotations, <<48/2=24>>.", **_READING)
    strip_annotations: bool = option(False, help="Take such annotations out of other formats, too.", **_READING)
    min_step_tokens: int = option(
        0, least=0, help="Steps of fewer tokens (here: whitespace-separated words) join a neighbour.", **_READING
    )
    system_prompt: str = option(
        SYSTEM_PROMPT, help="System turn of formats that have none; empty: no such turn.", **_READING
    )

    @property
    def renamed_columns(self) -> list[tuple[str, str]]:
        """(our name, the record's) of each column that the user names."""
        pairs = [each.partition("=") for each in ",".join(self.columns).split(",") if each]
        return [(ours.strip(), theirs.strip()) for ours, _, theirs in pairs]


@dataclass(kw_only=True)
class ReadArguments(ReadingOptions):
    """The same, and which records. Raises UserError for an unknown format and for a number out of range."""

    for_evaluation: bool = option(
        False, help="Keep problems that have a truth but no solution: evaluate takes them, train does not."
    )
    max_examples: int | None = option(
        None,
        least=1,
        help="Stop after this many usable examples (1000 of gsm_symbolic or chains, which are endless).",
    )
    skip: int = option(0, least=0, help="Leave out the first so many records.")
    seed: int = option(42, help="Seed of gsm_symbolic and chains. Seeds share some problems: hold out templates.")
    templates: Literal["all", "train", "test"] = option(
        "all", help="Templates of gsm_symbolic and chains; train and test have none in common."
    )
    chain_names: ChainNames = option(
        "ordered", help="Quantities of chains: named in order, which gives a step's place away, or at random."
    )
    dataset_config: str | None = option(None, help="Configuration of a hub data set.")
    dataset_split: str | None = option(None, help="Split of a hub data set or folder; train by default.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.format is not None and self.format not in format_names():
            raise UserError(f"format = {self.format}: give one of {', '.join(format_names())}")
        for each in self.renamed_columns:
            if not all(each):
                raise UserError(f"columns = {' '.join(self.columns)}: give NAME=KEY, such as question=problem")

    @classmethod
    def of(cls, options: ReadingOptions | None, **others: Any) -> Self:
        """With the options of a command, and others of our own. Raises UserError."""
        return cls(**(reading_values(options) if options else {}), **others)


def reading_values(options: ReadingOptions) -> dict[str, Any]:
    """What a command's options say of reading, by name."""
    return {each.name: getattr(options, each.name) for each in fields(ReadingOptions)}
