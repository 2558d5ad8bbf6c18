"""Decoding several positions a forward: ZipAR, islands in lock-step, cascades."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.decoding import DraftOnly, MuloSD, Serial, ZipAR, parse
from mulosd.engine.decoding.mulo import Candidates
from mulosd.engine.decoding.rejection import steps_behind
from mulosd.engine.decoding.zipar import steps_of, surrogate, window_steps
from mulosd.engine.engine import Engine
from mulosd.engine.request import Request
from mulosd.engine.runner import run
from mulosd.engine.sampling import Purpose, SamplingParams
from mulosd.kernels.expand_islands import expand_islands

from .conftest import PROMPTS


def tokens(engine: Engine, decoder: object, sampling: SamplingParams, seed: int = 3) -> torch.Tensor:
    return engine.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=seed).tokens  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(5, 6), (1, 4), (7, 3), (4, 1)])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 9])
def test_the_steps_behind_a_cell_are_those_of_its_island(height: int, width: int, window: int) -> None:
    for first in range(height * width):
        behind = (torch.arange(height * width) >= first).view(height, width)
        planned = expand_islands(behind[None], 0, window).order[0]
        assert steps_behind(first, height, width, window) == steps_of(planned)


@pytest.mark.parametrize("window", [8, 100])
def test_zipar_with_a_window_of_the_width_is_serial(engine: Engine, sampling: SamplingParams, window: int) -> None:
    assert torch.equal(tokens(engine, ZipAR(window), sampling), tokens(engine, Serial(), sampling))


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("grid", [4, 8])
def test_zipar_takes_the_stated_number_of_forwards(engine: Engine, window: int, grid: int) -> None:
    s = min(window, grid)
    for zero_kv, steps in ((False, grid + (grid - 1) * s), (True, 2 * grid + (grid - 2) * s)):
        stats = engine.generate("apple", decoder=ZipAR(window, grid, zero_kv)).stats[0]
        # The first token comes from the prefix.
        assert stats.forwards["zipar"] == steps - 1 and stats.depth == steps


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_the_steps_of_a_full_grid_are_those_of_the_readiness_rule(window: int) -> None:
    order = expand_islands(torch.ones(1, 6, 7, dtype=torch.bool), 0, window).order[0]
    assert steps_of(order) == window_steps(7, 6, window)


def test_a_row_that_begins_early_gets_the_nearest_known_token_of_the_last_column() -> None:
    width = 4
    assert surrogate(11, {11, 12, 13}, width) == 7
    assert surrogate(11, {7, 10, 11, 12}, width) == 3
    assert surrogate(3, {2, 3, 4}, width) == 1, "in the first rows: the known token furthest right"


@pytest.mark.parametrize("window", [8, None])
@pytest.mark.parametrize("extra", [{}, {"draft_window": 2}], ids=str)
def test_nothing_accepted_is_serial_whatever_else_is_set(
    engine: Engine, sampling: SamplingParams, window: int | None, extra: dict[str, object]
) -> None:
    decoder = MuloSD(scale=2, tau=1.5, radius=1, pool=1, window=window, **extra)  # type: ignore[arg-type]
    assert torch.equal(tokens(engine, decoder, sampling), tokens(engine, Serial(), sampling))


def test_a_cascade_that_accepts_all_up_samples_twice(engine: Engine, sampling: SamplingParams) -> None:
    once = tokens(engine, parse("mulo:scale=4:tau=0:radius=1:pool=1:cascade=true"), sampling)
    family = engine.family
    draft = engine.generate(PROMPTS, decoder=DraftOnly(4), sampling=sampling, seed=3)
    assert draft.tokens.shape == once.shape
    from mulosd.engine.upsampling import upsample

    small = _draft(engine, sampling)
    with torch.inference_mode():
        twice = upsample(family, upsample(family, small, 4, "latent"), 8, "latent")
    assert torch.equal(once, twice)
    nothing = parse("mulo:scale=4:tau=1.5:radius=1:pool=1:cascade=true")
    assert torch.equal(tokens(engine, nothing, sampling), tokens(engine, Serial(), sampling))


def _draft(engine: Engine, sampling: SamplingParams) -> torch.Tensor:
    """The 2x2 drafts of the prompts, taken from the previews of a request."""
    from mulosd.engine.scheduler import Scheduler

    found = []
    for prompt in PROMPTS:
        features = engine.family.features([prompt])
        if sampling.guided:
            features = torch.cat([features, engine.family.null_features(1)])
        scheduler = Scheduler(engine.family)
        decoder = MuloSD(scale=4, tau=0.0, radius=1, pool=1)
        scheduler.add(Request(engine.family, features.detach(), 3, sampling), decoder)
        while scheduler.busy:
            found += [e.tokens for e in scheduler.step() if e.kind == "draft" and e.tokens is not None]
    return torch.stack(found)


def repaired(engine: Engine, decoder: MuloSD, rejected: torch.Tensor) -> tuple[torch.Tensor, Lane, int]:
    """Tokens and lane after a repair of a fixed draft and a fixed rejection map on the 8x8 grid; and the forwards."""
    family = engine.family
    features = torch.cat([family.features(["apple"]), family.null_features(1)])
    cache = KVCache(family.ar, 8)
    request = Request(family, features, 5, SamplingParams(cfg_scale=2.0), cache=lambda _: cache)
    target = Candidates(decoder.resolve(family), request, 8, Purpose.TARGET)
    target.tokens.copy_(torch.arange(64) % 24)
    forwards = 0

    def drive(plan: object) -> None:
        nonlocal forwards
        results = None
        while True:
            try:
                feeds = next(plan) if results is None else plan.send(results)  # type: ignore
            except StopIteration:
                return
            forwards += feeds[0].role == "resample"
            results = run(feeds)

    drive(target.open())
    verify = target.verify(0, 8)
    results = run(next(verify))
    try:
        verify.send(results)
    except StopIteration as stop:
        logits = stop.value
    target.rejected = rejected
    drive(target.repair(target.repairs(logits, 0, 8), logits, 0))
    return target.tokens, target.lane, forwards


REJECTED = torch.zeros(8, 8, dtype=torch.bool)
REJECTED[1, 2] = REJECTED[1, 6] = REJECTED[6, 1] = REJECTED[5, 5] = True


@torch.inference_mode()
def test_only_the_islands_change_and_lock_step_takes_the_depth_of_the_order(engine: Engine) -> None:
    found = expand_islands(REJECTED[None], 1, 2)
    decoder = MuloSD(scale=2, tau=0.5, radius=1, pool=1, window=2)
    made, lane, forwards = repaired(engine, decoder, REJECTED)
    before = torch.arange(64) % 24
    changed = (made != before).view(8, 8)
    assert changed.any() and not (changed & ~found.expanded[0]).any()
    depth = int(found.order.max()) + 1
    assert depth <= forwards + 1 <= depth + 1
    assert lane.valid is not None and int((~lane.valid).sum()) == len(steps_of(found.order[0])[-1])


@torch.inference_mode()
def test_many_scattered_rejections_fall_back_to_a_run_from_the_first(engine: Engine) -> None:
    scattered = torch.zeros(8, 8, dtype=torch.bool)
    scattered[::2, ::3] = True
    decoder = MuloSD(scale=2, tau=0.5, radius=1, pool=1, window=1)
    made, _, forwards = repaired(engine, decoder, scattered)
    assert forwards + 1 <= 8 + 7, "no deeper than ZipAR over the whole grid"
    assert made.shape == (64,)


def test_settings_that_cannot_be_are_refused() -> None:
    for options, message in (
        ({"window": -1}, "window"),
        ({"draft_window": 0}, "draft_window"),
        ({"cascade": True, "rows_per_cycle": 4}, "cascade"),
    ):
        with pytest.raises(ValueError, match=message):
            MuloSD.from_settings(options)
    with pytest.raises(ValueError, match="window"):
        ZipAR(0)
    with pytest.raises(ValueError, match="draft_window"):
        DraftOnly(draft_window=0)


def test_steps_hold_every_position_once() -> None:
    for window in (1, 3, 8):
        steps = window_steps(8, 4, window, first=2)
        assert sorted(p for step in steps for p in step) == list(range(16, 48))
        assert all(step == sorted(step) for step in steps)
        assert all(a for a, _ in pairwise(steps))
