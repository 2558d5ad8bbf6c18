"""Intervals over prompts: bootstrap, Wilson, quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
BLOCK = 1 << 22  # picks of the bootstrap that are held at a time


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` independent trials (Wilson 1927), which stays sensible at 0 and at 1.

    Raises:
        ValueError: n is not positive, or successes are outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding must not leave the ends a hair inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of sum(numerators) / sum(denominators), resampling whole prompts.

    Objects of one prompt succeed or fail together, so the prompt is the unit and not the object.

    Args:
        numerators: [n], one a prompt.
        denominators: [n], not negative, not all zero.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: shapes differ, nothing is given, or the denominators sum to zero.
    """
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size or (b < 0).any() or b.sum() <= 0:
        raise ValueError(f"numerators and denominators must be [n] with a positive total, got {a.shape} and {b.shape}")

    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums[:, 0] / sums[:, 1]

    return bootstrap(np.stack([a, b], axis=1), ratio, resamples=resamples, seed=seed)


def bootstrap(
    values: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of sums over prompts, resampling whole prompts.

    Args:
        values: [n, k], a row a prompt.
        statistic: takes sums [resamples, k] and gives [resamples]; what is not finite (an empty denominator) is left
            out.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: no resample gives a finite value.
    """
    rng = np.random.default_rng(seed)
    # In blocks: tens of thousands of prompts would not fit otherwise.
    block = max(1, BLOCK // len(values))
    parts = []
    for start in range(0, resamples, block):
        picks = rng.integers(len(values), size=(min(block, resamples - start), len(values)))
        parts.append(np.stack([column[picks].sum(axis=1) for column in values.T], axis=1))
    sums = np.concatenate(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = statistic(sums)
    found = found[np.isfinite(found)]
    if not found.size:
        raise ValueError("the statistic is not defined for any resample of the prompts")
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A figure of whole sets of images, and the same figure of random halves of them.

    By the delete-half jackknife (Shao and Wu 1989) the spread of the halves estimates the error of the figure itself,
    not that of a half. Two estimates whose halves hold the same prompts give the error of their difference.
    """

    value: float
    halves: NDArray[np.float64]

    @property
    def std(self) -> float:
        return float(np.std(self.halves, ddof=1))

    @property
    def ci95(self) -> list[float]:
        return [self.value - Z95 * self.std, self.value + Z95 * self.std]

    def plain(self) -> dict[str, Any]:
        """As a row states it."""
        return {"value": self.value, "std": self.std, "ci95": self.ci95}

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.halves - other.halves)


def random_half(rng: np.random.Generator, n: int, group: int = 1) -> NDArray[np.int64]:
    """Indices of a random half of n things, taken in groups of `group` neighbours: the images of a prompt."""
    chosen = rng.permutation(n // group)[: n // group // 2]
    return (chosen[:, None] * group + np.arange(group)).ravel()


def share_interval(successes: ArrayLike, trials: ArrayLike) -> tuple[float, float]:
    """95 % interval of a pooled share over prompts.

    The bootstrap over prompts, except where all or none succeed: there it collapses to a point, and Wilson's interval
    over prompts with anything to find is taken instead.
    """
    a, b = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    if a.sum() in (0.0, b.sum()) and b.sum() > 0:
        n = int((b > 0).sum())
        return wilson(0.0 if a.sum() == 0 else n, n)
    return bootstrap_ratio(a, b)


def spread(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Median, 20th and 80th percentile of a sample; ValueError when it is empty."""
    if not len(values):
        raise ValueError("no values to take quantiles of")
    p20, median, p80 = np.quantile(np.asarray(values, np.float64), [0.2, 0.5, 0.8])
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}
