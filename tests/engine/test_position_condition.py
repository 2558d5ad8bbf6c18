"""What positions are told of the caption: steps against the definition, decoders against `Serial`, and its grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mulosd.engine.batch import Feed
from mulosd.engine.decoding import Decoder, DraftOnly, Eagle, Jacobi, MuloSD, Serial, ZipAR
from mulosd.engine.engine import Engine
from mulosd.engine.models.position_condition import PositionCondition, coordinates
from mulosd.engine.models.transformer import Transformer
from mulosd.engine.random_family import random_family
from mulosd.engine.runner import run
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import SchedulerConfig

from .conftest import PROMPTS
from .test_runner import Case, close

GUIDED = SamplingParams(cfg_scale=2.5, temperature=0.9)
SAME_AS_SERIAL: list[Decoder] = [
    ZipAR(window=8),
    Jacobi(window=8),
    Eagle(depth=3, top_k=3, total=8, coupled=True),
    MuloSD(2, tau=1.5, radius=1, pool=1),
    MuloSD(4, tau=1.5, radius=1, pool=1, rows_per_cycle=4),
]


@pytest.fixture(scope="module")
def told() -> Engine:
    torch.set_num_threads(1)
    return Engine(random_family(position_cond=32, drafter=True))


@pytest.fixture(scope="module")
def fixed() -> Engine:
    return Engine(random_family(position_cond=32, drafter=True), config=SchedulerConfig(static=True))


def test_it_reaches_the_logits(told: Engine, engine: Engine) -> None:
    """Otherwise the tests below would say nothing."""
    ar = told.family.ar
    assert isinstance(ar, Transformer) and ar.position_cond is not None
    cond, tokens = told.family.features(["red apple"]), torch.zeros(1, 64, dtype=torch.int64)
    with torch.inference_mode():
        here = ar.embed_global(cond, 8)
        assert here is not None and here.shape == (1, 64, 32) and here.std(dim=1).mean() > 1e-3
        before = ar(cond, tokens, 8)
        kept = ar.position_cond.norm.weight.clone()
        ar.position_cond.norm.weight.zero_()
        assert (ar(cond, tokens, 8) - before).abs().flatten(1).max() > 1e-2
        ar.position_cond.norm.weight.copy_(kept)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [63, 1, 7])
@pytest.mark.parametrize("static", [False, True])
def test_steps_and_chunks_equal_the_teacher_forced_logits(told: Engine, chunk: int, static: bool) -> None:
    case = Case(told, guided=(True, False, True))
    for i in range(3):
        assert close(case.first[i].cond[0], case.cond[i][0])
    for start in range(0, 63, chunk):
        positions = range(start, min(63, start + chunk))
        for i, result in enumerate(run([case.feed(i, positions) for i in range(3)], static=static)):
            assert result.logits is not None
            after = slice(start + 1, positions.stop + 1)
            assert close(result.logits.cond, case.cond[i][after])
            if result.logits.uncond is not None:
                assert close(result.logits.uncond, case.uncond[i][after])


@torch.inference_mode()
@pytest.mark.parametrize("static", [False, True])
def test_lanes_at_different_positions_are_each_told_of_their_own(told: Engine, static: bool) -> None:
    case = Case(told)
    run([case.feed(i, range(63)) for i in range(3)], static=False)
    scattered: list[Sequence[int]] = [[5, 20, 40], [62, 3, 30], [0, 1, 61]]
    feeds: list[Feed] = [case.feed(i, at) for i, at in enumerate(scattered)]
    for i, result in enumerate(run(feeds, static=static)):
        assert result.logits is not None
        assert close(result.logits.cond, case.cond[i][torch.tensor(scattered[i]) + 1])


@pytest.mark.parametrize("decoder", SAME_AS_SERIAL, ids=str)
def test_decoders_draw_what_serial_draws(told: Engine, decoder: Decoder) -> None:
    serial = told.generate(PROMPTS, decoder=Serial(), sampling=GUIDED, seed=3)
    assert torch.equal(told.generate(PROMPTS, decoder=decoder, sampling=GUIDED, seed=3).tokens, serial.tokens)


@pytest.mark.parametrize(
    "decoder", [Serial(), ZipAR(window=3), Jacobi(), DraftOnly(4), MuloSD(4, tau=0.05, radius=1, pool=3)], ids=str
)
def test_fixed_shapes_draw_the_same_images(told: Engine, fixed: Engine, decoder: Decoder) -> None:
    plain, static = (e.generate(PROMPTS, decoder=decoder, sampling=GUIDED, seed=3) for e in (told, fixed))
    assert torch.equal(plain.tokens, static.tokens)


@torch.inference_mode()
def test_a_token_is_told_of_the_position_that_it_predicts(told: Engine) -> None:
    ar = told.family.ar
    assert isinstance(ar, Transformer) and ar.global_proj is not None
    cond = told.family.features(["red apple"])
    here, row = ar.at_positions(cond, 4), ar.embed_global(cond, 4)
    assert here is not None and row is not None
    everywhere = ar.global_proj(cond.flatten(1))[:, None] / ar.config.cond_len
    assert close(row[:, :-1] - everywhere, here[:, 1:])


@torch.inference_mode()
def test_a_position_is_a_point_of_the_image_whatever_the_grid() -> None:
    """The centre of the top left ninth is a token of a 3x3 grid and of a 9x9 grid."""
    cpu = torch.device("cpu")
    assert close(coordinates(3, cpu)[0], coordinates(9, cpu)[10])
    features, cond = PositionCondition(32, 6, 5), torch.randn(2, 5, 6)
    assert close(features(cond, 3)[:, 0], features(cond, 9)[:, 10])


def test_a_saved_family_keeps_it(told: Engine, tmp_path: Path) -> None:
    told.family.save(tmp_path / "family")
    loaded = Engine.from_pretrained(tmp_path / "family")
    wanted = told.generate(PROMPTS, decoder=Serial(), seed=1)
    # Saved in float16: what is loaded is close, not equal.
    cond, tokens = told.family.features(PROMPTS[:1]), wanted.tokens[:1].flatten(1)
    with torch.inference_mode():
        ours, theirs = (e.family.ar(cond, tokens, 8) for e in (told, loaded))
    assert (ours - theirs).abs().max() < 0.05 * ours.std()
