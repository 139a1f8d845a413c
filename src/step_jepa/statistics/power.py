"""How many seeds and problems show a difference."""

from bisect import bisect_left
from dataclasses import astuple
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import ncf, t

from step_jepa.errors import UserError
from step_jepa.statistics.significance import ALPHA
from step_jepa.statistics.variance import Components, degrees_of_freedom

MOST_SEEDS = 10_000
POWER = 0.8


def detectable(assumed: Components, seeds: int, problems: int, *, comparisons: int = 1) -> float:
    """The smallest difference that `two_way` finds with 80 % power at 5 %, or at 5 % / comparisons, Holm's first step.

    The square of a noncentral t with shift difference / se.

    Raises:
        UserError: for fewer than two seeds or problems, and for variances that are negative, not finite or all zero.
    """
    if min(seeds, problems) < 2:
        raise UserError(f"{seeds} seeds and {problems} problems can show no difference: take at least two of each")
    variances = astuple(assumed)
    if not np.isfinite(variances).all() or min(variances) < 0 or not sum(variances):
        given = f"variances of seed, problem, residual are {variances}"
        raise UserError(f"{given}: give finite ones, none below 0, and one above")
    from_seeds = (assumed.seed + assumed.residual / problems) / seeds
    from_problems = assumed.problem / problems
    df = degrees_of_freedom(from_seeds, from_problems, seeds, problems)
    critical = t.isf(ALPHA / comparisons / 2, df)

    def missing_power(shift: float) -> float:
        # As F: scipy's noncentral t is nan in places, and what statsmodels solves with it is wrong with few seeds.
        return float(ncf.sf(critical**2, 1, df, shift**2)) - POWER

    return float(brentq(missing_power, 0, 10 * critical)) * sqrt(from_seeds + from_problems)


def seeds_needed(assumed: Components, problems: int, effect: float, *, comparisons: int = 1) -> int | None:
    """The fewest seeds with which `effect` is `detectable`; None where 10,000 are too few, and problems are missing.

    Of an observed effect and its variances it is as uncertain as they are. Raises UserError as `detectable` does.
    """

    def suffices(seeds: int) -> bool:
        return detectable(assumed, seeds, problems, comparisons=comparisons) <= abs(effect)

    needed = bisect_left(range(MOST_SEEDS + 1), True, lo=2, key=suffices)
    return needed if needed <= MOST_SEEDS else None
