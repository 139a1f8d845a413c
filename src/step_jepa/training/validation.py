"""Options of a run that would give something else than they say, refused with what to do."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.utils import DistributedType

from step_jepa.errors import UserError
from step_jepa.losses import LOSSES
from step_jepa.objectives import OBJECTIVES


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
    if asks_for_fsdp(args) and _loads_on_one_rank(args):
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


def asks_for_fsdp(args: Any) -> bool:
    """Whether options of the run or `accelerate launch` ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def asks_for_deepspeed(args: Any) -> bool:
    """Whether options of the run or `accelerate launch` ask for DeepSpeed."""
    return bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def reads_base_entropies(args: Any) -> bool:
    """Whether the base model reads all rows before training, to say which pairs are planned."""
    return getattr(args, "entropy_of", "model") == "base"


def _loads_on_one_rank(args: Any) -> bool:
    name = "cpu_ram_efficient_loading"
    asked = ((args.fsdp_config or {}).get(name), os.environ.get(f"FSDP_{name.upper()}"))
    return any(str(value).lower() == "true" for value in asked)


def check_sharding(args: Any, accelerator: Any, model: Any) -> None:
    """Raises UserError where FSDP or DeepSpeed is asked for, and the accelerator does something else, or cannot shard
    the model."""
    if asks_for_deepspeed(args):
        _check_deepspeed(args, accelerator)
    if not asks_for_fsdp(args):
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(
            f"FSDP shards a model over accelerators started by torchrun or accelerate launch, not on {args.device.type}"
            " here (accelerate would run DDP without a word): leave out --fsdp"
        )
    if not accelerator.is_fsdp2:
        raise UserError("FSDP1 is not served: give fsdp_version: 2 in the config of accelerate launch")
    kinds = {str(value.dtype).removeprefix("torch.") for value in model.parameters() if value.requires_grad}
    if len(kinds) > 1 and accelerator.mixed_precision == "no":
        raise UserError(f"FSDP trains parameters of one dtype, not of {' and '.join(sorted(kinds))}: add --bf16 True")


def _check_deepspeed(args: Any, accelerator: Any) -> None:
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError("accelerate would run DDP in place of DeepSpeed without a word: leave out --use_cpu")
    averaged = args.target_encoder == "ema" or args.control == "frozen_target"
    if accelerator.state.deepspeed_plugin.zero_stage == 3 and args.objectives and averaged:
        raise UserError("ZeRO-3 has no whole parameters to put a target encoder's in place of: use ZeRO-2 or FSDP2")


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


def check_row_count(args: Any, count: int) -> None:
    """Raises UserError where dataloader_drop_last would drop all of so many training rows."""
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and count < batch:
        raise UserError(f"--dataloader_drop_last drops all {count} rows, as a batch has {batch}: leave it out")


def check_negatives(args: Any, pairs_of_examples: Sequence[Sequence[int]]) -> None:
    """Whether a contrastive loss has anything to contrast with, counted on the rows as they are planned.

    Args:
        args: of the run.
        pairs_of_examples: for every objective that --loss is for, the number of pairs of each row.

    Raises:
        UserError: where it would train on nothing.
    """
    if not LOSSES[args.loss].contrastive or not pairs_of_examples:
        return
    single = all(max(counts, default=0) <= 1 for counts in pairs_of_examples)
    if min(args.per_device_train_batch_size * args.world_size, len(pairs_of_examples[0])) == 1:
        if single:
            raise UserError(
                f"--loss {args.loss} has no negatives with one pair in a batch: use a larger one, or --pairs all"
            )
        if args.negatives == "others":
            raise UserError("--negatives others has none with one example in a batch: use a larger one")
    if single and args.negatives == "same":
        raise UserError("--negatives same needs several pairs of an example: use --objective step_jepa --pairs all")
