"""Triton's Philox, `local_resample` and `pooled_mass` in the interpreter, against the torch references and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from mulosd.kernels import BackendUnavailable, gumbel, local_resample, philox, pooled_mass

pytest.importorskip("triton")
import triton
import triton.language as tl

from mulosd.kernels import philox_triton, sampling_triton

pytestmark = pytest.mark.interpreter


@triton.jit
def cipher_kernel(key, counter, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    key_low = tl.load(key + i, mask=inside).to(tl.uint32)
    key_high = tl.load(key + n + i, mask=inside).to(tl.uint32)
    c0 = tl.load(counter + i, mask=inside).to(tl.uint32)
    c1 = tl.load(counter + n + i, mask=inside).to(tl.uint32)
    c2 = tl.load(counter + 2 * n + i, mask=inside).to(tl.uint32)
    c3 = tl.load(counter + 3 * n + i, mask=inside).to(tl.uint32)
    c0, c1, c2, c3 = philox_triton.philox4x32(key_low, key_high, c0, c1, c2, c3)
    tl.store(out + i, c0.to(tl.int64), mask=inside)
    tl.store(out + n + i, c1.to(tl.int64), mask=inside)
    tl.store(out + 2 * n + i, c2.to(tl.int64), mask=inside)
    tl.store(out + 3 * n + i, c3.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["purpose"])
def noise_kernel(seed, position, uniform, noise, vocab, purpose, BY_ENTRY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    seed = tl.load(seed + row)
    position = tl.load(position + row)
    for begin in range(0, vocab, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        if BY_ENTRY:
            words = philox_triton.entry_words(seed, position, purpose, index)
        else:
            words = philox_triton.row_words(seed, position, purpose, begin, BLOCK)
        tl.store(uniform + row * vocab + index, philox_triton.open_uniform(words), mask=index < vocab)
        tl.store(noise + row * vocab + index, philox_triton.gumbel(words), mask=index < vocab)


# Random123's known answers of philox4x32-10: key, counter, words.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_philox_known_answers_and_equality_with_torch() -> None:
    words = torch.randint(2**32, (6, 29), generator=torch.Generator().manual_seed(0))
    key = torch.cat([torch.tensor([k for k, _, _ in KNOWN]).T, words[:2]], dim=1).contiguous()
    counter = torch.cat([torch.tensor([c for _, c, _ in KNOWN]).T, words[2:]], dim=1).contiguous()
    out = torch.full_like(counter, -1)
    cipher_kernel[(1,)](key, counter, out, 32, BLOCK=32)
    assert out[:, :3].T.tolist() == [list(answer) for _, _, answer in KNOWN]
    assert torch.equal(out, philox.philox4x32(key, counter))


@pytest.mark.parametrize("by_entry", [False, True])
@pytest.mark.parametrize("purpose", [0, 1, 2**32 - 1])
def test_uniforms_are_equal_and_noise_is_close(by_entry: bool, purpose: int) -> None:
    seed, position = torch.tensor([0, -1, 2**40 + 5]), torch.tensor([0, 2**32 - 1, 77])
    uniform, noise = (torch.full((3, 301), math.nan) for _ in range(2))
    noise_kernel[(3,)](seed, position, uniform, noise, 301, purpose, BY_ENTRY=by_entry, BLOCK=128)
    assert torch.equal(uniform, philox.uniform(seed, position, 301, purpose))
    torch.testing.assert_close(noise, gumbel(seed, position, 301, purpose), rtol=2e-6, atol=2e-6)


@triton.jit
def rough_kernel(words, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, philox_triton.rough_gumbel(tl.load(words + i).to(tl.uint32)))


def test_rough_noise_stays_within_its_bound() -> None:
    """Every 23 bits that a word is read by, in steps, and both ends, where the logarithms are steepest."""
    bits = torch.cat([torch.arange(0, 2**23, 128), torch.arange(2**15), 2**23 - 1 - torch.arange(2**15)])
    rough = torch.empty(len(bits))
    rough_kernel[(2,)](bits << 9, rough, BLOCK=len(bits) // 2)
    exact = -torch.log(-torch.log((bits.double() + 0.5) * 2.0**-23))
    assert (rough - exact).abs().max() < philox_triton.ROUGH.value


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(vocab)
    values = 3 * torch.randn(rows, vocab, generator=generator)
    if kind == "ties":
        values = values.round().clamp(-1, 1)
        values[values == 0] *= -1  # zeros of both signs
    if kind == "sparse" and vocab > 1:
        values[torch.rand(rows, vocab, generator=generator) < 0.7] = -math.inf
        values[:, vocab // 2] = -20.0
    return values.to(dtype)


def noise_of(rows: int, vocab: int) -> Tensor:
    return gumbel(torch.arange(rows) - 1, torch.arange(rows), vocab, 0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.5, "top_k": 1},
    {"top_k": 3},
    {"temperature": 2.0, "top_k": 300},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.35},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.6},
    {"top_k": 10**6, "top_p": 0.999},
]


@pytest.fixture(params=["resident", "streamed", "reading"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows in registers; rows in tiles; rows in tiles whose survivors are always too many to collect."""
    if request.param != "resident":
        monkeypatch.setattr(sampling_triton, "RESIDENT", 0)
        monkeypatch.setattr(sampling_triton, "TILE", 512)
        monkeypatch.setattr(sampling_triton, "SURVIVORS", 512 if request.param == "streamed" else 1)
    return str(request.param)


@pytest.mark.parametrize("vocab", [1, 5, 700])
@pytest.mark.parametrize("kind", ["normal", "ties", "sparse"])
def test_resample_by_given_noise(path: str, vocab: int, kind: str) -> None:
    if path == "reading" and vocab == 700 and kind != "ties":
        pytest.skip("covered at 5 entries; each reading of 700 takes seconds here")
    cond, noise = logits_of(kind, 2, vocab), noise_of(2, vocab)
    # Reading again and again is slow here; every option changes the survivors' path, few the steps of the readings.
    for options in OPTIONS[3::3] if path == "reading" else OPTIONS:
        expected = local_resample(cond, None, noise, **options)
        assert torch.equal(local_resample(cond, None, noise, **options, backend="triton"), expected), options


@pytest.mark.parametrize("path", ["resident", "streamed"], indirect=True)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.25, 1.0, 3.5, -1.0])
def test_resample_with_guidance_and_row_strides(path: str, cfg_scale: float) -> None:
    both = torch.randn(4, 2, 700, generator=torch.Generator().manual_seed(0))
    cond, uncond = both[:, 0], both.flip(1)[:, 0]
    options: dict[str, Any] = {"cfg_scale": cfg_scale, "temperature": 0.8, "top_k": 50, "top_p": 0.9}
    expected = local_resample(cond, uncond, noise_of(4, 700), **options)
    assert torch.equal(local_resample(cond, uncond, noise_of(4, 700), **options, backend="triton"), expected)
    # Columns apart in memory.
    wide = torch.stack([cond, cond], dim=2)[:, :, 0]
    assert torch.equal(local_resample(wide, uncond, noise_of(4, 700), **options, backend="triton"), expected)


def test_guidance_of_scale_one_is_the_condition_itself() -> None:
    """Beside an uncond of 1e8 the plain formula would round every difference of cond away."""
    cond, uncond = torch.arange(64.0)[None], torch.full((1, 64), 1e8)
    assert local_resample(cond, uncond, torch.zeros(1, 64), cfg_scale=1.0, backend="triton").tolist() == [63]
    assert local_resample(uncond, cond, torch.zeros(1, 64), cfg_scale=0.0, backend="triton").tolist() == [63]


@pytest.mark.parametrize("path", ["resident", "streamed"], indirect=True)
@pytest.mark.parametrize("vocab", [7, 512, 1030])
def test_resample_by_its_own_philox(path: str, vocab: int) -> None:
    """Flat logits: the noise alone decides, so one wrong word or counter changes the tokens."""
    seed, position = torch.tensor([0, -1, 2**40 + 5]), torch.tensor([0, 2**32 - 1, 77])
    generator = torch.Generator().manual_seed(0)
    cond = torch.rand(3, vocab, generator=generator) * 1e-3
    for options in ({}, {"top_k": vocab // 2}, {"top_p": 0.5}):
        for purpose in (0, 1):
            drawn: dict[str, Any] = {"seed": seed, "position": position, "purpose": purpose, **options}
            assert torch.equal(local_resample(cond, **drawn, backend="triton"), local_resample(cond, **drawn))


def test_half_precision() -> None:
    cond, uncond = logits_of("normal", 2, 600, torch.float16), logits_of("ties", 2, 600, torch.float16)
    options: dict[str, Any] = {"cfg_scale": 2.0, "top_k": 40, "top_p": 0.8}
    expected = local_resample(cond, uncond, noise_of(2, 600), **options)
    assert torch.equal(local_resample(cond, uncond, noise_of(2, 600), **options, backend="triton"), expected)


# name -> (logits, top_p, tokens that stay); all masses are exact in float32.
EDGES = {
    "the first entry alone": ([2.0, 1.0, 0.0], 1e-9, {0}),
    "ties stay from the left": ([0.0] * 8, 0.5, {0, 1, 2, 3}),
    "reached exactly, the next one goes": ([0.0] * 8, 0.25, {0, 1}),
    "a little more takes one more": ([0.0] * 8, 0.2501, {0, 1, 2}),
    "ties below a larger entry": ([0.0, math.log(4.0), 0.0, 0.0, 0.0], 0.6, {0, 1}),
    "zeros of both signs are one value": ([0.0, -0.0, 0.0, -0.0], 0.5, {0, 1}),
    "almost all": ([1.0, 0.0, -1.0], 0.9999999, {0, 1, 2}),
    "minus infinity never": ([0.0, -math.inf, 0.0, -math.inf], 0.9999, {0, 2}),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_top_p(path: str, name: str) -> None:
    """The noise prefers each entry in turn: it is drawn if, and only if, it stays."""
    values, top_p, stay = EDGES[name]
    n = len(values)
    cond, noise = torch.tensor([values] * n), 1000 * torch.eye(n)
    token = local_resample(cond, None, noise, top_p=top_p, backend="triton")
    assert {int(t) for i, t in enumerate(token) if t == i} == stay
    assert torch.equal(token, local_resample(cond, None, noise, top_p=top_p))


def test_ties_at_the_kth_all_stay(path: str) -> None:
    cond, noise = torch.tensor([[0.0, 1.0, -0.0, 0.0, -1.0]] * 5), 1000 * torch.eye(5)
    assert local_resample(cond, None, noise, top_k=2, backend="triton").tolist() == [0, 1, 2, 3, 1]


def bad_rows(vocab: int) -> Tensor:
    cond = torch.zeros(5, vocab)
    cond[0, vocab - 1] = math.nan
    cond[1, 0] = math.inf
    cond[2] = -math.inf
    cond[3, 1] = 9.0
    return cond


@pytest.mark.parametrize("path", ["resident", "streamed"], indirect=True)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.3}, {"top_k": 3, "top_p": 0.5}]
)
def test_bad_rows_are_marked(path: str, options: dict[str, Any]) -> None:
    cond, noise = bad_rows(600), torch.zeros(5, 600)
    assert local_resample(cond, None, noise, **options, backend="triton").tolist() == [-1, -1, -1, 1, 0]
    table = torch.arange(600, dtype=torch.int32)[:, None].expand(600, 2).contiguous()
    token = torch.tensor([0, 0, 0, 1, 600])  # the last is out of range
    mass, accept = pooled_mass(cond, None, token, table[:, :1], tau=0.001, **options, backend="triton")
    assert mass[[0, 1, 2, 4]].tolist() == [0.0] * 4
    assert mass[3] > 0.9
    assert accept.tolist() == [False, False, False, True, False]
    everything = torch.arange(600).expand(600, 600)
    mass, accept = pooled_mass(cond, None, token, everything, tau=0.0, **options, backend="triton")
    assert mass.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert accept.all()


@pytest.mark.parametrize("vocab", [1, 5, 700])
@pytest.mark.parametrize("kind", ["normal", "ties", "sparse"])
def test_pooled_mass(path: str, distribution: Callable[..., np.ndarray], vocab: int, kind: str) -> None:
    if path == "reading" and vocab == 700 and kind != "ties":
        pytest.skip("covered at 5 entries; each reading of 700 takes seconds here")
    cond, uncond = logits_of(kind, 2, vocab), logits_of("normal", 2, vocab)
    generator = torch.Generator().manual_seed(1)
    token = torch.randint(vocab, (2,), generator=generator)
    for k in sorted({1, min(50, vocab - 1)} - {0}):  # k = V is tested with the bad rows
        table = torch.stack([torch.randperm(vocab, generator=generator)[:k] for _ in range(vocab)]).int()
        for options in OPTIONS[8:9] if path == "reading" else OPTIONS[4::2]:
            other = None if kind == "sparse" else uncond  # guidance between two -inf is NaN
            full: dict[str, Any] = {"cfg_scale": 1.5, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
            mass, accept = pooled_mass(cond, other, token, table, tau=0.2, **full, backend="triton")
            p = distribution(cond.numpy(), None if other is None else other.numpy(), **full)
            exact = np.array([p[i, table[t].numpy()].sum() for i, t in enumerate(token)])
            np.testing.assert_allclose(mass.numpy(), exact, atol=3e-6, rtol=2e-5, err_msg=str(options))
            assert torch.equal(accept, mass >= 0.2)


def test_mass_grows_with_the_neighbourhood() -> None:
    cond, token = 8 * torch.randn(6, 24), torch.randint(24, (6,))
    table = torch.stack([torch.randperm(24) for _ in range(24)])
    before = torch.zeros(6)
    for k in range(1, 25):
        mass, _ = pooled_mass(cond, None, token, table[:, :k].contiguous(), tau=0.0, top_k=9, backend="triton")
        assert (mass >= before).all()
        before = mass
    assert (before == 1.0).all()


@pytest.mark.parametrize("vocab", [16_384, 40_000, 65_536])
def test_real_vocabularies(vocab: int) -> None:
    """One row each; a top-k of 20,000 of 65,536 leaves more survivors than fit."""
    generator = torch.Generator().manual_seed(vocab)
    cond, uncond = 2 * torch.randn(2, 1, vocab, generator=generator)
    noise = noise_of(1, vocab)
    table = torch.randint(vocab, (vocab, 30), generator=generator)
    cases: list[dict[str, Any]] = [{"top_k": 1000}, {"top_k": 1000, "top_p": 0.7}, {"top_p": 0.3}]
    if vocab == 65_536:
        cases += [{}, {"top_k": 20_000, "temperature": 3.0}]
    for options in cases:
        full = {"cfg_scale": 2.0, **options}
        token = local_resample(cond, uncond, noise, **full, backend="triton")
        assert torch.equal(token, local_resample(cond, uncond, noise, **full)), options
        mass, _ = pooled_mass(cond, uncond, token, table, tau=0.1, **full, backend="triton")
        expected = pooled_mass(cond, uncond, token, table, tau=0.1, **full).mass
        torch.testing.assert_close(mass, expected, atol=3e-6, rtol=2e-5)
    drawn: dict[str, Any] = {"seed": torch.tensor([7]), "position": torch.tensor([3]), "top_k": 1000}
    assert torch.equal(local_resample(cond, **drawn, backend="triton"), local_resample(cond, **drawn))


def test_distribution(distribution: Callable[..., np.ndarray]) -> None:
    """Chi-square of n = 800 draws over 16 entries, alpha = 1e-4, seeds fixed; a distribution at chi-square distance
    w**2 = 0.08 from the true one is detected with a power above 0.95. A program a draw is slow here; the torch backend,
    whose tokens these equal, is tested with more."""
    n, vocab = 800, 16
    assert scipy.stats.ncx2.sf(scipy.stats.chi2.isf(1e-4, vocab - 1), vocab - 1, n * 0.08) > 0.95
    rng = np.random.default_rng(3)
    cond, uncond = rng.normal(0, 1, (2, 1, vocab)).astype(np.float32)
    full = {"cfg_scale": 1.5, "temperature": 2.0, "top_k": 10, "top_p": 0.9}
    p = distribution(cond, uncond, **full)[0]
    token = local_resample(
        torch.from_numpy(cond).expand(n, vocab),
        torch.from_numpy(uncond).expand(n, vocab),
        seed=torch.full((n,), 2024),
        position=torch.arange(n),
        **full,  # type: ignore[arg-type]
        backend="triton",
    )
    counts = np.bincount(token.numpy(), minlength=vocab)
    inside = p > 0
    assert counts[~inside].sum() == 0
    assert inside.sum() >= 4
    assert scipy.stats.chisquare(counts[inside], n * p[inside]).pvalue > 1e-4


def test_nothing_to_do_and_reasons_to_decline() -> None:
    table, token = torch.zeros(5, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    assert local_resample(torch.zeros(0, 5), None, torch.zeros(0, 5), backend="triton").shape == (0,)
    assert pooled_mass(torch.zeros(0, 5), None, token[:0], table, tau=0.1, backend="triton").mass.shape == (0,)
    for cond, message in ((torch.zeros(1, 65_537), "65537 exceeds"), (torch.zeros(1, 5).double(), "float64")):
        table = torch.zeros(cond.shape[1], 1, dtype=torch.int32)
        with pytest.raises(BackendUnavailable, match=message):
            local_resample(cond, None, torch.zeros(cond.shape), backend="triton")
        with pytest.raises(BackendUnavailable, match=message):
            pooled_mass(cond, None, token, table, tau=0.1, backend="triton")
