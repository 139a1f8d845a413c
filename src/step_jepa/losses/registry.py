"""The losses by name: each is declared once, and with its reference formula."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from step_jepa.errors import UserError
from step_jepa.losses import distances, references
from step_jepa.losses.references import Array


@dataclass(frozen=True)
class LossSpec:
    """What is known of a loss. Config, refusals, diagnostics, `verify` and the documentation read it here.

    distance     (P, H) predicted and (P, H) target views -> (P,), differentiable. That of a contrastive loss takes
                 (P,) problems, a temperature and which negatives as well, see `distances.infonce`
    reference    the same formula in numpy, of float64 arrays; `verify` and the tests hold the distance against it
    centred      whether the running means of the views are subtracted first
    contrastive  whether the loss of a pair depends on the other pairs of the batch
    summary      its formula in words, for the documentation
    """

    name: str
    distance: Callable[..., Tensor]
    reference: Callable[[Array, Array], Array]
    centred: bool = False
    contrastive: bool = False
    summary: str = ""


LOSSES: dict[str, LossSpec] = {}


def register_loss(spec: LossSpec) -> LossSpec:
    """Make a loss known by its name: `--loss NAME`, and to everything that reads LOSSES.

    Raises:
        UserError: for a name that is taken, and for a loss without a reference formula.
    """
    if not callable(spec.reference):
        raise UserError(f"loss {spec.name}: give its formula in float64 as `reference`, or nobody can check it")
    if spec.name in LOSSES:
        raise UserError(f"loss {spec.name} is there already: give another name")
    LOSSES[spec.name] = spec
    return spec


_COSINE = LossSpec("cosine", distances.cosine, references.cosine, summary="1 - cos(p, t)")
_INFONCE = LossSpec(
    "infonce",
    distances.infonce,
    references.infonce,
    contrastive=True,
    summary="cross entropy of finding t among the targets of the batch, by cos(p, t) / temperature",
)
for _spec in (
    _COSINE,
    replace(_COSINE, name="centred_cosine", centred=True, summary="cosine after subtracting the running means"),
    LossSpec("l2", distances.l2, references.l2, summary="|p - t|"),
    LossSpec("mse", distances.mse, references.mse, summary="mean over H of (p - t)^2"),
    LossSpec("normalised_l2", distances.normalised_l2, references.normalised_l2, summary="l2 of the views at length 1"),
    LossSpec("normalised_mse", distances.normalised_mse, references.normalised_mse, summary="2 - 2 cos(p, t)"),
    _INFONCE,
    replace(_INFONCE, name="centred_infonce", centred=True, summary="infonce after subtracting the running means"),
):
    register_loss(_spec)
