"""Figures about sets of views: answers known by hand, and the formulas written out by loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from step_jepa.training.diagnostics import (
    PENALTIES,
    cosines,
    effective_rank,
    latent_error,
    linear_error,
    mean_energy,
    retrieval,
    spectrum,
    summary,
)

close = pytest.approx
ALL = {
    *("cosine_paired", "cosine_unpaired", "cosine_margin", "centred_paired", "centred_unpaired", "centred_margin"),
    *("retrieval_at_1", "retrieval_at_1_centred", "rank_predicted", "rank_target"),
    *("mean_energy_predicted", "mean_energy_target", "linear_error", "difference_rank", "difference_top"),
}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(gaussian(columns, rows, seed=seed)).Q.T


def collapsed(pairs=60, width=8, seed=0):
    """Pairs that is no power of two: the mean of equal views is then off by rounding."""
    return gaussian(1, width, seed=seed).expand(pairs, width)


def problems(pairs, each=3):
    return torch.arange(pairs) // each


# Cosines and retrieval


def test_cosines_of_two_pairs_by_hand():
    predicted = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    target = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    half = math.sqrt(0.5)
    # Around the means (1, 2.5) and (0.5, 2): (1, -2.5), (-1, 2.5) and (0.5, -1), (-0.5, 1)
    centred = (0.5 + 2.5) / math.sqrt(7.25 * 1.25)
    assert cosines(predicted, target) == {
        "cosine_paired": close((half + 1) / 2),
        "cosine_unpaired": close((0 + half) / 2),
        "cosine_margin": close(0.5),
        "centred_paired": close(centred),
        "centred_unpaired": close(-centred),
        "centred_margin": close(2 * centred),
    }


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def cosines_by_loops(predicted, target):
    pairs = range(len(predicted))
    paired = [cosine(predicted[i], target[i]) for i in pairs]
    unpaired = [cosine(predicted[i], target[j]) for i in pairs for j in pairs if i != j]
    return sum(paired) / len(paired), sum(unpaired) / len(unpaired)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_cosines_and_retrieval_are_the_written_out_formulas(pairs, width, seed, dtype):
    predicted, target = gaussian(2, pairs, width, seed=seed, dtype=dtype)
    measured = cosines(predicted, target) | retrieval(predicted, target)
    for kind, at_1, centre in (("cosine", "retrieval_at_1", 0), ("centred", "retrieval_at_1_centred", 1)):
        views = [v.double() - centre * v.double().mean(0) for v in (predicted, target)]
        p, t = (view.tolist() for view in views)
        paired, unpaired = cosines_by_loops(p, t)
        assert measured[f"{kind}_paired"] == close(paired, abs=1e-9)
        assert measured[f"{kind}_unpaired"] == close(unpaired, abs=1e-9)
        assert measured[f"{kind}_margin"] == close(paired - unpaired, abs=1e-9)
        hits = [max(range(pairs), key=lambda j, i=i, p=p, t=t: cosine(p[i], t[j])) == i for i in range(pairs)]
        assert measured[at_1] == close(sum(hits) / pairs)


def test_equal_views_agree_and_find_each_other():
    views = gaussian(50, 16)
    measured = cosines(views, 3 * views) | retrieval(views, 3 * views)
    assert measured["cosine_paired"] == close(1)
    assert measured["centred_paired"] == close(1)
    assert measured["cosine_margin"] > 0.9
    assert measured["retrieval_at_1"] == measured["retrieval_at_1_centred"] == 1


def test_shuffled_pairs_have_no_margin():
    views = gaussian(400, 32)
    shuffled = views.roll(1, 0)
    measured = cosines(views, shuffled) | retrieval(views, shuffled)
    assert measured["cosine_margin"] == close(0, abs=0.03)
    assert measured["centred_margin"] == close(0, abs=0.03)
    assert measured["retrieval_at_1"] == measured["retrieval_at_1_centred"] == 0


def test_an_offset_hides_in_the_raw_cosines_and_not_in_the_centred_ones():
    predicted = gaussian(100, 16)
    target = predicted + 0.5 * gaussian(100, 16, seed=1)
    before, after = cosines(predicted, target), cosines(predicted + 100, target + 100)
    assert after["cosine_unpaired"] > 0.999
    assert after["cosine_margin"] < 0.001
    for name in ("centred_paired", "centred_unpaired", "centred_margin"):
        assert after[name] == close(before[name])
    assert before["centred_margin"] > 0.8
    name = "retrieval_at_1_centred"
    assert retrieval(predicted + 100, target + 100)[name] == retrieval(predicted, target)[name] > 0.95


def test_ties_share_the_hit():
    predicted = torch.eye(3)
    target = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])
    # 0: its own and target 1 tie, 1/2; 1: no target is nearer than any other, 1/3; 2: found
    assert retrieval(predicted, target)["retrieval_at_1"] == close((1 / 2 + 1 / 3 + 1) / 3, rel=1e-12)


def test_targets_that_differ_by_length_tie():
    lengths = torch.arange(1, 61)[:, None] / 7
    measured = retrieval(gaussian(60, 8), lengths * collapsed())
    assert measured["retrieval_at_1"] == close(1 / 60, rel=1e-12)


def test_targets_that_float32_can_just_tell_apart_are_no_ties():
    views = torch.ones(20, 4) + 1e-5 * gaussian(20, 4, dtype=torch.float32)
    assert retrieval(views, views)["retrieval_at_1"] == 1


# Ranks, energies, spectra


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_of_equal_singular_values(rank):
    views = 7 * orthonormal(rank, 40).T @ orthonormal(rank, 12, seed=1)
    assert effective_rank(views) == close(rank)


def test_rank_by_hand():
    views = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))  # shares 1/2, 1/4, 1/4: entropy 3/2 bits
    assert effective_rank(views) == close(2**1.5)


def test_rank_is_of_the_raw_views():
    views = torch.diag(
        torch.tensor([1000.0, 1.0])
    )  # unit views would fill both directions alike, centred ones only one
    assert effective_rank(views) == close(math.exp(1000 / 1001 * math.log(1.001) + math.log(1001) / 1001))


def test_isotropic_views_fill_the_space():
    views = gaussian(4000, 10)
    assert effective_rank(views) == close(10, rel=0.01)
    assert mean_energy(views) == close(0, abs=0.003)


def test_mean_energy_by_hand():
    assert mean_energy(torch.tensor([[3.0, 0.0], [0.0, 0.1]])) == close(0.5)
    assert mean_energy(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])) == close(0)
    assert mean_energy(collapsed()) == close(1)


def test_spectrum_by_hand():
    predicted = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]])
    target = torch.tensor([[0, 0, 5.0, 0], [0, -1.0, 0, 0]])
    # The differences of the unit views, (-1, 0, 1, 0) and (0, -2, 0, 0), are orthogonal: lengths sqrt(2) and 2
    shares = torch.tensor([2, math.sqrt(2)], dtype=torch.float64) / (2 + math.sqrt(2))
    torch.testing.assert_close(spectrum(predicted, target), shares)
    measured = summary(predicted, target, torch.arange(2))
    assert measured["difference_top"] == close(4 / 6)
    assert measured["difference_rank"] == close(math.prod(share**-share for share in shares.tolist()))


def test_one_common_difference_is_one_direction():
    *rows, jump = orthonormal(21, 40)
    predicted = torch.stack(rows)
    target = predicted * math.cos(1) + jump * math.sin(1)
    measured = summary(predicted, target, problems(20))
    # difference_i = (cos 1 - 1) predicted_i + sin(1) jump: D D' = (1 - cos 1)^2 I + sin(1)^2 11', one large eigenvalue
    spread, common = (1 - math.cos(1)) ** 2, math.sin(1) ** 2
    assert measured["difference_top"] == close((spread + 20 * common) / (20 * spread + 20 * common))
    assert measured["rank_predicted"] == close(20)


# The linear map


def ridge_by_formula(predicted, target, problem, penalty):
    """Residual and total over folds; the primal normal equations, whatever the shape."""
    predicted, target = (v.double() / v.double().norm(dim=-1, keepdim=True) for v in (predicted, target))
    names = sorted(set(problem.tolist()))
    folds = min(5, len(names))
    residual = total = 0.0
    for fold in range(folds):
        held = torch.tensor([names.index(name) % folds == fold for name in problem.tolist()])
        mean_p, mean_t = predicted[~held].mean(0), target[~held].mean(0)
        x, y = predicted[~held] - mean_p, target[~held] - mean_t
        scale = sum(float(row @ row) for row in x) / len(x)
        weights = torch.linalg.solve(x.T @ x + penalty * scale * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        for p, t in zip(predicted[held], target[held], strict=True):
            residual += float((t - mean_t - (p - mean_p) @ weights).square().sum())
            total += float((t - mean_t).square().sum())
    return residual / total


@pytest.mark.parametrize(("pairs", "width"), [(45, 6), (12, 30), (30, 24), (7, 5)])
def test_linear_error_is_the_written_out_formula(pairs, width):
    predicted = gaussian(pairs, width)
    target = predicted @ gaussian(width, width, seed=1) + gaussian(pairs, width, seed=2)
    problem = torch.tensor([5 * (i // 3) + 100 for i in range(pairs)])
    expected = min(ridge_by_formula(predicted, target, problem, penalty) for penalty in PENALTIES)
    assert linear_error(predicted, target, problem) == close(expected)


def test_a_linear_map_is_found():
    predicted = gaussian(600, 8)
    predicted /= predicted.norm(dim=-1, keepdim=True)
    rotation = orthonormal(8, 8, seed=1)
    assert linear_error(predicted, predicted @ rotation, problems(600)) < 1e-4
    assert linear_error(predicted, predicted @ gaussian(8, 8, seed=2), problems(600)) < 0.1  # unit length bends the map


@pytest.mark.parametrize("pairs", [20, 60, 75, 600])  # fewer, as many (48 and 60 to train on) and more than H
def test_independent_views_are_not_explained(pairs):
    error = linear_error(gaussian(pairs, 48), gaussian(pairs, 48, seed=1), problems(pairs))
    assert 0.98 < error < 1.1


def test_folds_never_split_a_problem():
    """Every problem has its own direction, twice: learnt from one pair, it would explain the other."""
    directions, answers = orthonormal(20, 64), orthonormal(20, 64, seed=1)
    predicted, target = directions.repeat_interleave(2, 0), answers.repeat_interleave(2, 0)
    assert linear_error(predicted, target, torch.arange(40) // 2) > 0.98
    assert linear_error(predicted, target, torch.arange(40).roll(7)) < 0.1


def test_one_problem_has_no_linear_error_and_two_have():
    predicted, target = gaussian(10, 4), gaussian(10, 4, seed=1)
    assert math.isnan(linear_error(predicted, target, torch.zeros(10, dtype=torch.long)))
    assert math.isfinite(linear_error(predicted, target, torch.arange(10) % 2))


# Trajectories


def trajectory(*points):
    return torch.tensor(points, dtype=torch.float32)


def test_straight_lines_are_extrapolated_exactly():
    line = torch.arange(5)[:, None] * torch.tensor([[1.0, -2.0, 0.5]]) + 3
    states = torch.cat([line, -2 * line])
    step = torch.arange(5).repeat(2)
    measured = latent_error(states, problems(10, each=5), step)
    assert measured == {f"latent_error_{m}": close(0, abs=1e-12) for m in (1, 2, 3)}


def test_latent_error_by_hand():
    states = trajectory([0, 0], [1, 0], [1, 1], [0, 1])  # three sides of a square
    # m = 1: (2, 0) for (1, 1), 2 over 1; (1, 2) for (0, 1), 2 over 1.   m = 2: (3, 0) for (0, 1), 10 over 2.
    measured = latent_error(states, torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert measured["latent_error_1"] == close(2)
    assert measured["latent_error_2"] == close(5)
    assert math.isnan(measured["latent_error_3"])


def latent_error_by_loops(states, problem, step, m):
    error = still = 0.0
    for here, z in enumerate(states.double()):
        of = {int(s): states[row].double() for row, s in enumerate(step) if problem[row] == problem[here]}
        k = int(step[here])
        if k - 1 in of and k + m in of:
            error += float((of[k + m] - (z + m * (z - of[k - 1]))).square().sum())
            still += float((of[k + m] - z).square().sum())
    return error / still


def test_latent_error_is_the_written_out_formula_in_any_order_and_over_gaps():
    problem = torch.tensor([4] * 6 + [9] * 5 + [2])
    step = torch.tensor([0, 1, 2, 3, 4, 5] + [1, 2, 4, 5, 6] + [3])  # problem 9 lacks its step 3
    states, order = gaussian(12, 4), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    measured = latent_error(states[order], problem[order], step[order], horizons=(1, 2, 4))
    expected = {f"latent_error_{m}": close(latent_error_by_loops(states, problem, step, m)) for m in (1, 2, 4)}
    assert measured == expected


def test_standing_still_and_no_places_have_no_latent_error():
    still = latent_error(torch.ones(5, 3), torch.zeros(5, dtype=torch.long), torch.arange(5))
    short = latent_error(gaussian(6, 3), problems(6, each=2), torch.arange(6) % 2)
    empty = latent_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    for measured in (still, short, empty):
        assert len(measured) == 3
        assert all(math.isnan(value) for value in measured.values())


def test_a_step_has_one_state():
    with pytest.raises(AssertionError, match="one state per problem and step"):
        latent_error(torch.ones(2, 3), torch.tensor([1, 1]), torch.tensor([0, 0]))


# All together


def test_collapsed_views():
    measured = summary(1000 * collapsed(), 3 * collapsed(seed=1), problems(60))
    zero, one = close(0, abs=1e-6), close(1)
    apart = close(cosine(collapsed()[0].tolist(), collapsed(seed=1)[0].tolist()))
    assert measured == {
        **{"cosine_paired": apart, "cosine_unpaired": apart, "cosine_margin": zero},
        **{"centred_paired": zero, "centred_unpaired": zero, "centred_margin": zero},
        **{"retrieval_at_1": close(1 / 60), "retrieval_at_1_centred": close(1 / 60)},
        **{"rank_predicted": one, "rank_target": one, "mean_energy_predicted": one, "mean_energy_target": one},
        **{"difference_rank": one, "difference_top": one},
    }


def test_views_collapsed_to_the_same_point_have_no_differences():
    measured = summary(collapsed(), 3 * collapsed(), problems(60))
    assert measured.keys() == ALL - {"linear_error", "difference_rank", "difference_top"}
    assert measured["cosine_paired"] == close(1)
    assert measured["cosine_unpaired"] == close(1)
    assert torch.isnan(spectrum(collapsed(), 3 * collapsed())).all()


def test_collapsed_predictions_explain_nothing():
    measured = summary(collapsed(), gaussian(60, 8), problems(60))
    assert measured["linear_error"] == close(1)
    assert measured["retrieval_at_1"] == close(1 / 60)
    assert measured["retrieval_at_1_centred"] == close(1 / 60)
    assert measured["rank_target"] > 7
    assert linear_error(torch.eye(1, 8).expand(60, 8), gaussian(60, 8), problems(60)) == close(1)  # no rounding at all


def test_views_of_zeros():
    measured = summary(torch.zeros(9, 4), torch.zeros(9, 4), problems(9))
    undefined = {"rank_predicted", "rank_target", "linear_error", "difference_rank", "difference_top"}
    chance = dict.fromkeys(("retrieval_at_1", "retrieval_at_1_centred"), close(1 / 9))
    assert measured == {**dict.fromkeys(ALL - undefined, 0.0), **chance}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_summary_is_plain_numbers_and_takes_any_float(dtype):
    predicted, target = gaussian(2, 30, 12, dtype=dtype).requires_grad_()
    measured = summary(predicted, target, problems(30))
    assert measured.keys() == ALL
    assert all(type(value) is float and math.isfinite(value) for value in measured.values())
    exact = summary(predicted.detach().double(), target.detach().double(), problems(30))
    assert measured == exact


def test_length_does_not_matter_but_to_the_ranks_and_the_centred_figures():
    predicted, target = gaussian(2, 30, 12)
    lengths = gaussian(30, 1, seed=3).exp()
    before, after = (summary(predicted, t, problems(30)) for t in (target, lengths * target))
    for name in ALL - {"rank_target", *(name for name in ALL if "centred" in name)}:
        assert after[name] == close(before[name]), name


def test_of_many_pairs_a_fixed_sample_is_taken_where_it_costs():
    measured = summary(collapsed(3000), collapsed(3000, seed=1), problems(3000))
    assert measured["retrieval_at_1"] == close(1 / 2000)
    axes = torch.eye(2).repeat_interleave(torch.tensor([2000, 1000]), 0)  # the first 2,000 pairs are all alike
    measured = summary(axes, axes, problems(3000))
    third = 1 / 3
    assert measured["mean_energy_predicted"] == close(4 / 9 + 1 / 9)  # of all: the mean is (2/3, 1/3)
    assert measured["cosine_unpaired"] == close((3000**2 * 5 / 9 - 3000) / (3000 * 2999))
    shares = [math.sqrt(share) / (math.sqrt(third) + math.sqrt(1 - third)) for share in (third, 1 - third)]
    assert measured["rank_target"] == close(math.prod(share**-share for share in shares), rel=0.01)
    assert summary(axes, axes, problems(3000)) == measured
    torch.manual_seed(1)
    assert summary(axes, axes, problems(3000)) == measured


def test_one_pair_and_none():
    predicted, target = gaussian(2, 1, 6)
    measured = summary(predicted, target, torch.zeros(1, dtype=torch.long))
    ones = ("rank_predicted", "rank_target", "mean_energy_predicted", "mean_energy_target")
    paired = close(cosine(predicted[0].tolist(), target[0].tolist()))
    differences = {"difference_rank": close(1), "difference_top": close(1)}
    assert measured == {"cosine_paired": paired, **dict.fromkeys(ones, close(1)), **differences}
    assert summary(torch.zeros(0, 6), torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)) == {}
