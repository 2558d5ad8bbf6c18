"""A draft drawn anew from the product of target and up-sampler: what stands after k passes, and its exact limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mulosd.engine.decoding import DraftOnly, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.events import Finished, Preview
from mulosd.engine.family import Family
from mulosd.engine.likelihood import teacher_forced
from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig
from mulosd.engine.random_family import random_family
from mulosd.engine.request import Request
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import Scheduler
from mulosd.kernels import philox
from mulosd.kernels.sampling import processed_logits

from .conftest import PROMPTS

REDRAW = 3  # the purpose, as its number: another one draws other pictures
BASE = MuloSD(scale=2, tau=0.0, radius=1, pool=1)
GREEDY = [SamplingParams(top_k=1), SamplingParams(cfg_scale=2.5, top_k=1), SamplingParams(temperature=0.0)]


def counted(temperature: float) -> Family:
    """The random family with up-samplers of another temperature that have counted codes, some never."""
    family = random_family()
    for key, old in list(family.resamplers.items()):
        new = LatentResampler(replace(old.config, temperature=temperature, vocab_size=24))
        counts = torch.arange(24.0).remainder(7).square() * 10
        new.load_state_dict({**old.state_dict(), "counts": counts})
        family.resamplers[key] = new.eval().requires_grad_(False)
    return family


@pytest.fixture(scope="module")
def family() -> Family:
    return counted(0.1)


def drafted_and_decoded(family: Family, decoder: MuloSD, sampling: SamplingParams, seed: int) -> tuple[Tensor, Tensor]:
    """The draft int64 [g, g], and the tokens int64 [N] that a request ends with."""
    features = family.features([PROMPTS[0]])
    if sampling.guided:
        features = torch.cat([features, family.null_features(1)])
    scheduler = Scheduler(family)
    scheduler.add(Request(family, features, seed, sampling), decoder)
    drafts, done = [], []
    while scheduler.busy:
        for event in scheduler.step():
            if isinstance(event.what, Preview) and event.what.kind == "draft":
                drafts.append(event.what.tokens.clone())
            elif isinstance(event.what, Finished):
                done.append(event.what.outcome.tokens.flatten())
    return drafts[-1], done[0]


@torch.no_grad()
def one_by_one(family: Family, draft: Tensor, sampling: SamplingParams, seed: int, with_pi: bool = True) -> Tensor:
    """Tokens int64 [N] drawn in raster order from p * q / pi, normalised, with the noise of redrawing."""
    grid, vocab = family.grids[-1], family.ar.config.vocab_size
    resampler, codebook = family.resampler(len(draft), grid), family.tokenizer.codebook
    unit = F.normalize(resampler(codebook[draft[None]]), dim=-1).view(grid * grid, -1)
    cosines = (unit @ codebook.t()).double()
    pi = torch.ones(vocab, dtype=torch.float64)
    if resampler.counts is not None:
        pi = (resampler.counts.double() + 0.5) / (resampler.counts.double() + 0.5).sum()
    # With frequencies that were counted, `pick` and q prefer frequent codes a little.
    q = ((cosines + resampler.config.prior * pi.log()) / resampler.config.temperature).softmax(dim=-1)
    tokens = torch.zeros(1, grid * grid, dtype=torch.int64)
    for i in range(grid * grid):
        logits = teacher_forced(family, family.condition([PROMPTS[0]]), tokens[:, : i + 1], grid, sampling)[i : i + 1]
        kept = processed_logits(
            logits.cond, logits.uncond, sampling.cfg_scale, sampling.temperature, sampling.top_k, sampling.top_p
        )
        product = kept[0].double().softmax(dim=0) * q[i] / (pi if with_pi else 1.0)
        noise = philox.gumbel(torch.tensor([seed]), torch.tensor([i]), vocab, REDRAW)[0]
        tokens[0, i] = int((product.log() + noise).argmax())
    return tokens[0]


def test_after_k_passes_the_first_k_tokens_are_those_of_drawing_one_by_one(
    family: Family, sampling: SamplingParams
) -> None:
    draft, upsampled = drafted_and_decoded(family, BASE, sampling, seed=5)
    wanted = one_by_one(family, draft, sampling, seed=5)
    assert not torch.equal(wanted, one_by_one(family, draft, sampling, seed=5, with_pi=False)), "pi has no say"
    agreed = []
    for passes in (1, 4, 64):
        again, tokens = drafted_and_decoded(family, replace(BASE, refine=passes), sampling, seed=5)
        assert torch.equal(again, draft)
        assert torch.equal(tokens[:passes], wanted[:passes])
        assert not torch.equal(tokens, upsampled)
        agreed.append(int((tokens == wanted).sum()))
    assert agreed[0] < 64, "one pass says it all: nothing is iterated"
    assert agreed[-1] == 64


def test_an_up_sampler_that_says_nothing_leaves_the_target(sampling: SamplingParams) -> None:
    family = random_family()
    for resampler in family.resamplers.values():
        resampler.leave.weight.zero_()
        assert resampler.leave.bias is not None
        resampler.leave.bias.zero_()
    draft, tokens = drafted_and_decoded(family, replace(BASE, refine=64), sampling, seed=2)
    assert torch.equal(tokens, one_by_one(family, draft, sampling, seed=2))
    other = drafted_and_decoded(family, replace(BASE, refine=64), sampling, seed=3)[1]
    assert not torch.equal(tokens, other)


def test_an_up_sampler_that_is_sure_keeps_its_tokens() -> None:
    engine = Engine(counted(1e-6))
    for scale in (2, 4):
        refined = engine.generate(PROMPTS, decoder=replace(BASE, scale=scale, refine=2), seed=3).tokens
        assert torch.equal(refined, engine.generate(PROMPTS, decoder=DraftOnly(scale), seed=3).tokens)


@pytest.mark.parametrize("shape", [{}, {"scale": 4}, {"rows_per_cycle": 2}, {"scale": 4, "cascade": True}], ids=str)
@pytest.mark.parametrize("sampling", GREEDY, ids=["top-1", "top-1 guided", "greedy"])
def test_where_the_target_keeps_one_token_passes_end_at_serial_decoding(
    engine: Engine, sampling: SamplingParams, shape: dict[str, int]
) -> None:
    tokens = engine.generate(PROMPTS, decoder=replace(BASE, refine=64, **shape), sampling=sampling, seed=3).tokens
    assert torch.equal(tokens, engine.generate(PROMPTS, decoder=Serial(), sampling=sampling, seed=3).tokens)


def test_what_the_target_drops_is_not_drawn() -> None:
    family, sampling = counted(1e-6), SamplingParams(cfg_scale=2.0, top_k=3)
    _, upsampled = drafted_and_decoded(family, BASE, sampling, seed=1)
    _, tokens = drafted_and_decoded(family, replace(BASE, refine=1), sampling, seed=1)
    with torch.no_grad():
        logits = teacher_forced(family, family.condition([PROMPTS[0]]), upsampled[None], 8, sampling)
    kept = processed_logits(logits.cond, logits.uncond, 2.0, 1.0, 3, 1.0).isfinite()
    assert bool(kept.gather(1, tokens[:, None]).all())
    at_home = kept.gather(1, upsampled[:, None])[:, 0]
    assert torch.equal(tokens[at_home], upsampled[at_home]), "a sure up-sampler keeps what the target allows"
    assert 0 < int(at_home.sum()) < 64


def test_nothing_accepted_is_serial_however_the_draft_was_drawn(engine: Engine, sampling: SamplingParams) -> None:
    decoder = replace(BASE, tau=1.5, refine=2)
    tokens = engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=3).tokens
    assert torch.equal(tokens, engine.generate(PROMPTS, decoder=Serial(), sampling=sampling, seed=3).tokens)


def test_the_batch_does_not_change_an_image(family: Family, sampling: SamplingParams) -> None:
    engine, decoder = Engine(family), replace(BASE, tau=0.005, refine=2, window=2)
    alone = [
        engine.generate(p, decoder=decoder, sampling=sampling, seed=s).tokens[0] for s, p in enumerate(PROMPTS, start=1)
    ]
    beside = (decoder, Serial(), replace(decoder, refine=0), replace(decoder, refine=1, rows_per_cycle=4))
    numbers = {
        engine.add_request(prompt, decoder=kind, sampling=sampling, seed=seed): (seed, kind)
        for seed, prompt in enumerate(PROMPTS, start=1)
        for kind in beside
    }
    found = {}
    while engine.busy:
        for update in engine.step():
            assert update.error is None
            found[numbers[update.request]] = update.tokens
    for seed, tokens in enumerate(alone, start=1):
        assert torch.equal(found[seed, decoder], tokens)
    assert any(not torch.equal(found[s, beside[2]], tokens) for s, tokens in enumerate(alone, start=1))


@pytest.mark.parametrize(
    ("shape", "forwards", "fed"),
    [({}, 3, 3 * 63), ({"rows_per_cycle": 4}, 6, 3 * 62), ({"scale": 4, "cascade": True}, 6, 3 * (15 + 63))],
    ids=["one shot", "cycles", "cascade"],
)
def test_passes_are_counted_and_timed(engine: Engine, shape: dict[str, int], forwards: int, fed: int) -> None:
    [stats] = engine.generate("apple", decoder=replace(BASE, refine=3, **shape), seed=1).stats
    assert stats.forwards["refine"] == forwards and stats.fed["refine"] == fed
    assert stats.forwards["verify"] == forwards // 3
    assert stats.seconds["refine"] > 0 and stats.settings["refine"] == 3
    [plain] = engine.generate("apple", decoder=replace(BASE, **shape), seed=1).stats
    assert "refine" not in plain.forwards and "refine" not in plain.seconds


def test_passes_are_as_narrow_as_the_verification(engine: Engine) -> None:
    def tokens(**settings: object) -> Tensor:
        decoder = replace(BASE, refine=4, **settings)  # type: ignore[arg-type]
        return engine.generate(PROMPTS, decoder=decoder, sampling=SamplingParams(cfg_scale=2.0), seed=range(3)).tokens

    wide, narrow = tokens(), tokens(verify_dtype="bfloat16")
    assert 0.8 < float((wide == narrow).float().mean()) < 1, "rounding decides a few near ties"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: replace(BASE, refine=1, upsampler="pixel").resolve(f), "latent up-sampler, and 'pixel' has none"),
        (lambda f: replace(BASE, refine=-1), "refine must be 0.* got -1"),
        (lambda f: ResamplerConfig(2, 4, 4, temperature=0.0), "temperature.* at least 1e-6, got 0"),
        (lambda f: ResamplerConfig(2, 4, 4, temperature=math.inf), "temperature.* got inf"),
    ],
)
def test_what_cannot_be_is_refused(engine: Engine, make: Callable[[Family], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(engine.family)


def test_a_family_keeps_the_temperature_of_its_up_samplers(family: Family) -> None:
    described = family.describe()
    assert {r["temperature"] for r in described["resamplers"]} == {0.1}
    older = {
        **described,
        "resamplers": [{k: v for k, v in r.items() if k != "temperature"} for r in described["resamplers"]],
    }
    assert {m.config.temperature for m in Family.build(described).resamplers.values()} == {0.1}
    assert {m.config.temperature for m in Family.build(older).resamplers.values()} == {0.05}
