"""Every loss once more: its formula in numpy and float64, with loops where the paper has sums. What distances.py and
regularisers.py are held against; it shares no code with them. Axes: P pairs, H hidden size."""

import numpy as np

Array = np.ndarray


def cosine(p: Array, t: Array) -> Array:
    return 1 - np.array([a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)) for a, b in zip(p, t, strict=True)])


def l2(p: Array, t: Array) -> Array:
    return np.array([np.sqrt(sum((a - b) ** 2)) for a, b in zip(p, t, strict=True)])


def mse(p: Array, t: Array) -> Array:
    return np.array([sum((a - b) ** 2) / len(a) for a, b in zip(p, t, strict=True)])


def normalised_l2(p: Array, t: Array) -> Array:
    return l2(_unit(p), _unit(t))


def normalised_mse(p: Array, t: Array) -> Array:
    return np.array([sum((a - b) ** 2) for a, b in zip(_unit(p), _unit(t), strict=True)])


def infonce(p: Array, t: Array, temperature: float = 0.07) -> Array:
    """-log of the own target's share, all targets being candidates (arXiv 1807.03748, eq. 4)."""
    p, t = _unit(p), _unit(t)
    shares = np.exp((p @ t.T - 1) / temperature)
    return np.array([-np.log(row[i] / sum(row)) for i, row in enumerate(shares)])


def vicreg(z: Array) -> float:
    """Variance and covariance terms, 25 to 1 (arXiv 2105.04906, eqs. 1-4)."""
    n, width = z.shape
    z = z - z.mean(0)
    covariance = sum(np.outer(each, each) for each in z) / (n - 1)
    variance = np.mean([max(0.0, 1 - np.sqrt(covariance[i, i] + 1e-4)) for i in range(width)])
    return float(variance + (np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)) / width / 25)


def epps_pulley(x: Array) -> float:
    """N * integral of |ecf(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt of numbers (N,), over [-5, 5] by the trapezoid rule on 17
    points (arXiv 2511.08544)."""
    t = np.linspace(-5, 5, 17)
    ecf = np.array([np.mean(np.exp(1j * each * x)) for each in t])
    return float(len(x) * np.trapezoid(np.abs(ecf - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t))


def _unit(views: Array) -> Array:
    return np.array([view / np.sqrt(view @ view) for view in views])
