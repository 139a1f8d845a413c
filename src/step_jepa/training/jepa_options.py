"""The options of the JEPA term, for whoever reads views: of training, evaluation and every other command."""

import math
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import Field, dataclass, fields, make_dataclass
from typing import Any, Literal, TypeVar, get_type_hints

from step_jepa.batches.views import PredictorHead, TargetReader
from step_jepa.data.encoding import TrainTurns
from step_jepa.data.reading_options import ReadArguments, ReadingOptions
from step_jepa.data.template import TemplateOptions
from step_jepa.errors import UserError
from step_jepa.losses import LOSSES
from step_jepa.losses.distances import Negatives
from step_jepa.losses.regularisers import Regulariser
from step_jepa.objectives import OBJECTIVES
from step_jepa.objectives.llm_jepa import TurnOptions
from step_jepa.objectives.registry import objectives_that_read
from step_jepa.objectives.step_jepa import StepOptions
from step_jepa.options import Needs, changed, check_bounds, check_needs, facts, option, option_fields
from step_jepa.plurals import counted
from step_jepa.rows.controls import RANDOM_CONTROLS, Control

# Deviations of the published LLM-JEPA code (docs/from-llm-jepa.md), each to be set alone; "llm_jepa" means all of them.
COMPAT = {
    "train_all": "labels on everything but padding",
    "unlabelled_end": "tokens that equal the pad token carry no label, so that with pad = eos the end is never learned",
    "frozen_predictors": "under LoRA the predictor tokens stay as they were drawn",
    "undivided_loss": "every micro-batch weighs as much as a whole step, so gradients grow with accumulation",
    "double_bos": "the chat template's text gets the tokenizer's own special tokens once more",
}
AttentionPath = Literal["parts", "dense"]
_CONTRASTIVE = Needs("--loss infonce", lambda config: LOSSES[config.loss].contrastive)
_REGULARISED = Needs("--regulariser vicreg or sigreg", lambda config: config.regulariser != "none")
_AVERAGED = Needs("--target_encoder ema", lambda config: config.target_encoder == "ema")
_BALANCED = Needs("--lbd auto", lambda config: config.lbd == "auto")
Options = TypeVar("Options")


@dataclass
class RepresentationOptions(TurnOptions, TemplateOptions, ReadingOptions):
    """The options of the JEPA term that all objectives share, and LLM-JEPA's own."""

    lbd: float | str = option(
        0.1,
        help="Weight of the JEPA loss; with 0 nothing is added to plain SFT. auto: see lbd_ratio.",
        group="JEPA term",
        least=0,
        standalone=True,
        of_training=True,
    )
    lbd_ratio: float = option(
        0.1,
        help="With lbd auto: gradient norm of the JEPA term, as a share of the language model's.",
        group="JEPA term",
        more_than=0,
        needs=_BALANCED,
        of_training=True,
    )
    gamma: float = option(
        1.0,
        help="Weight of the language-model loss.",
        group="JEPA term",
        least=0,
        of_jepa_term=True,
        standalone=True,
        of_training=True,
    )
    predictors: int = option(
        1,
        help="K, the predictor tokens; with 0 the state of the last text token predicts.",
        group="Views",
        least=0,
        standalone=True,
    )
    predictor_head: PredictorHead = option(
        "identity",
        help="What the predicted view goes through: nothing, or a linear map.",
        group="Views",
        of_jepa_term=True,
        changes_views=True,
    )
    loss: str = option(
        "cosine",
        help=f"Distance of the views, one of {', '.join(LOSSES)}; infonce wants many pairs per micro-batch.",
        group="JEPA term",
        choices=LOSSES,
        of_jepa_term=True,
        standalone=True,
    )
    temperature: float = option(
        0.07, help="Temperature of infonce.", group="JEPA term", more_than=0, needs=_CONTRASTIVE
    )
    negatives: Negatives = option(
        "both",
        help="infonce: negatives of other problems, of the same problem, or both.",
        group="JEPA term",
        needs=_CONTRASTIVE,
    )
    regulariser: Regulariser = option(
        "none", help="Against collapse, beside the loss.", group="JEPA term", of_jepa_term=True
    )
    regulariser_weight: float = option(
        0.1, help="Its weight, beside the loss's 1.", group="JEPA term", least=0, needs=_REGULARISED
    )
    target_encoder: TargetReader = option(
        "plain",
        help="Who reads the target: the model, the model without gradient, or its moving average.",
        group="JEPA term",
        of_jepa_term=True,
        of_training=True,
    )
    ema_decay: float = option(
        0.99,
        help="Decay of that average, per optimisation step.",
        group="JEPA term",
        least=0,
        most=1,
        needs=_AVERAGED,
        of_training=True,
    )
    layer: int = option(
        -1,
        help="Layer of the views: -1 the last, after the final norm; others are read before it.",
        group="Views",
        changes_views=True,
    )
    control: Control = option(
        "none",
        help="What takes the place of the next step in training.",
        group="Controls",
        of_jepa_term=True,
        of_training=True,
    )
    redraw: bool = option(False, help="Draw the control's random choices anew in every epoch.", group="Controls")
    jepa_ratio: float = option(
        1.0,
        help="Share of optimisation steps that carry the JEPA loss; others are plain SFT.",
        group="JEPA term",
        least=0,
        most=1,
        of_jepa_term=True,
        of_training=True,
    )
    same_flop: bool = option(
        False,
        help="Train so much shorter as rows with branches are longer than rows without.",
        group="Controls",
        of_jepa_term=True,
        of_training=True,
    )
    plain: bool = option(
        False,
        help="No chat framing: contents by line breaks, views of contents alone.",
        group="Data",
        changes_views=True,
    )
    train_all: bool = option(False, help="Language-model loss on the prompt too.", group="Data")
    train_turns: TrainTurns = option(
        "last",
        help="Turns of the assistant that the language-model loss is taken on; steps are those of the last.",
        group="Data",
    )
    compat: list[str] = option(
        default_factory=list,
        help=f"Train as published code does: llm_jepa, or some of {', '.join(COMPAT)}.",
        group="Controls",
        of_training=True,
    )
    max_length: int | None = option(
        1024,
        help="Longest trunk in tokens; longer rows keep whole steps only.",
        group="Data",
        least=1,
        standalone=True,
        of_training=True,
    )
    attention: AttentionPath = option(
        "parts",
        help="parts: rows lie one after another without padding, and attention needs no mask of all their tokens. "
        "dense: padded rows and a dense mask, which models that cannot take the other fall back to.",
        group="Speed",
        free_on_resume=True,
        of_training=True,
    )
    max_tokens_per_batch: int | None = option(
        None,
        help="Put whole rows into a micro-batch up to so many tokens, branches included, in place of "
        "per_device_train_batch_size of them. Rows are measured in the first epoch.",
        group="Speed",
        least=1,
        of_training=True,
    )
    padding: bool = option(
        False,
        help="Pad rows to the longest of the batch, as Trainer does.",
        group="Speed",
        free_on_resume=True,
        of_training=True,
    )

    def __post_init__(self) -> None:
        self._check_values()
        for reason in self._contradictions():
            raise UserError(reason)
        check_needs(self)
        if self.objectives:
            self._check_control()
        else:
            self._check_plain()
        self.train_all |= "train_all" in self.switches

    @property
    def objectives(self) -> list[tuple[str, float]]:
        """(name, weight) of each objective; none for plain fine-tuning."""
        return [("llm_jepa", 1.0)] if self.lbd else []

    @property
    def switches(self) -> set[str]:
        """Names in COMPAT that are on."""
        return set(COMPAT) if "llm_jepa" in self.compat else set(self.compat)

    @property
    def reason_to_pad(self) -> str | None:
        """Why rows are padded whatever the model can take; None where they need not be."""
        if self.padding:
            return "--padding"
        return "--attention dense" if self.attention == "dense" else None

    def setup_arguments(self) -> dict[str, Any]:
        """Those of `setup_model_and_tokenizer` that follow from these options."""
        predicting = any(OBJECTIVES[name].predicts for name, _ in self.objectives)
        return {
            "predictors": self.predictors if predicting else None,
            "train_predictors": "frozen_predictors" not in self.switches,
            "predictor_head": self.predictor_head if predicting else "identity",
            "plain": self.plain,
            "template": self,
        }

    def _check_values(self) -> None:
        if isinstance(self.lbd, str) and self.lbd != "auto":
            raise UserError(f"lbd = {self.lbd}: give a number, or auto")
        check_bounds(self)
        ReadArguments.of(self)
        unknown = [name for name in self.compat if name not in COMPAT and name != "llm_jepa"]
        if unknown:
            raise UserError(f"compat = {unknown[0]}: give llm_jepa, or some of {', '.join(COMPAT)}")

    def _contradictions(self) -> Iterator[str]:
        """Why these options cannot be given together."""
        if self.control == "frozen_target" and self.target_encoder != "plain":
            yield "--control frozen_target reads targets by the base model: leave out --target_encoder"
        if self.control == "random_target" and self.target_encoder != "plain":
            yield "--control random_target reads no target: leave out --target_encoder"
        if self.lbd == "auto" and not self.gamma:
            yield "--lbd auto balances against the language model's gradient: give --gamma more than 0"
        if self.lbd == "auto" and self.control == "no_loss":
            yield "--control no_loss has no gradient to balance: give --lbd a number"
        if self.train_turns == "all" and (self.train_all or "train_all" in self.switches):
            yield "--train_all trains on all that a row has: leave out --train_turns"
        if self.redraw and self.control not in RANDOM_CONTROLS:
            yield "--redraw redraws a control's choices: add --control, or leave it out"

    def _check_control(self) -> None:
        chosen = {name: OBJECTIVES[name] for name, _ in self.objectives}
        for name, objective in chosen.items():
            if self.control not in ("none", "no_loss", *objective.controls):
                known = ", ".join(sorted({*objective.controls, "no_loss"}))
                raise UserError(f"--control {self.control} means nothing for the objective {name}: use one of {known}")
        if self.loss != "cosine" and all(objective.loss for objective in chosen.values()):
            names = " ".join(chosen)
            raise UserError(f"--loss {self.loss} is not read by {names}, which have their own: leave it out")

    def _check_plain(self) -> None:
        """Whoever gives an option of the JEPA term in plain fine-tuning expects something of it."""
        for each in changed(self):
            if needs_jepa_term(each):
                raise UserError(
                    f"--{each.name} {getattr(self, each.name)} needs a JEPA term: give --lbd more than 0 and an "
                    "--objective, or leave it out"
                )


def needs_jepa_term(each: Field[Any]) -> bool:
    """Whether plain fine-tuning does not read the option. Of those that say how views are read, `pairing` makes use."""
    known = facts(each)
    return known.of_jepa_term or bool(objectives_that_read(each.name) and not known.changes_views)


def is_of_others(each: Field[Any], chosen: Iterable[str]) -> bool:
    """Whether the option is of objectives that are not among those chosen."""
    homes = objectives_that_read(each.name)
    return bool(homes) and set(homes).isdisjoint(chosen)


@dataclass
class StepJEPAOptions(StepOptions, RepresentationOptions):
    """The options of the JEPA term, of every objective."""

    objective: list[str] = option(
        default_factory=lambda: ["step_jepa"],
        help=f"One or more of {', '.join(OBJECTIVES)}, or none for plain SFT.",
        group="JEPA term",
        standalone=True,
    )
    weights: list[float] = option(
        default_factory=list,
        help="Weight of each objective within the JEPA loss; 1 each by default.",
        group="JEPA term",
    )

    @property
    def objectives(self) -> list[tuple[str, float]]:
        if not self.lbd or self.objective == ["none"]:
            return []
        return list(zip(self.objective, self.weights or [1.0] * len(self.objective), strict=True))

    def _check_values(self) -> None:
        if isinstance(self.objective, str):
            self.objective = [self.objective]
        names = " ".join(self.objective)
        unknown = [name for name in self.objective if name not in (*OBJECTIVES, "none")]
        if unknown or not self.objective:
            raise UserError(f"objective = {' '.join(unknown)}: give some of {', '.join(OBJECTIVES)}, or none")
        if len(set(self.objective)) < len(self.objective) or ("none" in self.objective and len(self.objective) > 1):
            raise UserError(f"objective = {names}: give each once, and none alone")
        if self.weights and len(self.weights) != len(self.objective):
            weights = counted(len(self.weights), "weight")
            raise UserError(f"{weights} for {counted(len(self.objective), 'objective')}: give one each")
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise UserError(f"weights = {' '.join(map(str, self.weights))}: give more than 0 each")
        super()._check_values()

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        chosen = [name for name, _ in self.objectives]
        for each in changed(self) if chosen else []:
            if is_of_others(each, chosen):
                homes = ", ".join(objectives_that_read(each.name))
                yield f"--{each.name} is for the objective {homes}: leave it out"


def with_registered_options(config: type[Options]) -> type[Options]:
    """The dataclass with the options of all objectives that are registered by now, a user's own included."""
    added: list[tuple[str, Any, Field[Any]]] = []
    known = {each.name: each for each in fields(config)}  # type: ignore[arg-type]
    for name, objective in OBJECTIVES.items():
        types = get_type_hints(objective)
        for each in option_fields(objective):
            if each.name not in known:
                added.append((each.name, types[each.name], copy(each)))
            if known.setdefault(each.name, each) is not each:
                raise UserError(f"objective {name}: --{each.name} is there already: give its option another name")
    if not added:
        return config
    # Trainer pickles its arguments, and a class that is made here cannot be found by its name.
    namespace = {"__reduce__": lambda self: (_unpickled, (config, self.__getstate__()))}
    return make_dataclass(config.__name__, added, bases=(config,), namespace=namespace)


def _unpickled(config: type[Options], values: dict[str, Any]) -> Options:
    made = config.__new__(config)
    vars(made).update(values)
    return made
