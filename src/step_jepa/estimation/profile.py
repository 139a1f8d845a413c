"""A training step without its numbers: what one process holds, by part, from moment to moment."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from step_jepa.batches.batch import Batch, row_count, tokens_read
from step_jepa.errors import UserError, library_refusals
from step_jepa.estimation.ledger import Ledger, Moment, make_fake
from step_jepa.estimation.quantised import as_quantised, saved
from step_jepa.models.builtin import resolve
from step_jepa.models.lm_head import assume_agreement
from step_jepa.models.loading import load_tokenizer, random_network, with_adapter
from step_jepa.training.config import RepresentationConfig
from step_jepa.training.trainer import RepresentationTrainer
from step_jepa.training.validation import validate

ADAPTER_FILE = "adapter_config.json"
MOST_BATCHES = 1000  # among which the largest is looked for


@dataclass
class Profile:
    """What one process holds where nothing is divided, in bytes.

    parameters, predictors   the model's, and those of predictor tokens and head
    trained                  the part of both that has gradients
    layer, root              of parameters, the largest layer, and what is in none
    optimizer                states
    target_encoder           the slow copy that reads targets
    moments                  of a training step
    rows, tokens             of the micro-batch that it is taken on
    adapter                  whether only one is trained
    itemsize                 bytes of a number as it is computed with
    wide                     how much larger a number is as it is kept
    """

    parameters: int
    predictors: int
    trained: int
    layer: int
    root: int
    optimizer: int
    target_encoder: int
    moments: list[Moment]
    rows: int
    tokens: int
    adapter: bool
    itemsize: int
    wide: int

    @property
    def wide_trained(self) -> int:
        """The same of what has gradients: an adapter is in float32 as it is."""
        return 1 if self.adapter else self.wide


class _Trainer(RepresentationTrainer):
    """Of a model without numbers: nothing is moved, and nothing can be tried out."""

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        pass

    def _training_rows(self, data: Any) -> Any:
        vars(self.representation)["check_attention"] = lambda rows: None
        self.representation.forward.entropy_filter = None  # which pairs are kept depends on numbers: all are taken
        for objective in self.representation.objectives:
            objective.entropy_filter = None
        return super()._training_rows(data)

    def _set_up_jepa_term(self) -> None:
        vars(self.jepa.state)["to"] = lambda device: None
        super()._set_up_jepa_term()

    def _balance(self, lm: Tensor, jepa: Tensor) -> None:
        with suppress(DataDependentOutputException):  # both gradients are there by then
            super()._balance(lm, jepa)


def trainer_without_numbers(
    model_name: str,
    train_file: str,
    config: RepresentationConfig,
    peft_config: PeftConfig | None,
    *,
    quantised: bool = False,
    dtype: torch.dtype | None = None,
) -> RepresentationTrainer:
    """A run's trainer, whose model is made from its configuration and has no weights.

    Args:
        model_name: hub id, folder, or built-in.
        train_file: its rows.
        config: of the run; held-out rows are left out of it.
        peft_config: of an adapter.
        quantised: whether the model is loaded in 4 bits.
        dtype: that parameters are computed with, if not their own.

    Raises:
        UserError: as the run would, before it starts.
    """
    validate(config, adapter=peft_config is not None, quantised=quantised)
    name = resolve(model_name)
    tokenizer = load_tokenizer(name, plain=config.plain, template=config)
    network = _network(name, tokenizer, config, peft_config, quantised=quantised, dtype=dtype)
    config.eval_strategy, config.push_to_hub = "no", False
    config.pretrain, config.config_overrides = False, None  # the network is made so
    return _Trainer(network, config, train_file, processing_class=tokenizer)


def profile(trainer: RepresentationTrainer, *, wide: int = 1) -> Profile:
    """Of a training step on the largest micro-batch of the first epoch, with the JEPA term.

    Args:
        trainer: with or without numbers.
        wide: how much larger parameters are kept than they are computed with.
    """
    trainer.args.jepa_ratio = 1.0
    batch, held = _largest_batch(trainer), _held(trainer)
    moments = _moments(trainer, batch, chain(*held.values()))
    model, sizes = trainer.model, {name: _bytes(tensors) for name, tensors in held.items()}
    sizes["parameters"] -= saved(model)
    layer, layers = _layers(model)
    return Profile(
        **sizes,
        trained=_bytes(parameter for parameter in model.parameters() if parameter.requires_grad),
        layer=layer,
        root=sizes["parameters"] - layers,
        moments=moments,
        rows=row_count(batch),
        tokens=int(tokens_read(batch)),
        adapter=isinstance(model, PeftModel),
        itemsize=model.get_input_embeddings().weight.dtype.itemsize,
        wide=wide,
    )


def _network(
    name: str, tokenizer: Any, config: Any, peft_config: Any, *, quantised: bool, dtype: torch.dtype | None
) -> Any:
    """The model, from its configuration."""
    overrides = (config.config_overrides or {}) if config.pretrain else {}
    options = {**(config.model_init_kwargs or {}), **({} if dtype is None else {"dtype": dtype})}
    if Path(name, ADAPTER_FILE).exists():
        name = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
    with torch.device("meta"):
        network = random_network(name, tokenizer, overrides, options, config.seed)
        if quantised:
            network = as_quantised(network)
        if peft_config is not None:
            network = with_adapter(network, peft_config)
    make_fake(network)
    assume_agreement(network)
    return network


def _largest_batch(trainer: RepresentationTrainer) -> Batch:
    steps = trainer.args.max_steps * trainer.args.gradient_accumulation_steps
    batches = islice(trainer.get_train_dataloader(), min(steps, MOST_BATCHES) if steps > 0 else MOST_BATCHES)
    return max(batches, key=lambda batch: batch["input_ids"].numel())


def _held(trainer: RepresentationTrainer) -> dict[str, list[Tensor]]:
    """What stays in memory, by part."""
    model = trainer.model
    target_encoder = trainer.representation.forward.target_encoder
    ours = [module for name in ("predictor_tokens", "predictor_head") if (module := getattr(model, name, None))]
    predictors = [tensor for module in ours for tensor in module.parameters()]
    known = {id(tensor) for tensor in predictors}
    return {
        "parameters": [each for each in chain(model.parameters(), model.buffers()) if id(each) not in known],
        "predictors": predictors,
        "optimizer": _optimizer_states(trainer),
        "target_encoder": [] if target_encoder is None else list(target_encoder.buffers()),
    }


def _optimizer_states(trainer: RepresentationTrainer) -> list[Tensor]:
    """Made by a step without gradients, which moves nothing where there is no weight decay."""
    with library_refusals(ValueError, ImportError, RuntimeError):
        optimizer = trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    values = chain.from_iterable(states.values() for states in optimizer.state.values())
    return [value for value in values if isinstance(value, Tensor)]


def _moments(trainer: RepresentationTrainer, batch: Batch, held: Iterable[Tensor]) -> list[Moment]:
    """Of a step on this micro-batch, and on one more where gradients are accumulated."""
    model = trainer.accelerator.prepare_model(trainer.model, device_placement=False)
    if trainer.args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    count = trainer.current_gradient_accumulation_steps = min(2, trainer.args.gradient_accumulation_steps)
    batches, items = trainer.get_batch_samples(iter([batch] * count), count, trainer.args.device)
    ledger = Ledger(trainer.model.parameters(), [*held, *trainer.jepa.state.buffers(), *batch.values()])
    try:
        with ledger:
            for each in batches:
                trainer.training_step(model, each, items)
    except RuntimeError as error:  # what depends on numbers, and operations that know no fake tensors
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(f"--estimate cannot follow this model without its numbers ({reason})") from error
    return ledger.moments


def _layers(model: Any) -> tuple[int, int]:
    """Bytes of the largest layer, and of all layers: what FSDP2 and ZeRO-3 gather one by one."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    sizes = [_bytes(module.parameters()) for module in model.modules() if type(module).__name__ in kinds]
    return max(sizes, default=0), sum(sizes)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
