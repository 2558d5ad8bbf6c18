"""Draws that lean to the draft: their law, their limits, and what every decoder must keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from mulosd.engine.decoding import MuloSD, parse
from mulosd.engine.decoding.leaning import Leaning
from mulosd.engine.engine import Engine
from mulosd.engine.family_config import Calibration
from mulosd.engine.runner import sample
from mulosd.engine.sampling import Logits, Noise, Purpose, SamplingParams
from mulosd.engine.upsampling import upsample, upsample_latents, upsample_with_latents

from .conftest import PROMPTS

CPU = torch.device("cpu")
SETTING = MuloSD(2, tau=0.2, radius=1, pool=2, window=2)


def leaning(n: int, codes: int, seed: int = 1, start: int = 0) -> Leaning:
    generator = torch.Generator().manual_seed(seed)
    z, codebook = (torch.randn(k, 4, generator=generator) for k in (n, codes))
    unit = torch.nn.functional.normalize
    return Leaning(unit(z, dim=-1), unit(codebook, dim=-1), 0.4, start)


def test_tokens_are_drawn_from_target_times_factors_of_the_draft() -> None:
    """8,000 draws of 5 codes: a law that is off by 0.05 in one code is found with a chance above 0.999."""
    n, codes = 8000, 5
    one = leaning(1, codes)
    lean = replace(one, z=one.z.expand(n, -1))
    generator = torch.Generator().manual_seed(2)
    cond, uncond = (torch.randn(1, codes, generator=generator) * 2 for _ in range(2))
    noise = Noise(7, codes, Purpose.TARGET, CPU)
    noise.lean = lean
    logits = Logits(cond.expand(n, -1), uncond.expand(n, -1))
    drawn = sample(logits, [noise], [range(n)], SamplingParams(cfg_scale=1.7, temperature=0.9))
    target = torch.softmax((uncond + 1.7 * (cond - uncond)) / 0.9, dim=-1)
    wanted = (target * (one.z @ one.codebook.t() / 0.4).exp())[0].double()
    counts = torch.bincount(drawn, minlength=codes).double()
    assert chisquare(counts, wanted / wanted.sum() * n).pvalue > 1e-4
    alone = target[0].double()
    assert chisquare(counts, alone / alone.sum() * n).pvalue < 1e-12


def test_what_top_k_drops_is_never_drawn_and_greedy_takes_the_likeliest_product() -> None:
    noise = Noise(3, 3, Purpose.TARGET, CPU)
    noise.lean = lambda positions: torch.tensor([[0.0, 1.5, 9.0]]).expand(len(positions), -1)
    logits = Logits(torch.tensor([[3.0, 2.0, 1.0]] * 50), None)
    assert set(sample(logits, [noise], [range(50)], SamplingParams(top_k=2)).tolist()) == {0, 1}
    greedy = SamplingParams(top_k=2, temperature=0.0)
    # Another request of the same step that leans to nothing stays what it is.
    plain = Noise(4, 3, Purpose.TARGET, CPU)
    half = [range(25), range(25)]
    assert sample(logits, [noise, plain], half, greedy).tolist() == [1] * 25 + [0] * 25


def test_positions_count_from_where_the_image_begins() -> None:
    first, later = leaning(6, 5), leaning(6, 5, start=3)
    assert torch.equal(first(range(1, 4)), later(range(4, 7)))
    assert torch.equal(first([4, 0]), later([7, 3]))
    assert torch.allclose(first([4, 0]), first(range(6))[[4, 0]])


@pytest.mark.parametrize("upsampler", ["latent", "pixel", "nearest"])
def test_one_pass_gives_the_candidates_and_what_they_were_rounded_from(engine: Engine, upsampler: str) -> None:
    draft = torch.arange(16).view(1, 4, 4) % engine.family.ar.config.vocab_size
    tokens, latents = upsample_with_latents(engine.family, draft, 8, upsampler)
    assert torch.equal(tokens, upsample(engine.family, draft, 8, upsampler))
    assert torch.equal(latents, upsample_latents(engine.family, draft, 8, upsampler))


def test_limits(engine: Engine) -> None:
    """A large closeness is the target alone; a small one puts every token back that was rejected, but for codes about
    as near; where nothing is rejected it is nothing."""
    off = engine.generate(PROMPTS, decoder=SETTING, seed=4)
    assert any((stats.rejection or 0) > 0 for stats in off.stats)
    wide = engine.generate(PROMPTS, decoder=replace(SETTING, closeness=1e9), seed=4)
    assert torch.equal(off.tokens, wide.tokens)
    everything = replace(SETTING, tau=1.5, upsampler="pixel")
    draft = engine.generate(PROMPTS, decoder=replace(everything, tau=0.0), seed=4)
    back = engine.generate(PROMPTS, decoder=replace(everything, closeness=1e-7), seed=4)
    assert all(stats.rejection == 1 for stats in back.stats)
    assert (back.tokens == draft.tokens).float().mean() > 0.98
    free = engine.generate(PROMPTS, decoder=everything, seed=4)
    assert (free.tokens == draft.tokens).float().mean() < 0.5
    kept = engine.generate(PROMPTS, decoder=replace(SETTING, tau=0.0, closeness=0.1), seed=4)
    assert torch.equal(kept.tokens, engine.generate(PROMPTS, decoder=replace(SETTING, tau=0.0), seed=4).tokens)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_batch_draws_what_each_request_draws_alone(engine: Engine, rows: int | None) -> None:
    decoder = replace(SETTING, closeness=0.05, rows_per_cycle=rows)
    together = engine.generate(PROMPTS, decoder=decoder, seed=11, batch_size=len(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        alone = engine.generate([prompt], decoder=decoder, seed=together.seeds[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])


def test_a_family_keeps_it_with_its_calibration(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Calibration(2, "latent", 1, 0, 0.01, closeness=0.03)
    assert "closeness=0.03" in kept.to_dict()["decoder"]
    assert Calibration.from_dict(kept.to_dict(), "here").closeness == 0.03
    monkeypatch.setattr(engine.family, "config", replace(engine.family.config, calibrations={kept.key: kept}))
    assert MuloSD(2, upsampler="latent").resolve(engine.family).closeness == 0.03
    assert MuloSD(2, upsampler="latent", closeness=0.0).resolve(engine.family).closeness == 0.0


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_what_it_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="closeness must be 0 \\(off\\) or above 0"):
        parse(f"mulo:closeness={value}")
