"""Options of a run that would give something else than they say, refused with what to do."""

from typing import Any

from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES


def refuse(args: Any, *, adapter: bool, quantised: bool, predicting: bool) -> None:
    """Raises UserError. adapter: under LoRA. quantised: in 4 bits. predicting: an objective has predictor tokens."""
    refused = {
        "push_to_hub would upload the rows of a checkpoint: push the exported folder": args.push_to_hub,
        "train_sampling_strategy must be random or sequential": args.train_sampling_strategy
        not in ("random", "sequential"),
        "eval_do_concat_batches must stay True: figures are sums over rows": not args.eval_do_concat_batches,
        "several devices in one process: start with torchrun, or show it one device": args.n_gpu > 1,
        "a quantised model cannot be merged without loss: add --keep_adapter": quantised and not args.keep_adapter,
        "--pretrain makes random weights, which an adapter would leave as they are: leave out --lora": args.pretrain
        and adapter,
        "FSDP does not go with undivided_loss: leave it out of --compat": args.fsdp
        and "undivided_loss" in args.switches,
    }
    if args.objectives:
        refused |= _beside_a_jepa_term(args) | _of_a_jepa_term(args, adapter=adapter, predicting=predicting)
    for reason, given in refused.items():
        if given:
            raise UserError(reason)


def _beside_a_jepa_term(args: Any) -> dict[str, Any]:
    return {
        "label_smoothing_factor has no meaning beside a JEPA loss: leave it out": args.label_smoothing_factor,
        "neftune_noise_alpha would put noise on isolated views: leave it out": args.neftune_noise_alpha,
        "FSDP cannot export without the predictor rows: use DDP, or objective none": args.fsdp,
        "DeepSpeed cannot export without the predictor rows: use DDP, or objective none": args.deepspeed,
    }


def _of_a_jepa_term(args: Any, *, adapter: bool, predicting: bool) -> dict[str, Any]:
    contrasted = [name for name, _ in args.objectives if OBJECTIVES[name].loss is None]  # those that --loss is for
    single = all(name == "llm_jepa" or args.pairs == "first" for name in contrasted)  # one pair an example
    alone = args.per_device_train_batch_size * args.world_size == 1
    contrastive = args.loss.endswith("infonce") and bool(contrasted)
    return {
        "--target_encoder ema of an adapter is lost when the adapter is merged on save: add --keep_adapter": (
            args.target_encoder == "ema" and adapter and not args.keep_adapter
        ),
        "--predictor_head linear is for objectives with predictor tokens, step_jepa and llm_jepa: leave it out": (
            args.predictor_head == "linear" and not predicting
        ),
        f"--loss {args.loss} has no negatives with one pair in a batch: use a larger one, or --pairs all": (
            contrastive and alone and single
        ),
        "--negatives others has none with one example in a batch: use a larger one": (
            contrastive and alone and args.negatives == "others"
        ),
        "--negatives same needs several pairs of an example: use --objective step_jepa --pairs all": (
            contrastive and single and args.negatives == "same"
        ),
    }
