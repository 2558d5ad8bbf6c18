"""Speculative Jacobi decoding is lossless: coupled, it is serial decoding; independent, it has its distribution."""

from __future__ import annotations

import pytest
import torch

from mulosd.engine.decoding import Jacobi, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams

from .conftest import PROMPTS
from .exact_law import assert_follows_target


@pytest.mark.parametrize("window", [1, 3, 16, 100])
def test_coupled_is_serial_token_for_token(engine: Engine, sampling: SamplingParams, window: int) -> None:
    serial = engine.generate(PROMPTS, decoder=Serial(), sampling=sampling, seed=4)
    jacobi = engine.generate(PROMPTS, decoder=Jacobi(window), sampling=sampling, seed=4)
    assert torch.equal(serial.tokens, jacobi.tokens)
    counts = [s.forwards["jacobi"] for s in jacobi.stats]
    assert all(c <= 63 for c in counts)
    if window == 1:
        assert counts == [63, 63, 63]


def test_guesses_that_stand_save_forwards() -> None:
    """A family that all but repeats itself: nearly every guess is right."""
    sharp = Engine(random_family(sharpness=0.0))
    greedy = SamplingParams(temperature=0)
    stats = sharp.generate("apple", decoder=Jacobi(16), sampling=greedy).stats[0]
    assert stats.forwards["jacobi"] <= 63 // 16 + 3


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [SamplingParams(cfg_scale=1.5), SamplingParams(top_k=6, temperature=0.8)], ids=str)
def test_independent_draws_follow_the_target(sampling: SamplingParams) -> None:
    assert_follows_target(Jacobi(3, coupled=False, grid=2), sampling)


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        Jacobi(0)
