"""Philox: published answers, an independent implementation, ranges, and the independence that decoding relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import philox

WORD = st.integers(0, 2**32 - 1)

# Random123, examples/kat_vectors: philox4x32 10.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(key: tuple[int, ...], counter: tuple[int, ...]) -> tuple[int, ...]:
    """One block with Python's unbounded integers: nothing can wrap by accident."""
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b % 2**32, (a >> 32) ^ c[3] ^ k1, a % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return tuple(c)


def numpy_uniform(seed: int, position: int, vocab: int, purpose: int) -> np.ndarray:
    """One row by the documented layout."""
    key = (seed % 2**32, (seed >> 32) % 2**32)
    words = [scalar_philox(key, (v // 4, position, purpose, 0))[v % 4] for v in range(vocab)]
    return ((np.array(words, dtype=np.uint64) >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_known_answers(key: tuple[int, ...], counter: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(philox.philox4x32(torch.tensor(key), torch.tensor(counter)).tolist()) == expected
    assert scalar_philox(key, counter) == expected


@given(st.tuples(WORD, WORD), st.tuples(WORD, WORD, WORD, WORD))
def test_block_matches_unbounded_integers(key: tuple[int, ...], counter: tuple[int, ...]) -> None:
    assert tuple(philox.philox4x32(torch.tensor(key), torch.tensor(counter)).tolist()) == scalar_philox(key, counter)


@settings(max_examples=25, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from(philox.Purpose))
def test_uniform_matches_the_layout(seed: int, position: int, vocab: int, purpose: philox.Purpose) -> None:
    drawn = philox.uniform(torch.tensor([7, seed]), torch.tensor([0, position]), vocab, purpose)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (2, vocab)
    np.testing.assert_array_equal(drawn[1].numpy(), numpy_uniform(seed, position, vocab, purpose).astype(np.float32))


def test_extreme_words_stay_inside_the_open_interval() -> None:
    bits = torch.tensor([0, 0xFFFFFFFF]) >> 9
    u = bits.float().add_(0.5).mul_(2.0**-23)
    assert u[0] > 0.0
    assert u[1] < 1.0
    assert u.log().neg().log().isfinite().all()


def test_rows_do_not_depend_on_their_batch() -> None:
    seed, position = torch.arange(-3, 5), torch.arange(8) * 1000
    together = philox.gumbel(seed, position, 33, philox.Purpose.TARGET)
    alone = torch.cat(
        [philox.gumbel(seed[i : i + 1], position[i : i + 1], 33, philox.Purpose.TARGET) for i in range(8)]
    )
    assert torch.equal(together, alone)


def test_every_part_of_the_counter_and_key_counts() -> None:
    def draw(seed: int, position: int, purpose: int) -> tuple[float, ...]:
        return tuple(philox.uniform(torch.tensor([seed]), torch.tensor([position]), 8, purpose)[0].tolist())

    cases = [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**31, 0)]
    assert len({draw(*case) for case in cases}) == len(cases)


def test_uniformity() -> None:
    """Chi-square over 64 bins, n = 262,144, alpha = 1e-6, seeds fixed; half of the bins 2.5 % too full, the other half
    2.5 % too empty, would be seen with a power above 0.99."""
    threshold = scipy.stats.chi2.isf(1e-6, 63)
    assert scipy.stats.ncx2.sf(threshold, 63, 262_144 * 0.025**2) > 0.99
    u = philox.uniform(torch.arange(512), torch.zeros(512, dtype=torch.int64), 512, 0)
    counts = torch.histc(u, 64, 0.0, 1.0).double()
    statistic = ((counts - 4096) ** 2 / 4096).sum().item()
    assert statistic < threshold


def test_gumbel_moments() -> None:
    """Mean within 5 standard errors (n = 262,144): a bias of 0.02 would be seen with power above 0.99."""
    g = philox.gumbel(torch.arange(512), torch.ones(512, dtype=torch.int64), 512, 1).double()
    error = math.pi / math.sqrt(6 * g.numel())
    assert abs(g.mean().item() - 0.5772156649) < 5 * error
    assert abs(g.var().item() - math.pi**2 / 6) < 0.04


@pytest.mark.parametrize(
    ("seed", "position", "vocab", "purpose", "message"),
    [
        (torch.zeros(2), torch.zeros(2), 4, 0, "int64"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 4, 0, "one length"),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0, 0, "vocab"),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 4, -1, "purpose"),
    ],
)
def test_errors(seed: torch.Tensor, position: torch.Tensor, vocab: int, purpose: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        philox.uniform(seed, position, vocab, purpose)
