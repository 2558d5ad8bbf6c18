"""Nearest codes, neighbour tables and pooled mass against float64 definitions and the limits of the method."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mulosd.kernels import nearest_code, neighbours, pooled_mass, shuffle_nearest
from mulosd.kernels.upsample_pool import reference


def unit_rows(vocab: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(vocab, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 9), st.integers(1, 40))
def test_nearest_code_has_the_largest_cosine(seed: int, vocab: int, dim: int, rows: int) -> None:
    codebook = unit_rows(vocab, dim, seed)
    features = 10 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed + 1))
    code = nearest_code(features, codebook)
    cosine = F.normalize(features.double(), dim=-1).numpy() @ codebook.double().numpy().T
    chosen = cosine[np.arange(rows), code.numpy()]
    np.testing.assert_allclose(chosen, cosine.max(-1), atol=1e-6)


def test_nearest_code_ignores_length_and_keeps_leading_axes() -> None:
    codebook = unit_rows(20, 8)
    features = torch.stack([codebook * 0.01, codebook * 100.0])
    assert torch.equal(nearest_code(features, codebook), torch.arange(20).expand(2, 20))
    assert nearest_code(codebook[3], codebook).shape == ()
    assert nearest_code(torch.zeros(0, 8), codebook).shape == (0,)


def test_nearest_code_is_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, features = unit_rows(16, 4), torch.randn(37, 4)
    whole = nearest_code(features, codebook)
    monkeypatch.setattr(reference, "CHUNK", 16 * 5)
    assert torch.equal(nearest_code(features, codebook), whole)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_shuffle_follows_pixel_shuffle(r: int) -> None:
    codebook, features = unit_rows(32, 3), torch.randn(2, 3 * r * r, 5, 4)
    token = shuffle_nearest(features, codebook, r)
    pixels = F.pixel_shuffle(features, r)
    assert token.shape == (2, 5 * r, 4 * r)
    assert torch.equal(token, nearest_code(pixels.permute(0, 2, 3, 1), codebook))


def test_shuffle_takes_strided_features() -> None:
    codebook, features = unit_rows(32, 3), torch.randn(2, 12, 5, 4)
    channels_last = features.to(memory_format=torch.channels_last)
    assert torch.equal(shuffle_nearest(channels_last, codebook, 2), shuffle_nearest(features, codebook, 2))


def test_nearest_code_names_the_bad_feature() -> None:
    features = torch.zeros(2, 3, 4)
    features[1, 1, 0] = math.nan
    with pytest.raises(ValueError, match="feature 4 "):
        nearest_code(features, unit_rows(8, 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.data())
def test_neighbours(seed: int, vocab: int, data: st.DataObject) -> None:
    """On a codebook of few signed axes, full of equal rows, so that the rule for ties matters."""
    k = data.draw(st.integers(1, vocab))
    rng = np.random.default_rng(seed)
    codebook = np.eye(3)[rng.integers(0, 3, vocab)] * rng.choice([-1.0, 1.0], (vocab, 1))
    table = neighbours(torch.from_numpy(codebook).float(), k)
    assert table.dtype == torch.int32
    assert table.shape == (vocab, k)
    cosine = codebook @ codebook.T
    for v in range(vocab):
        expected = sorted(range(vocab), key=lambda j: (j != v, -cosine[v, j], j))[:k]
        assert table[v].tolist() == expected


def test_neighbours_of_random_codes_by_float64() -> None:
    codebook = unit_rows(200, 8)
    cosine = codebook.double().numpy() @ codebook.double().numpy().T
    assert np.array_equal(neighbours(codebook, 10).numpy(), np.argsort(-cosine, axis=1, kind="stable")[:, :10])


def test_neighbours_are_nested_and_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = torch.cat([unit_rows(30, 4)] * 2)
    full = neighbours(codebook, 60)
    monkeypatch.setattr(reference, "CHUNK", 60 * 7)
    for k in (1, 7, 60):
        assert torch.equal(neighbours(codebook, k), full[:, :k])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 40),
    guided=st.booleans(),
    temperature=st.sampled_from([0.0, 0.6, 1.0]),
    top_k=st.sampled_from([0, 1, 5]),
)
def test_pooled_mass_by_float64(
    distribution: Callable[..., np.ndarray], seed: int, vocab: int, guided: bool, temperature: float, top_k: int
) -> None:
    rng = np.random.default_rng(seed)
    cond = rng.normal(0, 2, (6, vocab)).astype(np.float32)
    uncond = rng.normal(0, 2, (6, vocab)).astype(np.float32) if guided else None
    table = neighbours(unit_rows(vocab, 4, seed), int(rng.integers(1, vocab + 1)))
    token = torch.from_numpy(rng.integers(0, vocab, 6))
    result = pooled_mass(
        torch.from_numpy(cond),
        None if uncond is None else torch.from_numpy(uncond),
        token,
        table,
        tau=0.3,
        cfg_scale=2.0,
        temperature=temperature,
        top_k=top_k,
        top_p=1.0,
    )
    p = distribution(cond, uncond, 2.0, temperature, top_k, 1.0)
    expected = np.array([p[i, table[t].numpy()].sum() for i, t in enumerate(token)])
    np.testing.assert_allclose(result.mass.numpy(), expected, atol=3e-6)
    assert result.mass.dtype == torch.float32
    assert result.accept.dtype == torch.bool
    assert torch.equal(result.accept, result.mass >= 0.3)


def test_limits_of_the_method() -> None:
    """tau = 0 accepts all, tau > 1 nothing, k = V has mass exactly 1, the mass grows with k."""
    cond, token = 8 * torch.randn(300, 24), torch.randint(24, (300,))
    codebook = unit_rows(24, 4)
    before = torch.zeros(300)
    for k in range(1, 25):
        table = neighbours(codebook, k)
        mass, accept = pooled_mass(cond, None, token, table, tau=0.0, top_k=9)
        assert accept.all()
        assert (mass <= 1).all()
        assert (mass >= before).all()
        assert not pooled_mass(cond, None, token, table, tau=1.0 + 1e-6, top_k=9).accept.any()
        before = mass
    assert (before == 1.0).all()
    assert pooled_mass(cond, None, token, table, tau=1.0).accept.all()


def test_pooled_mass_errors() -> None:
    cond, token, table = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int32)
    bad_row = cond.clone()
    bad_row[1, 2] = math.nan
    with pytest.raises(ValueError, match="row 1 "):
        pooled_mass(bad_row, None, token, table, tau=0.0)
    with pytest.raises(ValueError, match="tokens must be"):
        pooled_mass(cond, None, token[:2], table, tau=0.0)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="tokens must be in"):
            pooled_mass(cond, None, token + wrong, table, tau=0.0)
    with pytest.raises(ValueError, match="neighbours"):
        pooled_mass(cond, None, token, table[:3], tau=0.0)
    for tau in (-0.1, math.nan):
        with pytest.raises(ValueError, match="tau"):
            pooled_mass(cond, None, token, table, tau=tau)


def test_codebook_errors() -> None:
    codebook = unit_rows(5, 4)
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"\[1, 5\]"):
            neighbours(codebook, k)
    with pytest.raises(ValueError, match="finite"):
        neighbours(codebook * math.inf, 2)
    with pytest.raises(ValueError, match="d = 4"):
        nearest_code(torch.zeros(2, 3), codebook)
    with pytest.raises(ValueError, match="16, h, w"):
        shuffle_nearest(torch.zeros(1, 8, 2, 2), codebook, 2)
    with pytest.raises(ValueError, match="r must be"):
        shuffle_nearest(torch.zeros(1, 8, 2, 2), codebook, 0)
    with pytest.raises(ValueError, match="codebook"):
        neighbours(codebook[0], 1)
