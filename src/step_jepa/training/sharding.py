"""What shards a run, if anything does: FSDP2 or DeepSpeed, as accelerate starts them."""

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from transformers.trainer import FSDP_MODEL_NAME

from step_jepa.errors import UserError
from step_jepa.models.sharding import filled, gather_model, is_sharded, skeleton
from step_jepa.training.checkpoints import FULL_PARTS

DEEPSPEED = "DeepSpeed"

logger = logging.getLogger(__name__)


def asks_for_fsdp(args: Any) -> bool:
    """Whether options of the run or `accelerate launch` ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def asks_for_deepspeed(args: Any) -> bool:
    """Whether options of the run or `accelerate launch` ask for DeepSpeed."""
    return bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def loads_on_one_rank(args: Any) -> bool:
    """Whether FSDP would give weights to one rank alone."""
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


class ShardingBackend:
    """Gathers what is divided among ranks, for one of them to write it."""

    def __init__(self, args: Any, accelerator: Any, model: Any) -> None:
        """
        Args:
            args: of the run.
            accelerator: of the run.
            model: before it is sharded.
        """
        self.args, self.accelerator = args, accelerator
        self._deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
        self._fsdp = getattr(accelerator.state, "fsdp_plugin", None)
        self._skeleton = skeleton(model) if self._fsdp is not None or self.zero3 else None

    @property
    def zero3(self) -> bool:
        """Whether DeepSpeed divides the parameters themselves."""
        return self._deepspeed is not None and self._deepspeed.zero_stage == 3

    @property
    def checkpoint_form(self) -> str | None:
        """What checkpoints are saved in: DEEPSPEED, a form of FSDP's, or None where nothing is sharded."""
        if self._deepspeed is not None:
            return DEEPSPEED
        return None if self._fsdp is None else str(self._fsdp.state_dict_type.name)

    def shards(self, model: Any) -> bool:
        """Whether the parameters of the model are divided by now."""
        return is_sharded(model) or self.zero3

    def gathered(self, model: Any, wrapped: Any) -> Any:
        """What is exported of a model whose parameters are divided; all ranks have to call it.

        Args:
            model: as it was given to the trainer.
            wrapped: the same, as DeepSpeed wraps it.

        Returns:
            On a rank that writes the model, on the CPU (with --keep_adapter what is trained of it); on others None.
        """
        assert self._skeleton is not None
        if self.args.should_log:
            size = sum(value.numel() * value.element_size() for value in self._skeleton.parameters())
            logger.info("rank 0 gathers the model in CPU memory: %.1f GB at most", size / 1e9)
        if not self.zero3:
            trained_only = self.args.keep_adapter and isinstance(model, PeftModel)
            return gather_model(model, self._skeleton, trained_only=trained_only)
        weights = self.accelerator.get_state_dict(wrapped)
        return filled(self._skeleton, weights) if self.args.should_save else None

    def whole(self, modules: Iterable[nn.Module | None]) -> AbstractContextManager[None]:
        """Around reading or changing the parameters of small modules, which ZeRO-3 divides too."""
        if not self.zero3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        parameters = [each for module in modules if module is not None for each in module.parameters()]
        gathered: AbstractContextManager[None] = GatheredParameters(parameters, modifier_rank=0)
        return gathered


def check_saved_sharding(checkpoint: str, now: str | None) -> None:
    """Raises UserError for a checkpoint of a run that was sharded by something else, or FSDP in another form.

    Args:
        checkpoint: to go on from.
        now: what this run saves: DEEPSPEED, a form of FSDP's, or None where nothing is sharded.
    """
    before = _sharding_of(Path(checkpoint))
    if before != now:
        raise UserError(
            f"{checkpoint} was saved {_saved_by(before)}, and this run is {_saved_by(now)}: start it as that one (on "
            "one device: torchrun --nproc_per_node 1)"
        )


def _saved_by(sharding: str | None) -> str:
    if sharding is None:
        return "without FSDP or DeepSpeed"
    return "under DeepSpeed" if sharding == DEEPSPEED else f"under FSDP, with fsdp_state_dict_type {sharding}"


def _sharding_of(checkpoint: Path) -> str | None:
    """What sharded the run that wrote it, and for FSDP the form; or None."""
    if (checkpoint / FULL_PARTS[0]).exists():
        return "FULL_STATE_DICT"
    if any(checkpoint.glob("global_step*/*_optim_states.pt")):
        return DEEPSPEED
    return "SHARDED_STATE_DICT" if (checkpoint / f"{FSDP_MODEL_NAME}_0").is_dir() else None
