"""Preparation: example -> specimen, as a run with the same options would have it, without the model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import tensor
from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from step_jepa import standalone
from step_jepa.adapted import StepJEPAConfig
from step_jepa.batches import attention
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.tokens import Encoding, Example, pieces
from step_jepa.errors import UserError
from step_jepa.inspection.sights import Sights
from step_jepa.inspection.specimen import Specimen
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer
from step_jepa.objectives import OBJECTIVES
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.rows.regions import in_place_regions, regions


@dataclass
class RowArguments:
    """Which example, and how its row is planned. Raises UserError for a number out of range."""

    model_name: str = field(metadata={"help": "Hub id, folder, or smollm2; it may hold only a tokenizer."})
    train_file: str = field(metadata={"help": "Prepared records, or whatever `step-jepa prepare` reads."})
    index: int = field(default=0, metadata={"help": "Which example, counted from 0."})
    objective: str = field(default="step_jepa", metadata={"help": f"One of {', '.join(OBJECTIVES)}, or none."})
    pairs: Pairs = field(default="all", metadata={"help": "Which pairs of steps: the first, all, or some at random."})
    predictors: int = field(default=1, metadata={"help": "K, the predictor tokens."})
    plain: bool = field(default=False, metadata={"help": "No chat framing, as --plain of train."})
    max_length: int | None = field(default=None, metadata={"help": "Cut rows to whole steps within this many tokens."})

    def __post_init__(self) -> None:
        if self.index < 0:
            raise UserError(f"index = {self.index}: examples are counted from 0")


class Preparation:
    """The tokenizer, configuration and planner of a run that is never started. Raises UserError."""

    def __init__(self, args: RowArguments) -> None:
        self.args = args
        self.tokenizer: Any = load_tokenizer(args.model_name, plain=args.plain)
        self.config = _configuration(args.model_name, len(self.tokenizer))
        options = StepJEPAConfig(
            report_to="none",
            objective=[args.objective],
            pairs=args.pairs,
            predictors=args.predictors,
            plain=args.plain,
        )
        kinds = [OBJECTIVES[name] for name, _ in options.objectives]
        rows, count = self.config.vocab_size, args.predictors if any(kind.predicts for kind in kinds) else 0
        self.predictors = range(rows, rows + count)
        self.plan = Planner([kind.from_config(options, self.predictors) for kind in kinds], options.seed)
        self.encoding = Encoding(turns=any(kind.turns for kind in kinds))

    def examples(self, limit: int | None = None) -> list[Example]:
        """Those of the first `limit` records that can be used."""
        args = self.args
        data = load_and_prepare_dataset(
            args.train_file, self.tokenizer, max_length=args.max_length, limit=limit, encoding=self.encoding
        )
        return data.examples

    def specimen(self, example: Example) -> Specimen:
        row = self.plan(example)
        names = {token: f"<|predictor_{number}|>" for number, token in enumerate(self.predictors, 1)}
        integers = (tensor([entry]) for entry in (row.branch, row.visible_length, row.position_ids))
        layers = {kind: seen[0] for kind, seen in attention.seen(self.config, *integers).items()}
        sights = Sights(regions(example, row), layers)
        texts = pieces(self.tokenizer, row.input_ids, names)
        return Specimen(example, row, texts, self.args.objective, sights, self._in_place(example, list(layers)))

    def _in_place(self, example: Example, kinds: Sequence[str]) -> Sights | None:
        """By the standalone implementation's own functions, which know Step-JEPA and no empty step."""
        if self.args.objective != "step_jepa" or any(start == stop for start, stop in example.steps):
            return None
        alone = standalone.Example(example.input_ids, example.labels, example.steps, skip_pair=example.answer == 1)
        batch = standalone.collate([alone], pad_id=0)
        if not batch["second_step"].any():
            return None
        rows = standalone.second_rows(batch, self.config.vocab_size, len(self.predictors))
        made = standalone.attention_masks(self.config, rows["sees"], rows["position_ids"])
        by_kind = made if isinstance(made, dict) else dict.fromkeys(kinds, made)
        layers = {kind: by_kind[kind][0, 0] for kind in kinds}
        return Sights(in_place_regions(example, len(self.predictors)), layers)


def specimen_of(args: RowArguments) -> Specimen:
    """The example that the arguments name. Raises UserError where there is none."""
    preparation = Preparation(args)
    # With max_length some of the first records may be left out.
    examples = preparation.examples(None if args.max_length else args.index + 1)
    return preparation.specimen(chosen(examples, args.index, args.train_file))


def chosen(examples: Sequence[Example], index: int, source: str) -> Example:
    """The example with that index. Raises UserError where there is none."""
    if index >= len(examples):
        raise UserError(f"--index {index}: {source} has {len(examples)} examples: give 0 to {len(examples) - 1}")
    return examples[index]


def _configuration(name: str, tokens: int) -> Any:
    """The model's configuration; for a folder with a tokenizer alone that of a model with as many rows and no window.
    Its vocab_size is V, the rows of the base model."""
    folder = resolve(name)
    if Path(folder, "adapter_config.json").exists():
        folder = PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        known = "model_type" in PretrainedConfig.get_config_dict(folder)[0]
        config = AutoConfig.from_pretrained(folder) if known else LlamaConfig(vocab_size=tokens)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"cannot read the configuration of {name!r}: give a folder, a hub id, or smollm2 ({reason})"
        ) from None
    config, predictors = config.get_text_config(), getattr(config, "predictors", 0)
    strange = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if strange:
        raise UserError(f"{name} has layers of type {', '.join(sorted(strange))}, which take no mask of branches")
    config.vocab_size -= predictors
    config._attn_implementation = "sdpa"  # whose masks are boolean
    return config
