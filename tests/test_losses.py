"""Each loss against its formula in float64, known answers by hand, and two processes against one."""

import cmath
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from step_jepa.losses.criterion import Criterion
from step_jepa.losses.distances import Negatives, infonce, negative_count
from step_jepa.losses.regularisers import sigreg, vicreg
from step_jepa.losses.running_mean import RunningMean

NAMES = [
    "cosine",
    "centred_cosine",
    "l2",
    "mse",
    "normalised_l2",
    "normalised_mse",
    "infonce",
    "centred_infonce",
]
PROBLEM = torch.tensor([7, 7, 8, 8, 9])
NEGATIVES: dict[Negatives, list[list[int]]] = {  # by hand: the pairs whose targets are negatives of pair 0, 1, ...
    "both": [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]],
    "others": [[2, 3, 4], [2, 3, 4], [0, 1, 4], [0, 1, 4], [0, 1, 2, 3]],
    "same": [[1], [0], [3], [2], []],
}


def views(rows: int = 5, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# Distances


@pytest.mark.parametrize("loss", NAMES)
def test_losses_against_their_formula_in_float64(loss):
    p, t = views(seed=1), views(seed=2)
    cos = (unit(p) * unit(t)).sum(-1)
    scores = (unit(p) @ unit(t).T / 0.07).exp()
    formula = {
        "cosine": 1 - cos,
        "l2": (p - t).pow(2).sum(-1).sqrt(),
        "mse": (p - t).pow(2).sum(-1) / 7,
        "normalised_l2": (2 - 2 * cos).sqrt(),
        "normalised_mse": 2 - 2 * cos,
        "infonce": -(scores.diagonal() / scores.sum(-1)).log(),
    }
    close(Criterion(loss)(p, t, PROBLEM), formula[loss.removeprefix("centred_")])


def test_known_answers_of_a_right_angle():
    p, t = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    answers: dict[str, float] = {
        "cosine": 1.0,
        "l2": 5.0,
        "mse": 12.5,
        "normalised_l2": math.sqrt(2),
        "normalised_mse": 2.0,
    }
    for loss, answer in answers.items():
        assert Criterion(loss)(p, t, torch.tensor([0])).tolist() == [pytest.approx(answer)]


def test_what_the_caller_has_to_do():
    assert [Criterion(loss).spec.centred for loss in NAMES] == [False, True, False, False, False, False, False, True]


# Negatives


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_negatives_by_hand(negatives):
    p, t = views(seed=1), views(seed=2)
    scores = (unit(p) @ unit(t).T / 0.5).exp()
    expected = [
        -(scores[pair, pair] / (scores[pair, pair] + scores[pair, others].sum())).log()
        for pair, others in enumerate(NEGATIVES[negatives])
    ]
    close(infonce(p, t, PROBLEM, 0.5, negatives), torch.stack(expected))
    close(Criterion("infonce", 0.5, negatives)(p, t, PROBLEM), torch.stack(expected))
    assert negative_count(PROBLEM, negatives).tolist() == [len(others) for others in NEGATIVES[negatives]]


def test_a_pair_without_negatives_has_loss_and_gradient_0():
    p, t = views(seed=1).requires_grad_(), views(seed=2).requires_grad_()
    loss = infonce(p, t, PROBLEM, negatives="same")
    loss.sum().backward()
    assert loss[4] == 0
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert p.grad[4].tolist() == [0] * 7
    assert p.grad[:4].abs().amin() > 0


@given(st.lists(st.integers(0, 3), max_size=8))
def test_others_and_same_make_both(ids):
    problem = torch.tensor(ids, dtype=torch.long)
    both, others, same = (negative_count(problem, negatives) for negatives in ("both", "others", "same"))
    assert both.tolist() == (others + same).tolist() == [len(ids) - 1] * len(ids)


# Regularisers


def test_vicreg_by_hand():
    collapsed = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    close(vicreg(collapsed), torch.tensor(1 - math.sqrt(1e-4), dtype=torch.float64))
    line = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)  # variances 2, covariances 2
    close(vicreg(line), torch.tensor((4 + 4) / 2 / 25, dtype=torch.float64))


def test_vicreg_against_its_formula_in_float64():
    z = views(6, 3) / 2
    centred = z - z.sum(0) / 6
    covariance = torch.stack([torch.outer(row, row) for row in centred]).sum(0) / 5
    variance = sum(max(0, 1 - math.sqrt(covariance[j, j].item() + 1e-4)) for j in range(3)) / 3
    squares = sum(covariance[i, j].item() ** 2 for i in range(3) for j in range(3) if i != j) / 3
    assert variance > 0
    close(vicreg(z), torch.tensor((25 * variance + 1 * squares) / 25, dtype=torch.float64))


def test_sigreg_against_its_formula_in_float64():
    z = views(6, 1)  # of one coordinate: the directions are 1 and -1, which have the same statistic
    t = [-5 + 10 * k / 16 for k in range(17)]
    ecf = [sum(cmath.exp(1j * at * x) for x in z.flatten().tolist()) / 6 for at in t]
    error = [abs(f - math.exp(-at * at / 2)) ** 2 * math.exp(-at * at / 2) for f, at in zip(ecf, t, strict=True)]
    integral = sum((error[k] + error[k + 1]) / 2 * 10 / 16 for k in range(16))
    close(sigreg(z, 0, directions=4), torch.tensor(6 * integral, dtype=torch.float64))


def test_sigreg_of_a_set_collapsed_to_the_origin():
    """The integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2) is sqrt(2 pi) (1 - sqrt(2) + 1 / sqrt(3))."""
    answer = 10 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    assert sigreg(torch.zeros(10, 8, dtype=torch.float64), 0).item() == pytest.approx(answer, rel=1e-4)


def test_the_floor_of_sigreg():
    """N |ecf - cf|^2 of N normal numbers has mean 1 - exp(-t^2), whose integral is sqrt(2 pi) (1 - 1 / sqrt(3))."""
    mean = sum(sigreg(views(400, 8, seed), seed, 64).item() for seed in range(50)) / 50
    assert mean == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=0.1)


def test_only_an_isotropic_set_is_near_the_floor():
    gaussian = views(4000, 8)
    line = gaussian[:, :1] * torch.ones(8)
    collapsed = torch.ones(4000, 8)
    assert vicreg(gaussian) < 0.02
    assert sigreg(gaussian, 0) < 2
    for name, flat in {"line": line, "collapsed": collapsed}.items():
        assert vicreg(flat) > 10 * vicreg(gaussian), name
        assert sigreg(flat, 0) > 100 * sigreg(gaussian, 0), name


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_views_have_no_distribution(rows):
    for regulariser in ("sigreg", "vicreg"):
        p, t = views(rows).requires_grad_(), views(rows, seed=1).requires_grad_()
        loss = Criterion("mse", regulariser=regulariser)(p, t, PROBLEM[:rows])
        close(loss, Criterion("mse")(p, t, PROBLEM[:rows]))
        loss.sum().backward()
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_sigreg_follows_seed_and_step_and_nothing_else():
    p, t = views(seed=1), views(seed=2)

    def at(seed: int, step: int) -> list[float]:
        return Criterion(regulariser="sigreg", seed=seed)(p, t, PROBLEM, step).tolist()

    first = at(1, 5)
    state = torch.get_rng_state()
    assert at(1, 5) == first
    assert torch.get_rng_state().tolist() == state.tolist()
    assert at(1, 6) != first
    assert at(2, 5) != first
    half = sigreg(p.float(), 3)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(sigreg(p, 3).item(), rel=1e-5)  # the same directions for any dtype


def test_the_regulariser_is_added_to_every_pair():
    p, t = views(seed=1), views(seed=2)
    spread = [unit(x) * math.sqrt(7) for x in (p, t)]
    expected = Criterion("mse")(p, t, PROBLEM) + 3 * (vicreg(spread[0]) + vicreg(spread[1])) / 2
    close(Criterion("mse", regulariser="vicreg", regulariser_weight=3)(p, t, PROBLEM), expected)


@pytest.mark.parametrize("regulariser", ["sigreg", "vicreg"])
def test_the_regulariser_sees_directions_not_lengths(regulariser):
    p, t = views(seed=1), views(seed=2)
    criterion = Criterion(regulariser=regulariser)
    close(criterion(p * 7, t / 3, PROBLEM), criterion(p, t, PROBLEM))


@pytest.mark.parametrize("regulariser", ["none", "sigreg", "vicreg"])
@pytest.mark.parametrize("loss", NAMES)
def test_gradients_flow_to_both_views(loss, regulariser):
    p, t = views(seed=1).requires_grad_(), views(seed=2).requires_grad_()
    criterion = Criterion(loss, regulariser=regulariser)
    assert torch.autograd.gradcheck(lambda p, t: criterion(p, t, PROBLEM, 3), (p, t))
    gradients = torch.autograd.grad(criterion(p, t, PROBLEM, 3).sum(), (p, t))
    assert all(gradient.abs().amin() > 0 for gradient in gradients)


# Running mean


def test_the_mean_is_corrected_for_its_start():
    mean = RunningMean(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert mean(x).tolist() == x.tolist()
    mean.add(x)
    assert mean(x).tolist() == x.tolist()  # pending
    mean.update()
    torch.testing.assert_close(mean(x), torch.tensor([[-1.0, -2.0], [1.0, 2.0]]))
    mean.add(torch.tensor([[4.0, 0.0]]))
    mean.update()
    torch.testing.assert_close(  # (0.9 * 0.1 * [2, 4] + 0.1 * [4, 0]) / 0.19
        mean(torch.zeros(1, 2)), torch.tensor([[-0.58 / 0.19, -0.36 / 0.19]])
    )


def test_an_update_without_views_changes_nothing():
    mean = RunningMean(2)
    mean.add(torch.ones(3, 2))
    mean.update()
    before = mean.state_dict()["average"].tolist(), mean.state_dict()["weight"].item()
    mean.add(torch.ones(0, 2))
    mean.update()
    mean.update()
    assert (mean.average.tolist(), mean.weight.item()) == before


def test_views_keep_their_dtype_and_gradient_and_the_mean_has_none():
    mean = RunningMean(2)
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    mean.add(x)
    mean.update()
    centred = mean(x)
    assert centred.dtype == torch.float64
    assert mean(x.bfloat16()).dtype == torch.bfloat16
    centred.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1]] * 3
    assert not any(buffer.requires_grad for buffer in mean.buffers())


def test_a_checkpoint_keeps_the_mean_and_nothing_pending():
    mean, resumed = RunningMean(2), RunningMean(2)
    mean.add(torch.ones(3, 2))
    mean.update()
    assert set(mean.state_dict()) == {"average", "weight"}
    resumed.load_state_dict(mean.state_dict())
    torch.testing.assert_close(resumed(torch.ones(1, 2)), torch.zeros(1, 2))


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), max_size=4))
def test_micro_batches_of_any_size_give_one_mean(edges):
    x = views(8, 3).float()
    whole, parts = RunningMean(3), RunningMean(3)
    whole.add(x)
    for part in x.tensor_split(sorted(edges)):
        parts.add(part)
    for mean in (whole, parts):
        mean.update()
    torch.testing.assert_close(parts(x), whole(x))


# Two processes

CRITERIA: dict[str, Criterion] = {
    **{negatives: Criterion("infonce", 0.5, negatives) for negatives in NEGATIVES},
    **{name: Criterion("cosine", regulariser=name, regulariser_weight=2) for name in ("sigreg", "vicreg")},
    "all": Criterion("infonce", 0.5, "others", "vicreg"),
}
SPLITS = {"three and two": (3, 2), "all and none": (5, 0), "none": (0, 0)}


def results(rows: slice) -> dict[str, Tensor]:
    """Losses, gradients, counts and centred views of these of five pairs."""
    problem = PROBLEM[rows]
    found: dict[str, Tensor] = {}
    for name, criterion in CRITERIA.items():
        p, t = views(seed=1)[rows].requires_grad_(), views(seed=2)[rows].requires_grad_()
        loss = criterion(p, t, problem, global_step=4)
        loss.sum().backward()
        assert p.grad is not None
        assert t.grad is not None
        found |= {name: loss.detach(), f"{name} predicted": p.grad, f"{name} target": t.grad}
    found |= {f"count {negatives}": negative_count(problem, negatives) for negatives in NEGATIVES}
    mean = RunningMean(7)
    for micro_batch in (views(seed=1)[rows], views(seed=2)[rows], views(seed=3)[:0]):
        mean.add(micro_batch)
    mean.update()
    return found | {"centred": mean(views()[rows].float())}


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    places = {name: (0, first) if rank == 0 else (first, first + second) for name, (first, second) in SPLITS.items()}
    torch.save({name: results(slice(*place)) for name, place in places.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_are_one(two_processes, split):
    one = results(slice(0, sum(SPLITS[split])))
    ranks = [rank[split] for rank in two_processes]
    assert [len(rank["both"]) for rank in ranks] == list(SPLITS[split])
    for name, expected in one.items():
        tolerance = 1e-6 if name == "centred" else 1e-12
        got = torch.cat([rank[name] for rank in ranks])
        assert torch.allclose(got, expected, rtol=tolerance, atol=tolerance), name
