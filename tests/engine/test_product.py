"""The product pass: its law, its limits, and what every decoder must keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from mulosd.engine.decoding import DraftOnly, Product, parse
from mulosd.engine.decoding.product import draw_product
from mulosd.engine.engine import Engine
from mulosd.engine.likelihood import teacher_forced
from mulosd.engine.sampling import Logits, Noise, Purpose, SamplingParams, processed

from .conftest import PROMPTS

V = 24


def test_tokens_are_drawn_from_the_product() -> None:
    """8,000 draws of 5 codes: a law that is off by 0.05 in one code is found with a chance above 0.999."""
    n, codes = 8000, 5
    generator = torch.Generator().manual_seed(1)
    cond, uncond, factors = (torch.randn(1, codes, generator=generator) * 2 for _ in range(3))
    params = SamplingParams(cfg_scale=1.7, temperature=0.9)
    logits = Logits(cond.expand(n, -1), uncond.expand(n, -1))
    noise = Noise(7, codes, Purpose.TARGET, torch.device("cpu")).rows(range(n))
    drawn = draw_product(logits, factors.expand(n, -1), noise, params)
    target = torch.softmax((uncond + 1.7 * (cond - uncond)) / 0.9, dim=-1)
    wanted = (target * factors.exp())[0]
    wanted = (wanted / wanted.sum()).double()
    counts = torch.bincount(drawn, minlength=codes).double()
    assert chisquare(counts, wanted / wanted.sum() * n).pvalue > 1e-4
    alone = target[0].double()
    assert chisquare(counts, alone / alone.sum() * n).pvalue < 1e-12


def test_a_code_that_top_k_drops_is_never_drawn_and_temperature_0_takes_the_likeliest_product() -> None:
    logits = Logits(torch.tensor([[3.0, 2.0, 1.0]] * 50), None)
    factors = torch.tensor([[0.0, 1.5, 9.0]] * 50)
    noise = Noise(3, 3, Purpose.TARGET, torch.device("cpu")).rows(range(50))
    assert set(draw_product(logits, factors, noise, SamplingParams(top_k=2)).tolist()) == {0, 1}
    assert draw_product(logits, factors, noise, SamplingParams(top_k=2, temperature=0.0)).tolist() == [1] * 50


@pytest.mark.parametrize("upsampler", ["latent", "pixel"])
def test_a_small_closeness_keeps_the_draft(engine: Engine, upsampler: str) -> None:
    draft = engine.generate(PROMPTS, decoder=DraftOnly(2, upsampler), seed=4)
    product = engine.generate(PROMPTS, decoder=Product(2, upsampler, closeness=1e-7), seed=4)
    same = (draft.tokens == product.tokens).float().mean()
    assert same > 0.98  # codes at equal distance apart


def test_a_large_closeness_is_the_target_that_read_the_draft(engine: Engine) -> None:
    params = SamplingParams(cfg_scale=2.0, temperature=0.7)
    draft = engine.generate(PROMPTS[:1], decoder=DraftOnly(2, "pixel"), sampling=params, seed=9)
    found = engine.generate(PROMPTS[:1], decoder=Product(2, "pixel", closeness=1e9), sampling=params, seed=9)
    logits = teacher_forced(engine.family, engine.family.condition(PROMPTS[:1]), draft.tokens.flatten(1), 8, params)
    noise = Noise(9, V, Purpose.TARGET, torch.device("cpu")).rows(range(64))
    wanted = (processed(logits, params, range(64)) + noise).argmax(dim=-1)
    assert torch.equal(found.tokens[0].flatten(), wanted)
    assert found.stats[0].forwards["verify"] == 1
    assert "resample" not in found.stats[0].forwards


def test_batches_texts_and_bounds(engine: Engine) -> None:
    decoder = parse("product:scale=2:closeness=0.1:upsampler=latent")
    together = engine.generate(PROMPTS, decoder=decoder, seed=[5, 6, 7])
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(engine.generate(prompt, decoder=decoder, seed=5 + i).tokens[0], together.tokens[i])
    narrowed = engine.generate(PROMPTS, decoder=replace(decoder, verify_dtype="bfloat16"), seed=[5, 6, 7])
    assert (narrowed.tokens == together.tokens).float().mean() > 0.8
    kinds = [update.kind for update in engine.stream(PROMPTS[0], decoder=decoder, seed=5)]
    assert kinds == ["draft", "final"]
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="closeness must be above 0"):
            Product(closeness=wrong)
