"""The kernel that reads causal documents of any length in one call, where torch has it and it runs."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = (torch.float16, torch.bfloat16)

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


@lru_cache
def serves(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the varlen kernel runs here for heads of this width, and agrees with sdpa, forwards and backwards. Builds
    and devices without flash attention have the function too, and it was never run on most of them."""
    if varlen_attn is None:
        return False
    ends = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    values = torch.arange(8 * 4 * width, device=device).sin().view(8, 4, width)

    def results(attend: Attend, dtype: torch.dtype) -> list[Tensor]:
        states = values.to(dtype).requires_grad_()
        output = attend(states, states[:, :2], states[:, 2:])
        (gradient,) = torch.autograd.grad(output.float().square().sum(), states)
        return [output.detach().float(), gradient.float()]

    def by_varlen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = varlen_attn(
            query, key, value, ends, ends, 5, 5, window_size=(-1, 0), scale=None, enable_gqa=True
        )
        return output

    def by_sdpa(*states: Tensor) -> Tensor:
        documents = zip(*(each.transpose(0, 1)[None].split([3, 5], dim=2) for each in states), strict=True)
        outputs = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in documents]
        return torch.cat(outputs, dim=2)[0].transpose(0, 1)

    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            pairs = zip(results(by_varlen, dtype), results(by_sdpa, torch.float32), strict=True)
            agrees = all(bool((ours - exact).norm() <= 0.03 * exact.norm()) for ours, exact in pairs)
    except (RuntimeError, ValueError) as error:
        logger.info("varlen attention does not run here (%s): documents are read one by one", str(error).split("\n")[0])
        return False
    if not agrees:
        logger.warning("varlen attention is not what sdpa gives on this device: documents are read one by one")
    return agrees
