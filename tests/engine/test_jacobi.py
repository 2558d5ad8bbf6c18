"""Speculative Jacobi decoding is lossless: coupled, it is serial decoding; independent, it has its distribution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mulosd.engine.decoding import DraftOnly, Jacobi, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.family_config import Calibration
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


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("guesses", [1, 3, 16, 100])
def test_guessed_drafts_are_the_serial_drafts(engine: Engine, rows: int | None, guesses: int) -> None:
    params = SamplingParams(cfg_scale=1.5, temperature=0.8, top_k=9)

    def made(**settings: int) -> tuple[torch.Tensor, dict[str, int]]:
        decoder = MuloSD(scale=2, tau=0.05, radius=1, pool=3, rows_per_cycle=rows, **settings)
        result = engine.generate("red apple", decoder=decoder, sampling=params, seed=6)
        return result.tokens, result.stats[0].forwards

    (serial, steps), (guessed, fewer) = made(), made(draft_guesses=guesses)
    assert torch.equal(guessed, serial)
    assert fewer["draft"] <= steps["draft"] if guesses > 1 else fewer["draft"] == steps["draft"]
    bare = [DraftOnly(scale=4, draft_guesses=g) for g in (None, guesses)]
    drafts = [engine.generate("pear", decoder=d, sampling=params, seed=2).tokens for d in bare]
    assert torch.equal(*drafts)


def test_a_familys_settings_fill_what_is_left_open() -> None:
    family = random_family()
    stored = Calibration(2, "latent", pool=2, radius=1, tau=0.1, window=2, draft_guesses=8)
    other = replace(stored, upsampler="pixel", draft_guesses=None, draft_window=2)
    family.config = replace(family.config, calibrations={stored.key: stored})
    found = MuloSD(scale=2, upsampler="latent").resolve(family)
    assert (found.window, found.draft_guesses, found.tau) == (2, 8, 0.1)
    assert MuloSD(scale=2, upsampler="latent", window=0, draft_guesses=0).resolve(family).window == 0
    zipar = MuloSD(scale=2, upsampler="latent", draft_window=2).resolve(family)
    assert (zipar.draft_window, zipar.draft_guesses) == (2, None)
    assert DraftOnly(2, "latent").resolve(family).draft_guesses == 8
    assert DraftOnly(2, "latent", draft_window=3).resolve(family).draft_guesses is None
    assert DraftOnly(2, "pixel").resolve(family).draft_guesses is None
    family.config = replace(family.config, calibrations={c.key: c for c in (stored, other)})
    for decoder in (DraftOnly(2, "pixel"), MuloSD(2, upsampler="pixel")):
        found = decoder.resolve(family)
        assert (found.draft_window, found.draft_guesses) == (2, None)
    assert DraftOnly(2, "pixel", draft_guesses=0).resolve(family).draft_window is None
    with pytest.raises(ValueError, match="one of them"):
        DraftOnly(2, draft_window=2, draft_guesses=4)
    with pytest.raises(ValueError, match="draft_guesses"):
        MuloSD(draft_guesses=-1)
