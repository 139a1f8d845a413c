"""The inspected example: its row as a run with the same options would plan it, and who sees whom there.

No weights are read, only a tokenizer and a model's configuration.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from peft import PeftConfig
from torch import Tensor, tensor
from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from step_jepa import standalone, terminal
from step_jepa.batches import attention
from step_jepa.data.dataset import load_and_prepare_dataset
from step_jepa.data.encoding import Encoding
from step_jepa.data.example import Example
from step_jepa.data.offsets import pieces
from step_jepa.data.reading_options import ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.inspection.sample import MOST_TOKENS, Sample, sample_of
from step_jepa.models.builtin import resolve
from step_jepa.models.loading import load_tokenizer
from step_jepa.objectives import OBJECTIVES
from step_jepa.objectives.planner import Planner
from step_jepa.objectives.registry import objectives_that_read
from step_jepa.objectives.step_jepa import Pairs
from step_jepa.options import Needs, check_bounds, check_needs, option
from step_jepa.plurals import counted
from step_jepa.rows.branches import TRUNK, Row
from step_jepa.rows.regions import Region, in_place_regions, row_regions
from step_jepa.training.jepa_options import StepJEPAOptions, with_registered_options

SEED = 42  # of a run that gives none
_CHOOSING = Needs("an --objective that has pairs to choose", lambda args: "pairs" in read_options(args.objective))
_PREDICTING = Needs("an --objective with predictors", lambda args: "predictors" in read_options(args.objective))


@dataclass
class RowArguments(TemplateOptions, ReadingOptions):
    """Which example, and how its row is planned. Raises UserError for a number out of range."""

    model_name: str = option(help="Hub id, folder, or smollm2; it may hold only a tokenizer.", is_path=True)
    train_file: str = option(help="Prepared records, or whatever `step-jepa prepare` reads.", is_path=True)
    index: int = option(0, help="Which example, counted from 0.", least=0)
    objective: str = option("step_jepa", help=f"One of {', '.join(OBJECTIVES)}, or none.")
    pairs: Pairs = option("all", help="Which pairs of steps: the first, all, or some at random.", needs=_CHOOSING)
    predictors: int = option(1, help="K, the predictor tokens.", least=0, needs=_PREDICTING)
    plain: bool = option(False, help="No chat framing, as --plain of train.")
    max_length: int | None = option(None, help="Cut rows to whole steps within this many tokens.", least=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.objective in (*OBJECTIVES, "none"):
            check_needs(self)


def read_options(objective: str) -> list[str]:
    """Of pairs and predictors, those that the objective reads."""
    return [name for name in ("pairs", "predictors") if objective in objectives_that_read(name)]


@dataclass(frozen=True)
class Visibility:
    """Who sees whom among L tokens of one row.

    Attributes:
        regions: what tiles the tokens, in order.
        layers: by kind of layer, bool (L, L), [q, k]: whether token q sees token k.
        tokens: their indices in the row.
        note: what they are a sample of; empty where they are the row.
    """

    regions: list[Region]
    layers: dict[str, Tensor]
    tokens: list[int]
    note: str = ""


class Mask(NamedTuple):
    """The mask of one kind of layer, for people.

    Attributes:
        title: the implementation that it is of, and the kind of layer where the model has others.
        regions: what tiles the row, in order.
        seen: bool (L, L), [q, k]: whether token q sees token k.
    """

    title: str
    regions: list[Region]
    seen: Tensor


@dataclass(frozen=True)
class InspectedExample:
    """One example, the row that training plans from it, and who sees whom in either implementation.

    Attributes:
        token_texts: the text of each token of the row.
        objective: the name of the objective that the row is planned for; none for plain fine-tuning.
        regions: what tiles the row.
        visibility: of the row, trunk and branches; of a sample of its tokens, where they are many.
        in_place: of the standalone implementation's second pass; None where it has no pair, or a long row.
    """

    example: Example
    row: Row
    token_texts: list[str]
    objective: str
    regions: list[Region]
    visibility: Visibility
    in_place: Visibility | None

    def masks(self) -> Iterator[Mask]:
        """Those of every kind of layer, in either implementation."""
        single_kind = list(self.visibility.layers) == ["full_attention"]
        note = f" ({self.visibility.note})" if self.visibility.note else ""
        for kind, seen in self.visibility.layers.items():
            of_layers = "" if single_kind else f", {kind}"
            yield Mask(f"trunk and branches{of_layers}{note}", self.visibility.regions, seen)
            if self.in_place:
                yield Mask(f"in place (standalone){of_layers}", self.in_place.regions, self.in_place.layers[kind])


class Inspector:
    """The tokenizer, configuration and planner of a run that is never started. Raises UserError.

    Attributes:
        predictor_ids: of the predictor tokens; empty where the objective predicts nothing.
    """

    def __init__(self, args: RowArguments) -> None:
        self.args = args
        self.tokenizer = load_tokenizer(args.model_name, plain=args.plain, template=args)
        self.config = _model_config(args.model_name, len(self.tokenizer))
        options = with_registered_options(StepJEPAOptions)(
            objective=[args.objective],
            plain=args.plain,
            **{name: getattr(args, name) for name in read_options(args.objective)},
        )
        kinds = [OBJECTIVES[name] for name, _ in options.objectives]
        predicts = any(kind.predicts for kind in kinds)
        first_id = self.config.vocab_size
        self.predictor_ids = range(first_id, first_id + args.predictors if predicts else first_id)
        self.planner = Planner([kind.from_config(options, self.predictor_ids) for kind in kinds], SEED)
        self.encoding = Encoding(turns=any(kind.turns for kind in kinds))

    def examples(self, limit: int | None = None) -> Sequence[Example]:
        """Those of the first `limit` records that can be used."""
        data = load_and_prepare_dataset(
            self.args.train_file,
            self.tokenizer,
            max_length=self.args.max_length,
            limit=limit,
            encoding=self.encoding,
            reading=self.args,
        )
        terminal.note(f"{self.args.train_file}: {data}")
        return data.examples

    def inspect(self, example: Example) -> InspectedExample:
        """The row of an example, as the first epoch of a run has it."""
        row = self.planner(example)
        regions = row_regions(example, row)
        visibility = self._visibility(row, sample_of(regions))
        names = {token: f"<|predictor_{number}|>" for number, token in enumerate(self.predictor_ids, 1)}
        return InspectedExample(
            example=example,
            row=row,
            token_texts=pieces(self.tokenizer, row.input_ids, names),
            objective=self.args.objective,
            regions=regions,
            visibility=visibility,
            in_place=self._in_place(example, row, list(visibility.layers)),
        )

    def _visibility(self, row: Row, sample: Sample) -> Visibility:
        trunk = [token for token in sample.tokens if row.branch[token] == TRUNK]
        branch = [row.branch[token] for token in sample.tokens]
        # So many of the chosen tokens stand within the prefix.
        visible = [bisect_left(trunk, row.visible_length[token]) for token in sample.tokens]
        positions = [row.position_ids[token] for token in sample.tokens]
        masks = attention.seen(self.config, tensor([branch]), tensor([visible]), tensor([positions]))
        layers = {kind: mask[0] for kind, mask in masks.items()}
        return Visibility(sample.regions, layers, sample.tokens, sample.note)

    def _in_place(self, example: Example, row: Row, kinds: Sequence[str]) -> Visibility | None:
        """By the standalone implementation's own functions, which know Step-JEPA and no empty step."""
        if self.args.objective != "step_jepa" or any(start == stop for start, stop in example.steps):
            return None
        without_pair = all(pair.step != 1 for pair in row.pairs)
        isolated = standalone.Example(example.input_ids, example.labels, example.steps, skip_pair=without_pair)
        batch = standalone.collate([isolated], pad_id=0)
        if not batch["second_step"].any() or example.steps[1][1] > MOST_TOKENS:
            return None
        predictors = len(self.predictor_ids)
        rows = standalone.second_rows(batch, self.config.vocab_size, predictors)
        masks = standalone.attention_masks(self.config, rows["sees"], rows["position_ids"])
        # One mask alone serves every kind of layer.
        by_kind = masks if isinstance(masks, dict) else dict.fromkeys(kinds, masks)
        layers = {kind: by_kind[kind][0, 0] for kind in kinds}
        regions = in_place_regions(example, predictors)
        return Visibility(regions, layers, list(range(regions[-1].indices.stop)))


def inspect_example(args: RowArguments) -> InspectedExample:
    """The example that the arguments name. Raises UserError where there is none."""
    inspector = Inspector(args)
    # With max_length some of the first records may be left out, so that more have to be read.
    limit = None if args.max_length else args.index + 1
    return inspector.inspect(example_at(args.index, inspector.examples(limit), args.train_file))


def example_at(index: int, examples: Sequence[Example], file: str) -> Example:
    """The example of a file with that index. Raises UserError where there is none."""
    if index >= len(examples):
        count = len(examples)
        raise UserError(f"--index {index}: {file} has {counted(count, 'example')}: give 0 to {count - 1}")
    return examples[index]


def _model_config(name: str, tokens: int) -> PretrainedConfig:
    """The model's configuration; for a folder with a tokenizer alone that of a model with as many rows and no window.
    Its vocab_size is V, the rows of the base model."""
    saved = _saved_config(name)
    config = LlamaConfig(vocab_size=tokens) if saved is None else saved
    predictors = getattr(config, "predictors", 0)
    config = config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(f"{name} has layers of type {', '.join(sorted(unknown))}, which take no mask of branches")
    config.vocab_size -= predictors
    config._attn_implementation = "sdpa"  # its masks are boolean
    return config


def _saved_config(name: str) -> PretrainedConfig | None:
    """The configuration of a model, or of an adapter's base; None where there is none. Raises UserError."""
    folder = resolve(name)
    try:
        if Path(folder, "adapter_config.json").exists():
            folder = PeftConfig.from_pretrained(folder).base_model_name_or_path
        saved, _ = PretrainedConfig.get_config_dict(folder)
        return AutoConfig.from_pretrained(folder) if "model_type" in saved else None
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"cannot read the configuration of {name!r}: give a folder, a hub id, or smollm2 ({reason})"
        ) from error
