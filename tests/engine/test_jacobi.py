"""Speculative Jacobi decoding is lossless: coupled, it is serial decoding; independent, it has its distribution."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from mulosd.engine.decoding import Jacobi, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams

from .conftest import PROMPTS


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
    """Chi-square over the first three tokens of 2x2 images, pairs (0, 1) and (1, 2), against exact probabilities.

    With 4,000 images a total variation of 0.05 in a pair is found with probability above 0.99 at level 1e-4.
    """
    engine = Engine(random_family(vocab_size=6, sharpness=2.0))
    runs, vocab, family = 4000, 6, engine.family
    made = engine.generate(
        "apple", decoder=Jacobi(3, coupled=False, grid=2), sampling=sampling, num_images=runs, batch_size=64
    ).tokens.flatten(1)
    exact = torch.zeros(vocab, vocab, vocab, dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    tokens = torch.cat([every, torch.zeros(len(every), 1, dtype=torch.int64)], dim=1)
    from mulosd.kernels.sampling import processed_logits

    with torch.inference_mode():
        n = len(every)
        cond = family.ar(family.features(["apple"]).expand(n, -1, -1), tokens, 2)[:, :3]
        uncond = family.ar(family.null_features(n), tokens, 2)[:, :3] if sampling.guided else None
        p = processed_logits(
            cond.flatten(0, 1),
            None if uncond is None else uncond.flatten(0, 1),
            sampling.cfg_scale,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
        ).softmax(-1)
        joint = p.view(n, 3, vocab).gather(2, every[..., None])[..., 0].double().prod(dim=1)
    exact[every[:, 0], every[:, 1], every[:, 2]] = joint
    assert abs(float(exact.sum()) - 1) < 1e-5
    for pair, wanted in (((0, 1), exact.sum(2)), ((1, 2), exact.sum(0))):
        counts = torch.zeros(vocab, vocab, dtype=torch.float64)
        counts.index_put_(tuple(made[:, i] for i in pair), torch.ones(runs, dtype=torch.float64), accumulate=True)
        assert (counts[wanted == 0] == 0).all()
        likely = wanted * runs >= 5
        rest = (runs - counts[likely].sum(), runs - wanted[likely].sum() * runs)
        statistic = float(((counts[likely] - wanted[likely] * runs) ** 2 / (wanted[likely] * runs)).sum())
        if rest[1] > 1:
            statistic += float((rest[0] - rest[1]) ** 2 / rest[1])
        assert statistic < chi2.ppf(1 - 1e-4, int(likely.sum())), (pair, statistic)


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        Jacobi(0)
