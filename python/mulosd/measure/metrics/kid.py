"""KID-Lite0: kernel distance of two sets of images on the features of a small ImageNet network.

The estimator is that of Binkowski et al., "Demystifying MMD GANs" (2018), on pooled EfficientNet-Lite0 features
instead of Inception's. Its values compare only with values of the same name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import Estimate, random_half

SCALE = 1000.0
MIN_SET = 4  # images: half of a set must still hold a pair


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x . y / d + 1)^3 for features [n, d] and [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def unbiased_mmd2(xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy from kernel matrices [n, n], [m, m] and [n, m]; it may be negative."""
    n, m = xy.shape
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def kid_estimate(
    real: NDArray[np.floating[Any]],
    made: NDArray[np.floating[Any]],
    *,
    group: int = 1,
    resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    """KID x 1000 between two sets of features, and that of random halves of both.

    Args:
        real: features [n, d].
        made: features [m, d].
        group: neighbours in `made` that are images of one prompt: they stay together in a half.
        resamples: random halves.
        seed: of the halves.

    Raises:
        ValueError: fewer than 4 features in a set, or different widths.
    """
    x, y = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < MIN_SET:
        raise ValueError(f"KID takes features [n, d] and [m, d] with n, m >= {MIN_SET}, got {x.shape} and {y.shape}")
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        i, j = random_half(rng, len(x)), random_half(rng, len(y), group)
        values.append(SCALE * unbiased_mmd2(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)]))
    return Estimate(SCALE * unbiased_mmd2(xx, yy, xy), np.asarray(values))


def kid(
    real: NDArray[np.floating[Any]], made: NDArray[np.floating[Any]], *, resamples: int = 100, seed: int = 0
) -> dict[str, float]:
    """{"value", "std"} of `kid_estimate`."""
    found = kid_estimate(real, made, resamples=resamples, seed=seed)
    return {"value": found.value, "std": found.std}
