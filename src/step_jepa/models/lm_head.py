"""The language-model head over labelled tokens in chunks: the (N, V) logits never stand in memory whole.

Axes: N labelled tokens, C tokens of a chunk, H hidden size, V tokens of the vocabulary.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from step_jepa.batches.views import at_least_float32
from step_jepa.models.sharding import is_sharded

logger = logging.getLogger(__name__)

WHOLE = 2**24  # so many logits are made at once: 64 MiB in float32
LEAST_CHUNK = 128  # tokens; fewer would read the head's weights too often for the work that they do

# head -> whether its logits, made from the last hidden states, are the model's own
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class LMHead:
    """The output embedding of a model, not of what a launcher wraps it in, applied to hidden states."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.module, self.vocabulary = model.get_output_embeddings(), config.vocab_size
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def takes(self, count: int) -> bool:
        """Whether so many tokens are to be taken in chunks: more logits than are made at once, and a head that can be
        called apart from its model, with the same result each time, and is not known to lack something. Of a sharded
        head any number is, or none: ranks that do not do alike would wait for each other."""
        if self.module is None or not _agrees.get(self.module, True):
            return False
        weight = getattr(self.module, "weight", None)
        if weight is None or weight.shape[0] != self.vocabulary:
            return False
        if hasattr(weight, "ds_id"):  # of ZeRO-3, which parts it again once the head's own pass is over
            return False
        if is_sharded(self.module):  # by FSDP: whole after the model's pass, until the way back is over
            return _is_plain(self.module)
        many = count * self.vocabulary > WHOLE
        return many and not isinstance(weight, DTensor) and not any(map(_drops, self.module.modules()))

    def agrees(self, states: Tensor, logits: Tensor) -> bool:
        """Whether logits made here are the model's own, looked at once per model: one may scale them, or put more
        between the last hidden states and the head.

        Args:
            states: (n, H) last hidden states.
            logits: (n, rows) what the model makes of them.
        """
        if self.module not in _agrees:
            with torch.no_grad():
                expected = logits.float()
                apart = (self._logits(self._products(states)).float() - expected).abs().max()
                # A product of other shapes rounds otherwise; a scale or a missing layer is off by far more.
                rounding = 1e-3 if torch.finfo(logits.dtype).bits >= 32 else 5e-2
                _agrees[self.module] = bool(apart <= rounding * expected.abs().max())
            if not _agrees[self.module]:
                logger.info("logits are made whole: this model does more than apply its head to the last hidden states")
        return _agrees[self.module]

    def nll(self, states: Tensor, labels: Tensor) -> Tensor:
        """(N,) at least float32, negative log-likelihood of labels (N,) at states (N, H), in nats."""
        size = max(LEAST_CHUNK, WHOLE // self.vocabulary)
        if _is_plain(self.module):
            plan = _Plan(size, self.softcap, _dtype_of_products(self.module.weight), torch.is_grad_enabled())
            return _LinearNLL.apply(plan, labels, states, self.module.weight, self.module.bias)
        # An adapter on the head, or a head of another kind: its logits are made again on the way back.
        trained = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        wide = {name: at_least_float32(value) for name, value in trained.items()}
        chunks = zip(states.split(size), labels.split(size), strict=True)
        return torch.cat([checkpoint(self._nll_of_chunk, *chunk, wide, use_reentrant=False) for chunk in chunks])

    @torch.no_grad()
    def nll_and_entropy(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) and (N,) at least float32: of labels (N,) at states (N, H), and of the next token there, in nats; both
        from the same logits, without gradient."""
        size = max(LEAST_CHUNK, WHOLE // self.vocabulary)
        nll, entropies = [], []
        for some_states, some_labels in zip(states.split(size), labels.split(size), strict=True):
            logits = self._logits(self._products(some_states))
            nll.append(cross_entropy(logits, some_labels))
            entropies.append(entropy(logits))
        return torch.cat(nll), torch.cat(entropies)

    @torch.no_grad()
    def entropy(self, states: Tensor) -> Tensor:
        """(E,) at least float32, of the next token at states (E, H), in nats."""
        size = max(LEAST_CHUNK, WHOLE // self.vocabulary)
        return torch.cat([entropy(self._logits(self._products(chunk))) for chunk in states.split(size)])

    def _nll_of_chunk(self, states: Tensor, labels: Tensor, wide: dict[str, Tensor]) -> Tensor:
        """With trained parameters that are narrowed for each chunk, so that what their gradients are summed in is
        wide."""
        own = dict(self.module.named_parameters())
        narrow = {name: value.to(own[name].dtype) for name, value in wide.items()}
        logits = self._logits(functional_call(self.module, narrow, states))
        return cross_entropy(logits, labels)

    def _products(self, states: Tensor) -> Tensor:
        if _is_plain(self.module):  # not called: a sharded module would take it for a pass of its own
            return F.linear(states, self.module.weight, self.module.bias)
        return self.module(states)

    def _logits(self, products: Tensor) -> Tensor:
        logits = at_least_float32(products)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def assume_agreement(model: Any) -> None:
    """Of a model without numbers: its head applied to its last hidden states gives its logits."""
    head = model.get_output_embeddings()
    if head is not None:
        _agrees[head] = True


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) negative log-likelihood of labels (N,) under logits (N, V), in nats.

    torch's own is off on a CPU in float32, always to one side: by -7e-6 nats a token for 49,152 tokens, this by 2e-8
    (findings/torch-cpu-cross-entropy.sh)."""
    return logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]


def entropy(logits: Tensor) -> Tensor:
    """(E,) of the distributions that logits (E, V) are of, in nats."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def _is_plain(module: Any) -> bool:
    """Whether it is torch's linear layer and no more, perhaps sharded."""
    kinds = (kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))
    return next(kinds) is nn.Linear


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0


class _Plan(NamedTuple):
    """How a plain linear head is gone through.

    size       C
    softcap    logits -> softcap * tanh(logits / softcap)
    dtype      of products
    gradients  whether there will be a backward pass
    """

    size: int
    softcap: float | None
    dtype: torch.dtype
    gradients: bool


def _dtype_of_products(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _LinearNLL(torch.autograd.Function):
    """The same for a plain linear head, with its gradients made while a chunk's logits are at hand.

    Of the states that is exact, as no token's loss depends on another's state. Of the weights it is exact where all
    tokens weigh the same in the loss, as in a sum or a mean; where they do not, the logits are made a second time,
    which torch's linear_cross_entropy and a checkpointed loop always do. Sums over chunks are at least float32.
    """

    @staticmethod
    def forward(ctx, plan, labels, *values):
        ctx.plan = plan
        ctx.save_for_backward(labels, *values)
        needed = [needs and plan.gradients for needs in ctx.needs_input_grad[2:]]
        nll, ctx.gradients = _loop(plan, labels, values, needed)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, weights):
        labels, *values = ctx.saved_tensors
        # The gradient of a sum is one number, expanded: that is seen without waiting for the device.
        uniform = weights.stride(0) == 0 or bool((weights == weights[:1]).all())
        gradients, needed = ctx.gradients, ctx.needs_input_grad[2:]
        if gradients is None or not (uniform or needed == (True, False, False)):
            _, gradients = _loop(ctx.plan, labels, values, needed, weights)
        else:
            first = weights[:1].sum()  # 0 where a rank has no tokens
            for gradient, scale in zip(gradients, (weights[:, None], first, first), strict=True):
                if gradient is not None:
                    gradient *= scale
        ctx.gradients = None  # given away; a second pass through a retained graph makes them anew
        typed = zip(gradients, values, strict=True)
        return None, None, *(None if gradient is None else gradient.to(value.dtype) for gradient, value in typed)


def _loop(
    plan: _Plan,
    labels: Tensor,
    values: tuple[Tensor, Tensor, Tensor | None],
    needed: Sequence[bool],
    weights: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The nll of each token, and gradients.

    Args:
        plan: how.
        labels: (N,)
        values: states (N, H), the head's weight (V, H), and its bias (V,) or None.
        needed: which of them need a gradient.
        weights: (N,) of the tokens in the sum that the gradients are of; one each if None.

    Returns:
        (N,), and for each of the values the gradient, at least float32, or None.
    """
    states, weight, bias = values
    sums = at_least_float32(weight.new_empty(0)).dtype
    gradients = [
        torch.zeros_like(value, dtype=sums) if value is not None and need else None
        for value, need in zip(values, needed, strict=True)
    ]
    nll = torch.empty(len(labels), dtype=sums, device=labels.device)
    states, weight, bias = states.to(plan.dtype), weight.to(plan.dtype), None if bias is None else bias.to(plan.dtype)
    with torch.autocast(labels.device.type, enabled=False):
        for start in range(0, len(labels), plan.size):
            chunk = slice(start, start + plan.size)
            logits = at_least_float32(F.linear(states[chunk], weight, bias))
            nll[chunk], slopes = _nll_and_slopes(logits, labels[chunk], plan.softcap)
            if weights is not None:
                slopes *= weights[chunk, None]
            _accumulate(gradients, chunk, slopes, states[chunk], weight)
    return nll, gradients


def _nll_and_slopes(logits: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """(C,) nll and (C, V) its derivative by the logits before capping, in the logits' own memory."""
    slope_of_cap = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope_of_cap = 1 - logits.square()
        logits.mul_(softcap)
    total = logits.logsumexp(-1, keepdim=True)
    nll = (total - logits.gather(-1, labels[:, None]))[:, 0]
    slopes = logits.sub_(total).exp_()
    slopes.scatter_add_(-1, labels[:, None], slopes.new_full((len(labels), 1), -1))
    return nll, slopes if slope_of_cap is None else slopes.mul_(slope_of_cap)


def _accumulate(
    gradients: Sequence[Tensor | None], chunk: slice, slopes: Tensor, states: Tensor, weight: Tensor
) -> None:
    """Add a chunk's part to the gradients of states, weight and bias."""
    of_states, of_weight, of_bias = gradients
    if of_bias is not None:
        of_bias += slopes.sum(0)
    slopes = slopes.to(weight.dtype)
    if of_states is not None:
        of_states[chunk] = slopes @ weight
    if of_weight is not None and of_weight.dtype == weight.dtype:
        of_weight.addmm_(slopes.T, states)
    elif of_weight is not None:  # products of fewer bits than their sum
        of_weight += slopes.T @ states
