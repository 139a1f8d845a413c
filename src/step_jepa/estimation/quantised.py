"""A model as QLoRA loads it, without numbers: weights of linear layers in four bits, all else in float32."""

from typing import Any

import torch
import torch.nn.functional as F
from peft import prepare_model_for_kbit_training
from torch import Tensor, nn

# NormalFloat codes; a scale of one byte for 64 weights; and a float32 scale of these for 256 of them (arXiv 2305.14314)
BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
COMPUTE = torch.bfloat16


class FourBitLinear(nn.Linear):
    """One whose products are made in bfloat16, as bitsandbytes' are."""

    def forward(self, states: Tensor) -> Tensor:
        """The layer's output, in the dtype of its input."""
        return F.linear(states.to(COMPUTE), self.weight, self.bias).to(states.dtype)


def as_quantised(model: Any) -> Any:
    """The model, on the meta device, frozen and with activation checkpointing, as PEFT prepares it."""
    model.is_loaded_in_4bit = True
    model = prepare_model_for_kbit_training(model)  # type: ignore[no-untyped-call]
    del model.is_loaded_in_4bit  # of which others would conclude more
    for module in model.modules():
        if type(module) is nn.Linear and module is not model.get_output_embeddings():
            module.__class__ = FourBitLinear
            module.to(COMPUTE)
    return model


def saved(model: nn.Module) -> int:
    """Bytes by which four bits are less than the weights here, but for those of one layer, which are unpacked."""
    counts = [module.weight.numel() for module in model.modules() if isinstance(module, FourBitLinear)]
    return round(sum(counts) * (COMPUTE.itemsize - BYTES) - max(counts, default=0) * COMPUTE.itemsize)
