"""Oracles shared by the kernel tests: written in numpy float64, without any code of the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

Array = np.ndarray


def exact_distribution(
    cond: Array, uncond: Array | None, cfg_scale: float, temperature: float, top_k: int, top_p: float
) -> Array:
    """The processed distribution [R, V] in float64, row by row and by the definitions."""
    rows = []
    for r in range(len(cond)):
        z = cond[r].astype(np.float64)
        if uncond is not None:
            u = uncond[r].astype(np.float64)
            z = u + cfg_scale * (z - u)
        if temperature == 0:
            rows.append(np.eye(len(z))[int(np.argmax(z))])
            continue
        z = z / temperature
        keep = np.ones(len(z), dtype=bool)
        if 0 < top_k < len(z):
            keep &= z >= sorted(z, reverse=True)[top_k - 1]
        p = np.where(keep, np.exp(z - z.max()), 0.0)
        p /= p.sum()
        if top_p < 1:
            total, chosen = 0.0, np.zeros(len(z), dtype=bool)
            for i in sorted(range(len(z)), key=lambda i: (-p[i], i)):
                if total >= top_p:
                    break
                chosen[i] = True
                total += p[i]
            p = np.where(chosen, p, 0.0)
            p /= p.sum()
        rows.append(p)
    return np.stack(rows)


@pytest.fixture(scope="session")
def distribution() -> Callable[..., Array]:
    return exact_distribution
