"""Options of a run that would give something else than they say, refused with what to do."""

from collections.abc import Iterator
from typing import Any

from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES
from step_jepa.training.sharding import asks_for_deepspeed, asks_for_fsdp, loads_on_one_rank


def validate(args: Any, *, adapter: bool, quantised: bool) -> None:
    """What can be seen before the model is loaded.

    Args:
        args: of the run, a RepresentationConfig.
        adapter: whether it trains an adapter.
        quantised: whether the model is in 4 bits.

    Raises:
        UserError: for the first contradiction.
    """
    for reason in _contradictions(args, adapter=adapter, quantised=quantised):
        raise UserError(reason)


def _contradictions(args: Any, *, adapter: bool, quantised: bool) -> Iterator[str]:
    if args.push_to_hub and args.hub_strategy in ("checkpoint", "all_checkpoints"):
        yield f"hub_strategy {args.hub_strategy.value} would upload rows of the data: give every_save or end"
    if args.train_sampling_strategy not in ("random", "sequential"):
        yield "train_sampling_strategy must be random or sequential"
    if args.max_tokens_per_batch and args.train_sampling_strategy != "random":
        yield "--max_tokens_per_batch draws the order of rows by itself: leave out --train_sampling_strategy"
    if not args.eval_do_concat_batches:
        yield "eval_do_concat_batches must stay True: figures are sums over rows"
    if args.n_gpu > 1:
        yield "several devices in one process: start with torchrun, or show it one device"
    if quantised and not args.keep_adapter:
        yield "a quantised model cannot be merged without loss: add --keep_adapter"
    if args.pretrain and adapter:
        yield "--pretrain makes random weights, which an adapter would leave as they are: leave out --lora"
    if asks_for_fsdp(args) and loads_on_one_rank(args):
        yield (
            "fsdp_cpu_ram_efficient_loading leaves all ranks but one without the weights that predictor tokens and "
            "checks are made of: set it to false"
        )
    if asks_for_fsdp(args) and "undivided_loss" in args.switches:
        yield "FSDP does not go with undivided_loss: leave it out of --compat"
    if args.streaming:
        yield from _streamed(args)
    if reads_base_entropies(args) and (asks_for_fsdp(args) or asks_for_deepspeed(args)):
        yield "--entropy_of base reads all rows before the model is sharded, whole: use --entropy_of model"
    if args.objectives:
        yield from _beside_a_jepa_term(args, adapter=adapter)


def reads_base_entropies(args: Any) -> bool:
    """Whether the base model reads all rows before training, to say which pairs are planned."""
    return getattr(args, "entropy_of", "model") == "base"


def check_stream(args: Any) -> None:
    """Raises UserError for options of a run that a stream cannot serve."""
    for reason in _streamed(args):
        raise UserError(reason)


def _streamed(args: Any) -> Iterator[str]:
    """What would have to count the data, or to read it in another order."""
    if args.max_steps <= 0:
        yield "a stream is not counted, so it has no epochs: give --max_steps"
    if args.same_flop:
        yield "--same_flop counts the tokens of all rows, which a stream does not have: leave one out"
    if args.control == "shuffled_pairs":
        yield "--control shuffled_pairs draws from all rows, which a stream does not have: leave one out"
    if args.max_tokens_per_batch:
        yield "--max_tokens_per_batch measures all rows, which a stream does not have: leave one out"
    if reads_base_entropies(args):
        yield "--entropy_of base reads all rows before training, which a stream does not have: use --entropy_of model"
    if args.dataloader_num_workers > 1:
        yield "a stream is read by one process: give --dataloader_num_workers 0 or 1"


def _beside_a_jepa_term(args: Any, *, adapter: bool) -> Iterator[str]:
    checkpointing = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs or {}
    if checkpointing.get("use_reentrant") and (args.lbd == "auto" or args.diagnostics_steps):
        yield (
            "use_reentrant hides the gradients of single losses, which --lbd auto and diagnostics measure: leave it "
            "out, or give --lbd a number and --diagnostics_steps 0"
        )
    if args.label_smoothing_factor:
        yield "label_smoothing_factor has no meaning beside a JEPA loss: leave it out"
    if args.neftune_noise_alpha:
        yield "neftune_noise_alpha would put noise on isolated views: leave it out"
    if args.lbd == "auto" and (asks_for_fsdp(args) or asks_for_deepspeed(args)):
        yield (
            "--lbd auto measures gradients of single losses, which FSDP and DeepSpeed do not show: give --lbd a number"
        )
    if args.target_encoder == "ema" and adapter and not args.keep_adapter:
        yield "--target_encoder ema of an adapter is lost when the adapter is merged on save: add --keep_adapter"
    if args.predictor_head == "linear" and not any(OBJECTIVES[name].predicts for name, _ in args.objectives):
        yield ("--predictor_head linear is for objectives with predictor tokens, step_jepa and llm_jepa: leave it out")
