"""Frechet-Lite0: the Frechet distance of Gaussians fitted to pooled Lite0 features of two sets of images.

The formula is that of FID (Heusel et al. 2017), the features are not: values compare only with values of this name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.kid import MIN_SET
from ..statistics import Estimate, random_half

Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]


def fit(features: NDArray[np.float64]) -> Gaussian:
    """Mean [d] of features [n, d], and a factor F [min(n, d), d] of their covariance, F' F."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return features.mean(axis=0), centred if len(features) <= features.shape[1] else np.asarray(
        np.linalg.qr(centred, mode="r")
    )


def squared_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982).

    The trace of the root of F' F G' G is the sum of the singular values of F G': no root of a matrix is taken, and
    covariances of fewer samples than dimensions need no regularisation.
    """
    (mean_a, f), (mean_b, g) = a, b
    cross = np.linalg.svd(f @ g.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (f**2).sum() + (g**2).sum() - 2 * cross)


def frechet_estimate(
    real: NDArray[np.floating[Any]],
    made: NDArray[np.floating[Any]],
    *,
    group: int = 1,
    resamples: int = 50,
    seed: int = 0,
) -> Estimate:
    """Squared Frechet distance between two sets of features, and that of random halves of both.

    The estimate is biased upwards by an amount that falls about as one over the number of images; see `report`.

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
        raise ValueError(
            f"the Frechet distance takes features [n, d] and [m, d] with n, m >= {MIN_SET}, got {x.shape} and {y.shape}"
        )
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(resamples):
        i, j = random_half(rng, len(x)), random_half(rng, len(y), group)
        halves.append(squared_distance(fit(x[i]), fit(y[j])))
    return Estimate(squared_distance(fit(x), fit(y)), np.asarray(halves))


def report(estimate: Estimate, real: int, made: int, width: int) -> dict[str, Any]:
    """A distance with what its bias can be judged by.

    Returns:
        {"value", "std", "ci95", "halves", "extrapolated", "real", "made", "width", "full_rank"}: `halves` is the mean
        over random halves, `extrapolated` what a line in 1/n through both gives for ever more images (Chong and
        Forsyth 2020), `full_rank` whether both sets have more images than the features have dimensions.
    """
    halves = float(estimate.halves.mean())
    return {
        "value": estimate.value,
        "std": estimate.std,
        "ci95": estimate.ci95,
        "halves": halves,
        "extrapolated": 2 * estimate.value - halves,
        "real": real,
        "made": made,
        "width": width,
        "full_rank": min(real, made) > width,
    }
