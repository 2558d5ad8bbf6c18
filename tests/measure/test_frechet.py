"""The Frechet distance against closed forms, and its error and bias against repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from mulosd.measure.metrics.frechet import fit, frechet_estimate, report, squared_distance


def of_covariance(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@pytest.mark.parametrize(("n", "m"), [(40, 30), (200, 50), (12, 9)], ids=["full rank", "n far above d", "n below d"])
def test_the_value_is_the_formula_with_matrix_roots(n: int, m: int) -> None:
    x, y = of_covariance(n, 16, 0), of_covariance(m, 16, 1)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The symmetric form: singular covariances have a root, where that of the plain product is ill-conditioned.
    root = np.real(sqrtm(a))
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(root @ b @ root)))
    assert squared_distance(fit(x), fit(y)) == pytest.approx(expected, rel=1e-5)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    # Columns of a Hadamard matrix: mean 0 and exactly uncorrelated.
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])[:, 1:].astype(float)
    first, second = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    shift = np.array([0.5, -1.0, 2.0])
    unit = np.sqrt(4 / 3)  # standard deviation of +-1 with n - 1 below
    expected = (shift**2).sum() + (unit**2 * (first - second) ** 2).sum()
    assert squared_distance(fit(signs * first), fit(signs * second + shift)) == pytest.approx(expected)
    assert squared_distance(fit(signs), fit(signs)) == pytest.approx(0, abs=1e-12)


def test_the_error_bar_and_the_extrapolation_are_right() -> None:
    rng = np.random.default_rng(0)
    draws = [
        report(frechet_estimate(rng.normal(size=(120, 8)), rng.normal(0.3, 1, (120, 8)), seed=s), 120, 120, 8)
        for s in range(40)
    ]
    values = np.array([d["value"] for d in draws])
    true = np.std(values, ddof=1)
    # 40 draws know their spread to 11 %; the mean of 40 estimates is far better.
    assert 0.6 * true < np.mean([d["std"] for d in draws]) < 1.6 * true
    error = true / np.sqrt(len(draws))
    bias = values.mean() - 8 * 0.3**2
    assert bias > 4 * error, "samples are farther apart than their distributions are"
    assert abs(np.mean([d["extrapolated"] for d in draws]) - 8 * 0.3**2) < bias / 2
    assert all(d["halves"] > d["value"] for d in draws)
    assert draws[0]["full_rank"]
    assert not report(frechet_estimate(*[rng.normal(size=(8, 8))] * 2), 8, 8, 8)["full_rank"]


def test_pictures_of_a_prompt_stay_together() -> None:
    rng = np.random.default_rng(0)
    real, prompts = rng.normal(size=(64, 4)), rng.normal(size=(32, 1, 4))
    made = np.repeat(prompts, 4, axis=1).reshape(-1, 4)
    alone, together = (frechet_estimate(real, made, group=g).std for g in (1, 4))
    assert together > 1.3 * alone, "four copies say no more than one"


def test_it_checks() -> None:
    with pytest.raises(ValueError, match="n, m >= 4"):
        frechet_estimate(np.zeros((3, 2)), np.zeros((9, 2)))
