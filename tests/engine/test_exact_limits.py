"""The exact limits of the method (float32, tiny random family)."""

import pytest
import torch

from mulosd.engine.decoding import DraftOnly, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.sampling import SamplingParams

from .conftest import PROMPTS

VOCAB = 24
SHAPES = [{"scale": 2}, {"scale": 4}, {"scale": 2, "rows_per_cycle": 2}, {"scale": 4, "rows_per_cycle": 4}]


def tokens(engine: Engine, decoder: object, sampling: SamplingParams, seed: int = 3) -> torch.Tensor:
    return engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=seed).tokens  # type: ignore[arg-type]


@pytest.mark.parametrize("upsampler", ["latent", "pixel"])
@pytest.mark.parametrize("scale", [2, 4])
def test_tau_zero_is_the_upsampled_draft(engine: Engine, sampling: SamplingParams, scale: int, upsampler: str) -> None:
    result = engine.generate(
        PROMPTS, decoder=MuloSD(scale=scale, tau=0.0, radius=2, pool=1, upsampler=upsampler), sampling=sampling, seed=3
    )
    assert torch.equal(result.tokens, tokens(engine, DraftOnly(scale, upsampler), sampling))
    assert all(s.rejection == 0 and s.coverage == 0 and "resample" not in s.forwards for s in result.stats)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rejection", ["local", "naive", "raster"])
def test_nothing_accepted_is_serial(
    engine: Engine, sampling: SamplingParams, shape: dict[str, int], rejection: str
) -> None:
    serial = tokens(engine, Serial(), sampling)
    mulo = tokens(engine, MuloSD(tau=1.5, radius=1, pool=1, rejection=rejection, **shape), sampling)
    assert torch.equal(serial, mulo)
    assert len(serial.unique()) > 2


def test_pooling_the_whole_codebook_accepts_everything(engine: Engine, sampling: SamplingParams) -> None:
    pooled = MuloSD(scale=2, tau=1.0, radius=1, pool=VOCAB)
    assert torch.equal(tokens(engine, pooled, sampling), tokens(engine, DraftOnly(2), sampling))


@pytest.mark.parametrize("radius", [8, 1000])
def test_a_radius_that_covers_the_grid_is_ar_continuation(
    engine: Engine, sampling: SamplingParams, radius: int
) -> None:
    tau = threshold(engine, sampling)
    local = tokens(engine, MuloSD(scale=2, tau=tau, radius=radius, pool=1), sampling)
    raster = tokens(engine, MuloSD(scale=2, tau=tau, radius=0, pool=1, rejection="raster"), sampling)
    assert torch.equal(local, raster)
    assert not torch.equal(local, tokens(engine, DraftOnly(2), sampling))


def threshold(engine: Engine, sampling: SamplingParams) -> float:
    """A tau that rejects some tokens and accepts some."""
    for tau in (1e-4, 1e-3, 1e-2, 0.03, 0.1):
        stats = engine.generate(
            PROMPTS, decoder=MuloSD(scale=2, tau=tau, radius=0, pool=1), sampling=sampling, seed=3
        ).stats
        if all(0.02 < (s.rejection or 0) < 0.98 for s in stats):
            return tau
    raise AssertionError("no tau separates the tokens of the random family")


def test_radius_zero_changes_rejected_tokens_only(engine: Engine, sampling: SamplingParams) -> None:
    tau = threshold(engine, sampling)
    result = engine.generate(PROMPTS, decoder=MuloSD(scale=2, tau=tau, radius=0, pool=1), sampling=sampling, seed=3)
    changed = (result.tokens != tokens(engine, DraftOnly(2), sampling)).flatten(1).sum(dim=1)
    for count, stats in zip(changed.tolist(), result.stats, strict=True):
        assert 0 < count <= round((stats.rejection or 0) * 64)
        assert stats.rejection == stats.coverage
        # The first rejected token is drawn from the verify pass; each other one costs one forward of the batch.
    most = max(round((s.coverage or 0) * 64) for s in result.stats)
    assert result.stats[0].forwards["resample"] == most - 1


def test_accepted_tokens_before_the_first_rejection_stay(engine: Engine, sampling: SamplingParams) -> None:
    tau = threshold(engine, sampling)
    decoder = MuloSD(scale=2, tau=tau, radius=0, pool=1, rejection="raster")
    result = engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=3)
    draft = tokens(engine, DraftOnly(2), sampling).flatten(1)
    for row, before, stats in zip(result.tokens.flatten(1), draft, result.stats, strict=True):
        kept = 64 - round((stats.coverage or 0) * 64)
        assert torch.equal(row[:kept], before[:kept])


def test_coverage_grows_with_radius_and_rejection_with_tau(engine: Engine) -> None:
    sampling = SamplingParams()

    def figures(tau: float, radius: int) -> tuple[float, float]:
        decoder = MuloSD(scale=2, tau=tau, radius=radius, pool=2)
        stats = engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=3).stats
        return sum(s.rejection or 0 for s in stats), sum(s.coverage or 0 for s in stats)

    by_tau = [figures(tau, 1) for tau in (0.0, 0.01, 0.05, 0.2, 1.1)]
    assert by_tau == sorted(by_tau)
    assert by_tau[0][0] == 0 and by_tau[-1][0] == 3
    by_radius = [figures(0.03, radius)[1] for radius in (0, 1, 2, 8)]
    assert by_radius == sorted(by_radius) and by_radius[0] < by_radius[-1]


def test_the_batch_does_not_change_an_image(engine: Engine, sampling: SamplingParams) -> None:
    for decoder in (Serial(), DraftOnly(4), MuloSD(scale=2, tau=0.03, radius=1, pool=1)):
        together = engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=[1, 2, 3]).tokens
        alone = [
            engine.generate(p, decoder=decoder, sampling=sampling, seed=s).tokens
            for p, s in zip(PROMPTS, (1, 2, 3), strict=True)
        ]
        assert torch.equal(together, torch.cat(alone))


def test_image_n_of_a_prompt_uses_seed_plus_n(engine: Engine) -> None:
    many = engine.generate("apple", decoder=Serial(), seed=10, num_images=3)
    assert many.seeds == [10, 11, 12]
    last = engine.generate("apple", decoder=Serial(), seed=12)
    assert torch.equal(many.tokens[2:], last.tokens)
    assert not torch.equal(many.tokens[0], many.tokens[1])
