"""How much images differ from each other: mean pairwise cosine distance of their features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import Estimate, bootstrap_ratio, random_half


def mean_distance(units: NDArray[np.float64]) -> float:
    """Mean cosine distance over the pairs of unit vectors [n, d], n of 2 or more."""
    n = len(units)
    return float(1 - ((units.sum(axis=0) ** 2).sum() - (units**2).sum()) / (n * (n - 1)))


def normalised(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    vectors = np.asarray(features, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def overall_diversity(
    features: NDArray[np.floating[Any]], *, group: int = 1, resamples: int = 100, seed: int = 0
) -> Estimate:
    """Mean distance of all pairs of images, 0 where all are the same and 1 where all are orthogonal.

    Args:
        features: [n, d].
        group: neighbours that are images of one prompt.
        resamples: random halves for the error.
        seed: of the halves.

    Raises:
        ValueError: fewer than 4 images, for a half must hold a pair.
    """
    if len(features) < 4:
        raise ValueError(f"the diversity of a set takes at least 4 images, got {len(features)}")
    units, rng = normalised(features), np.random.default_rng(seed)
    halves = [mean_distance(units[random_half(rng, len(units), group)]) for _ in range(resamples)]
    return Estimate(mean_distance(units), np.asarray(halves))


def prompt_diversities(features: NDArray[np.floating[Any]], group: int) -> NDArray[np.float64]:
    """Mean distance of the images of each prompt: features [prompts * group, d] -> [prompts].

    Raises:
        ValueError: fewer than 2 images a prompt, or prompts of different size.
    """
    if group < 2 or len(features) % group:
        raise ValueError(f"diversity within prompts takes 2 or more images of each, got {len(features)} by {group}")
    units = normalised(features)
    return np.asarray([mean_distance(units[start : start + group]) for start in range(0, len(units), group)])


def mean_over_prompts(values: NDArray[np.float64]) -> dict[str, Any]:
    """{"value", "ci95"} of one value a prompt."""
    return {"value": float(values.mean()), "ci95": list(bootstrap_ratio(values, np.ones(len(values))))}
