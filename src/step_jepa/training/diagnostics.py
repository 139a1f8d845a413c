"""What a set of views has learned: pairs of views -> figures. Pure functions; no model, no gradient.

P >= 1 pairs, H hidden size. `predicted` and `target` are (P, H), any float dtype, any device; `problem` (P,) int64 is
the example of each pair. Computed in float64 on the CPU. A figure without a value (0/0, too few pairs) is nan.

    figure              what it tells                                                   if all views are equal
    cosine_paired       agreement of a prediction with its own target                   1
    cosine_unpaired     the same with the targets of all other pairs                    1
    cosine_margin       paired - unpaired: what is specific to the pair                 0
    centred_*           the three, with each view's mean over the set subtracted        0, 0, 0
    retrieval_at_1      share of predictions whose own target is the nearest            1/P (chance)
    rank_*              effective number of directions that the views fill              1
    mean_energy_*       share of the energy that lies in the mean direction             1
    linear_error        what the best linear map leaves of the target, out of sample    nan; 1 if only `predicted` does
    difference_rank     effective number of directions of target - predicted            1; nan if the two are equal
    difference_top      share of their energy in the strongest direction                1; nan if the two are equal
    latent_error_m      error of going straight on for m steps / of standing still      nan

`summary` takes retrieval, ranks, linear_error and differences of at most 2,000 pairs, drawn alike every time; cosines
and mean energies are of all. So with more pairs chance is 1/2000.

Centring magnifies: in a nearly collapsed set the centred figures describe what little is left. Read them beside
mean_energy_*.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

SAMPLE = 2000  # pairs; retrieval compares all with all, and singular values take a time cubic in them
NEGLIGIBLE = 1e-9  # relative length; float64 rounding lies below, what float32 can tell apart above
TIE = 1e-12  # between cosines, which fall off with the square of the distance
FOLDS = 5
PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2)  # in units of the mean squared norm of a centred view


def summary(predicted: Tensor, target: Tensor, problem: Tensor) -> dict[str, float]:
    """All figures of the table but latent_error. Those that are nan are left out: with P = 1 only cosine_paired, the
    ranks, the mean energies and the differences remain, with P = 0 nothing. With P > 2,000 the figures that do not
    scale are of 2,000 pairs, the same ones for the same P, which need not be whole problems."""
    assert predicted.shape == target.shape
    assert problem.shape == predicted.shape[:1]
    if not len(predicted):
        return {}
    some = _sample(len(predicted))
    figures = {
        **cosines(predicted, target),
        "mean_energy_predicted": mean_energy(predicted),
        "mean_energy_target": mean_energy(target),
        **_costly(predicted[some], target[some], problem[some]),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _sample(pairs: int) -> Tensor:
    """(min(pairs, SAMPLE),) int64: all in order, or the first of a fixed permutation."""
    if pairs <= SAMPLE:
        return torch.arange(pairs)
    return torch.randperm(pairs, generator=torch.Generator().manual_seed(0))[:SAMPLE]


def _costly(predicted: Tensor, target: Tensor, problem: Tensor) -> dict[str, float]:
    return {
        **retrieval(predicted, target),
        "rank_predicted": effective_rank(predicted),
        "rank_target": effective_rank(target),
        "linear_error": linear_error(predicted, target, problem),
        **_differences(predicted, target),
    }


def cosines(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Means of cosines: cosine_paired, cosine_unpaired (over all i != j), cosine_margin; centred_* likewise. With P = 1
    all but the first are nan."""
    return {
        **_agreement("cosine", _unit(predicted), _unit(target)),
        **_agreement("centred", _centred(predicted), _centred(target)),
    }


def _agreement(name: str, predicted: Tensor, target: Tensor) -> dict[str, float]:
    """From unit views. sum over i != j of p_i . t_j = (sum p) . (sum t) - sum p_i . t_i."""
    pairs, own = len(predicted), (predicted * target).sum(-1)
    others = predicted.sum(0) @ target.sum(0) - own.sum()
    paired = own.mean().item()
    unpaired = others.item() / (pairs * (pairs - 1)) if pairs > 1 else math.nan
    return {f"{name}_paired": paired, f"{name}_unpaired": unpaired, f"{name}_margin": paired - unpaired}


def retrieval(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """retrieval_at_1 and retrieval_at_1_centred, in [0, 1]: share of pairs whose own target has the highest cosine
    among the P targets; n targets that tie count 1/n each. nan with P = 1."""
    return {
        "retrieval_at_1": _at_1(_unit(predicted), _unit(target)),
        "retrieval_at_1_centred": _at_1(_centred(predicted), _centred(target)),
    }


def _at_1(predicted: Tensor, target: Tensor) -> float:
    if len(predicted) < 2:
        return math.nan
    similarity = predicted @ target.T
    # Equal targets get cosines that differ by rounding: without a tolerance one of them would win at random.
    nearest = (similarity >= similarity.amax(1, keepdim=True) - TIE).double()
    return (nearest.diagonal() / nearest.sum(1)).mean().item()


def effective_rank(views: Tensor) -> float:
    """In [1, min(P, H)]: exp of the entropy of the singular values over their sum, views neither centred nor scaled
    (RankMe, Garrido et al., arXiv 2210.02885, eq. 1, without its epsilon). nan if all views are 0."""
    return _rank(_shares(_double(views)))


def mean_energy(views: Tensor) -> float:
    """In [0, 1]: squared norm of the mean of the unit views. About 1/P for directions drawn at random."""
    return _unit(views).mean(0).square().sum().item()


def spectrum(predicted: Tensor, target: Tensor) -> Tensor:
    """(min(P, H),) float64, descending: singular values of target - predicted (unit views) over their sum. All nan if
    the views are equal up to length."""
    return _shares(F.hardshrink(_unit(target) - _unit(predicted), NEGLIGIBLE))


def _differences(predicted: Tensor, target: Tensor) -> dict[str, float]:
    shares = spectrum(predicted, target)
    energy = shares.square()
    return {"difference_rank": _rank(shares), "difference_top": (energy[0] / energy.sum()).item()}


def linear_error(predicted: Tensor, target: Tensor, problem: Tensor) -> float:
    """Ridge regression predicted -> target (unit views, centred on the training fold) in 5 folds that never split a
    problem; fewer if there are fewer problems, nan with one.

    Squared residual on the held-out folds over the squared distance of their targets to the training mean; 0: a linear
    map explains the target, 1: it explains nothing. The smallest over PENALTIES: with a single weak penalty, sets with
    P near H would overfit and read far above 1.
    """
    problems, index = torch.unique(problem.cpu(), return_inverse=True)
    folds = min(FOLDS, len(problems))
    if folds < 2:
        return math.nan
    predicted, target = _unit(predicted), _unit(target)
    errors = [_held_out(predicted, target, index % folds == fold) for fold in range(folds)]
    *residuals, total = torch.stack(errors).sum(0).tolist()
    return min(residuals) / total if total > len(target) * NEGLIGIBLE**2 else math.nan


def _held_out(predicted: Tensor, target: Tensor, held: Tensor) -> Tensor:
    """(PENALTIES + 1,): squared errors over the `held` pairs, of a map per penalty fitted to the others; last, that of
    the others' mean."""
    x, y = predicted - predicted[~held].mean(0), target - target[~held].mean(0)
    train, query = x[~held], x[held]
    unit = max(float(train.square().sum()) / len(train), NEGLIGIBLE**2)  # equal views: rounding is no signal
    guesses = [_ridge(train, y[~held], query, penalty * unit) for penalty in PENALTIES]
    return torch.stack([(y[held] - guess).square().sum() for guess in [*guesses, torch.zeros(())]])


def _ridge(train: Tensor, target: Tensor, query: Tensor, penalty: float) -> Tensor:
    """What a map that was fitted to centred (N, H) pairs says of others."""
    fitted = Ridge(alpha=penalty, fit_intercept=False).fit(train.numpy(), target.numpy())
    return torch.from_numpy(fitted.predict(query.numpy()))


def latent_error(
    states: Tensor, problem: Tensor, step: Tensor, horizons: Sequence[int] = (1, 2, 3)
) -> dict[str, float]:
    """latent_error_m for every horizon m: squared error of z_k + m (z_k - z_{k-1}) as a guess of z_{k+m}, over that of
    z_k, both summed over all places where the three steps exist. 0: equally spaced on a line; 1: no better than
    standing still; nan: no such place, or all stand still. After the multi-step latent prediction of SSP (arXiv
    2604.18464), made relative.

    states (N, H), one per problem and step; `problem`, `step` (N,) int64, in any order. Where a step is missing, the
    places that need it are left out.
    """
    keys = list(zip(problem.tolist(), step.tolist(), strict=True))
    rows = {key: row for row, key in enumerate(keys)}
    assert len(rows) == len(states), "one state per problem and step"
    states = _double(states)
    return {f"latent_error_{m}": _straight_on(states, rows, m) for m in horizons}


def _straight_on(states: Tensor, rows: dict[tuple[int, int], int], m: int) -> float:
    triples = [
        (rows[problem, step - 1], row, rows[problem, step + m])
        for (problem, step), row in rows.items()
        if (problem, step - 1) in rows and (problem, step + m) in rows
    ]
    before, here, there = states[torch.tensor(triples, dtype=torch.long).reshape(-1, 3).T]
    error = there - (here + m * (here - before))
    return float(error.square().sum() / (there - here).square().sum())


def _double(views: Tensor) -> Tensor:
    return views.detach().to("cpu", torch.float64)  # mps has no float64


def _unit(views: Tensor) -> Tensor:
    return F.normalize(_double(views), dim=-1)


def _centred(views: Tensor) -> Tensor:
    """Unit views after the mean is subtracted; about 0 where a view equals the mean up to rounding; nan with P = 1."""
    views = _double(views)
    if len(views) < 2:
        return torch.full_like(views, math.nan)
    longest = torch.linalg.vector_norm(views, dim=-1).max().item()
    return F.normalize(views - views.mean(0), dim=-1, eps=NEGLIGIBLE * longest or 1.0)


def _shares(matrix: Tensor) -> Tensor:
    # Not from the Gram matrix, which is faster: what rounding leaves of its zeros adds 1e-4 to a rank of 3.
    values: Tensor = torch.linalg.svdvals(matrix)
    return values / values.sum()


def _rank(shares: Tensor) -> float:
    return float(torch.special.entr(shares).sum().exp())
