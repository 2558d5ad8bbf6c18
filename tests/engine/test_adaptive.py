"""Radii by entropy: their limits, and what they change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from mulosd.engine.decoding import DraftOnly, MuloSD
from mulosd.engine.decoding.adaptive import entropy, spread
from mulosd.engine.engine import Engine
from mulosd.engine.sampling import Logits, SamplingParams
from mulosd.kernels.expand_islands import expand_islands

from .test_exact_limits import threshold, tokens


def test_entropy_is_that_of_the_distribution_that_is_drawn_from() -> None:
    logits = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)) * 3
    found = entropy(Logits(logits, None), SamplingParams(temperature=0.7))
    expected = scipy_entropy((logits.double() / 0.7).softmax(-1).numpy(), axis=-1)
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-5, rtol=1e-4)
    cut = entropy(Logits(torch.zeros(1, 24), None), SamplingParams(top_k=0, top_p=0.25))
    assert float(cut) == pytest.approx(math.log(6), abs=1e-5), "dropped tokens have no share"
    assert float(entropy(Logits(logits[:1], None), SamplingParams(temperature=0.0))) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 5), st.integers(0, 2**31))
def test_equal_entropies_are_a_fixed_radius(bits: int, radius: int, seed: int) -> None:
    rejected = torch.tensor([bits >> i & 1 for i in range(16)]).bool().view(4, 4)
    fixed = expand_islands(rejected[None], radius).expanded[0]
    assert torch.equal(spread(rejected, torch.zeros(4, 4), radius, 2.0), fixed)
    assert torch.equal(spread(rejected, torch.ones(4, 4), 0, float(radius)), fixed)
    entropies = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) * 3
    wide = spread(rejected, entropies, radius, 1.0)
    assert (wide | ~fixed).all(), "a positive rate only adds"
    narrow = spread(rejected, entropies, radius, -1.0)
    assert (fixed | ~narrow).all() and (narrow | ~rejected).all(), "a negative one keeps the rejected cells"


def test_each_cell_has_its_own_radius() -> None:
    rejected = torch.zeros(9, 9, dtype=torch.bool)
    rejected[1, 1] = rejected[6, 6] = True
    entropies = torch.zeros(9, 9)
    entropies[6, 6] = 1.0
    found = spread(rejected, entropies, 0, 2.0)
    assert int(found.sum()) == 1 + 25 and found[4:9, 4:9].all()


def test_a_rate_of_zero_is_the_fixed_decoder_and_others_are_not(engine: Engine, sampling: SamplingParams) -> None:
    tau = threshold(engine, sampling)
    fixed = MuloSD(scale=2, tau=tau, radius=1, pool=1)
    same = fixed.changed(entropy_radius=1e-9)
    assert torch.equal(tokens(engine, same, sampling), tokens(engine, fixed, sampling))
    wide = MuloSD(scale=2, tau=tau, radius=0, pool=1).changed(entropy_radius=1000.0)
    raster = MuloSD(scale=2, tau=tau, radius=1000, pool=1)
    assert torch.equal(tokens(engine, wide, sampling), tokens(engine, raster, sampling))
    none = MuloSD(scale=2, tau=0.0, radius=1, pool=1).changed(entropy_radius=1.0)
    assert torch.equal(tokens(engine, none, sampling), tokens(engine, DraftOnly(2), sampling))


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_rates_that_mean_nothing_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="entropy_radius"):
        MuloSD.from_settings({"entropy_radius": rate})
