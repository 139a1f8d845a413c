"""Models whose parameters are spread over ranks, as FSDP2 does it (`torch.distributed.fsdp.fully_shard`).

A rank holds a shard of each, a DTensor. Whole ones are gathered for a pass, and some of them stay until the backward
pass is over.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: Any) -> bool:
    """Whether its parameters are spread over ranks."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Have the parameters of a sharded model be shards, which alone may be read and changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Tensor) -> Tensor:
    """The whole of a shard; all ranks have to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def spread_like(value: Tensor, known: Tensor) -> Tensor:
    """The shard of a whole tensor, as that of a known one; every rank has the whole."""
    if not isinstance(known, DTensor):
        return value
    value = value.to(known.device)
    return distribute_tensor(value, known.device_mesh, known.placements, src_data_rank=None)


def skeleton(model: Any) -> Any:
    """A copy of a model without its weights, for `gather_model`: one that is sharded cannot be copied."""
    return deepcopy(model, {id(value): _without_memory(value) for value in model.parameters()})


def _without_memory(value: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device="meta"), value.requires_grad)


def gather_model(model: Any, frame: Any, *, trained_only: bool = False) -> Any:
    """A sharded model as one of a single process, on the CPU of rank 0; all ranks have to call it. The device holds one
    whole parameter at a time.

    Args:
        model: sharded.
        frame: its `skeleton`.
        trained_only: leave out what is frozen.

    Returns:
        On rank 0 the model, on others None.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return filled(frame, weights, trained_only=trained_only) if weights else None


def filled(frame: Any, weights: dict[str, Any], *, trained_only: bool = False) -> Any:
    """A copy of a `skeleton` with weights; without what is frozen where they are `trained_only`."""
    frame = deepcopy(frame)
    known = frame.state_dict()
    weights = {name: value.to(known[name].dtype) for name, value in weights.items()}  # training may have widened them
    frame.load_state_dict(weights, strict=not trained_only, assign=True)
    frame.tie_weights()
    assert trained_only or not any(value.is_meta for value in frame.parameters())
    return frame
