"""What a training step holds in memory from moment to moment, found without its numbers.

Parameters are torch's fake tensors: they have shapes, dtypes and storages of a size, and operations on them give more
of these. What follows from a batch's integers, which are real, stays real: how many tokens have a label, who sees whom.
"""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def make_fake(model: nn.Module) -> None:
    """Have a model on the meta device be one of fake tensors on the CPU: kernels are chosen as for real ones."""
    fakes: dict[int, Tensor] = {}  # one for each, as parameters may be tied
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fakes.setdefault(id(tensor), _fake(tensor, mode))


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        fake = torch.empty_like(tensor, device="cpu")
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


class Moment(NamedTuple):
    """Bytes that are held.

    gradients  of parameters
    others     activations, and what operations need meanwhile
    """

    gradients: int
    others: int


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it, while they live.

    moments  after each of them was made
    """

    def __init__(self, parameters: Iterable[nn.Parameter], held: Iterable[Tensor]) -> None:
        """
        Args:
            parameters: whose gradients are told apart.
            held: what is there before, and not counted.
        """
        super().__init__()
        self.moments: list[Moment] = []
        self._held = {_storage(tensor)._cdata for tensor in held}
        self._watched: dict[int, weakref.ref[Any]] = {}  # by address of the storage, which another may have later
        self._gradients: set[int] = set()
        self._bytes = {"gradients": 0, "others": 0}
        for parameter in filter(lambda each: each.requires_grad, parameters):
            parameter.register_post_accumulate_grad_hook(self._accumulated)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in INDEXING:
            args = (args[0], _places(args[1]), *args[2:])
        result = operation(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(_storage(each))
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._watched or key in self._held:
            return
        self._watched[key] = weakref.ref(storage, partial(self._freed, key, size))
        self._bytes["others"] += size
        self.moments.append(Moment(**self._bytes))

    def _freed(self, key: int, size: int, _reference: Any) -> None:
        del self._watched[key]
        self._bytes["gradients" if key in self._gradients else "others"] -= size
        self._gradients.discard(key)

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = _storage(parameter.grad)
        if storage._cdata in self._watched and storage._cdata not in self._gradients:
            self._gradients.add(storage._cdata)
            self._bytes["others"] -= storage.nbytes()
            self._bytes["gradients"] += storage.nbytes()
            self.moments.append(Moment(**self._bytes))


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places where they hold, of which a fake operation has to know how many there are."""
    places: list[Tensor | None] = []
    for index in indices:
        places += index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index]
    return places
