"""What shards a run, if anything does: FSDP2 or DeepSpeed, as accelerate starts them."""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft import PeftModel
from torch import nn

from step_jepa.models.sharding import filled, gather_model, is_sharded, skeleton
from step_jepa.training.checkpoints import DEEPSPEED

logger = logging.getLogger(__name__)


class Engine:
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
