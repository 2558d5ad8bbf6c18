"""Sampling: the exact rule, the exact distribution, independence of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import Purpose, gumbel, local_resample, processed_logits


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 8),
    vocab=st.integers(1, 70),
    guided=st.booleans(),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.6]),
)
def test_is_the_argmax_of_processed_logits_and_noise(
    seed: int, rows: int, vocab: int, guided: bool, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(rows, vocab, generator=generator)
    uncond = torch.randn(rows, vocab, generator=generator) if guided else None
    noise = gumbel(torch.full((rows,), seed), torch.arange(rows), vocab, Purpose.TARGET)
    token = local_resample(cond, uncond, noise, cfg_scale=2.5, temperature=temperature, top_k=top_k, top_p=top_p)
    assert token.dtype == torch.int64
    assert token.shape == (rows,)
    scores = processed_logits(cond, uncond, 2.5, temperature, top_k, top_p).numpy() + noise.numpy()
    np.testing.assert_array_equal(token.numpy(), scores.argmax(-1))


def test_draws_its_own_noise_by_seed_position_and_purpose() -> None:
    cond, seed, position = torch.randn(4, 30), torch.tensor([1, 1, 2, -5]), torch.tensor([0, 9, 0, 9])
    for purpose in Purpose:
        noise = gumbel(seed, position, 30, purpose)
        drawn = local_resample(cond, seed=seed, position=position, purpose=purpose)
        assert torch.equal(drawn, local_resample(cond, None, noise))


def test_token_does_not_depend_on_the_batch() -> None:
    cond, uncond = torch.randn(8, 64), torch.randn(8, 64)
    seed, position = torch.arange(8), torch.arange(8) * 3
    options = {"cfg_scale": 3.0, "temperature": 0.9, "top_k": 20, "top_p": 0.9}
    together = local_resample(cond, uncond, seed=seed, position=position, **options)
    for i in range(8):
        one = slice(i, i + 1)
        alone = local_resample(cond[one], uncond[one], seed=seed[one], position=position[one], **options)
        assert alone.item() == together[i]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 8},
        {"temperature": 1.3, "top_p": 0.8},
        {"cfg_scale": 1.5, "temperature": 2.0, "top_k": 10, "top_p": 0.9},
    ],
)
def test_distribution(distribution: Callable[..., np.ndarray], options: dict[str, float]) -> None:
    """Chi-square of n = 20,000 draws over 16 entries, alpha = 1e-4 a case, seeds fixed.

    A distribution at chi-square distance w**2 = sum((p - q)**2 / q) = 0.003 from the true one (for example 5.5 % of the
    mass of half of the entries moved to the other half) is detected with a power above 0.95.
    """
    n, vocab = 20_000, 16
    assert scipy.stats.ncx2.sf(scipy.stats.chi2.isf(1e-4, vocab - 1), vocab - 1, n * 0.003) > 0.95
    rng = np.random.default_rng(3)
    cond, uncond = rng.normal(0, 1, (2, 1, vocab)).astype(np.float32)
    guided = "cfg_scale" in options
    full = {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    p = distribution(cond, uncond if guided else None, **full)[0]
    token = local_resample(
        torch.from_numpy(cond).expand(n, vocab),
        torch.from_numpy(uncond).expand(n, vocab) if guided else None,
        seed=torch.full((n,), 2024),
        position=torch.arange(n),
        **full,
    )
    counts = np.bincount(token.numpy(), minlength=vocab)
    assert counts[p == 0].sum() == 0
    inside = p > 0
    assert inside.sum() >= 4  # or the case would test nothing
    assert scipy.stats.chisquare(counts[inside], n * p[inside]).pvalue > 1e-4


def test_greedy_needs_no_noise_and_takes_the_first_maximum() -> None:
    assert local_resample(torch.tensor([[1.0, 4.0, 4.0], [9.0, 0.0, 9.0]]), temperature=0.0).tolist() == [1, 0]


def test_minus_infinity_is_never_drawn() -> None:
    cond = torch.full((200, 6), -math.inf)
    cond[:, 3] = 0.0
    token = local_resample(cond, seed=torch.zeros(200, dtype=torch.int64), position=torch.arange(200))
    assert (token == 3).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}])
def test_bad_row_is_named(value: float, options: dict[str, float]) -> None:
    cond = torch.zeros(3, 5)
    cond[2, 1] = value
    with pytest.raises(ValueError, match="row 2 "):
        local_resample(cond, None, torch.zeros(3, 5), **options)  # type: ignore[arg-type]


def test_row_of_minus_infinity_is_named() -> None:
    cond = torch.zeros(2, 5)
    cond[0] = -math.inf
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="row 0 "):
            local_resample(cond, None, torch.zeros(2, 5), **options)  # type: ignore[arg-type]


def test_errors() -> None:
    cond = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="gumbel"):
        local_resample(cond, None, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="seed and position"):
        local_resample(cond)
    with pytest.raises(ValueError, match="seed and position"):
        local_resample(cond, seed=torch.zeros(1, dtype=torch.int64), position=torch.zeros(1, dtype=torch.int64))
