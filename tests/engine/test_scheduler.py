"""Requests in flight: they join, leave and fail without touching one another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mulosd.engine.batch import Feed
from mulosd.engine.decoding import Decoder, DraftOnly, MuloSD, Serial, ZipAR
from mulosd.engine.decoding.base import Plan
from mulosd.engine.engine import Engine
from mulosd.engine.request import Request, Update, prefix
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import Scheduler, SchedulerConfig

MULO = MuloSD(scale=2, tau=0.03, radius=1, pool=1)
JOBS: list[tuple[str, int, Decoder]] = [
    ("apple", 1, Serial()),
    ("red pear", 2, MULO),
    ("blue", 3, ZipAR(2)),
    ("pear", 4, DraftOnly(4, draft_window=1)),
    ("blue pear", 5, MuloSD(scale=2, tau=0.03, radius=1, pool=1, window=2, draft_window=2, rows_per_cycle=4)),
    ("red", 6, Serial(4)),
]


def request(engine: Engine, prompt: str, seed: int, cfg_scale: float = 2.0) -> Request:
    features = engine.family.features([prompt])
    if cfg_scale != 1:
        features = torch.cat([features, engine.family.null_features(1)])
    return Request(engine.family, features.detach(), seed, SamplingParams(cfg_scale=cfg_scale))


def drain(scheduler: Scheduler) -> Iterator[Update]:
    while scheduler.busy:
        yield from scheduler.step()


def alone(engine: Engine, prompt: str, seed: int, decoder: Decoder) -> torch.Tensor:
    scheduler = Scheduler(engine.family)
    scheduler.add(request(engine, prompt, seed), decoder.resolve(engine.family))
    [done] = [e.tokens for e in drain(scheduler) if e.kind == "final"]
    assert done is not None
    return done


@pytest.mark.parametrize("config", [SchedulerConfig(), SchedulerConfig(max_running=2), SchedulerConfig(max_tokens=9)])
def test_mixed_decoders_that_join_at_any_time_make_the_images_of_each_alone(
    engine: Engine, config: SchedulerConfig
) -> None:
    scheduler = Scheduler(engine.family, config)
    numbers, made = {}, {}
    waiting = list(enumerate(JOBS))
    while waiting or scheduler.busy:
        if waiting:
            i, (prompt, seed, decoder) = waiting.pop(0)
            numbers[scheduler.add(request(engine, prompt, seed), decoder.resolve(engine.family))] = i
        for _ in range(7):
            for event in scheduler.step():
                if event.kind == "final":
                    made[numbers[event.request]] = event.tokens
        assert len(scheduler.running) <= config.max_running
    for i, (prompt, seed, decoder) in enumerate(JOBS):
        assert torch.equal(made[i], alone(engine, prompt, seed, decoder)), decoder
    assert all(not any(cache.used) for cache in scheduler.caches.values()) and scheduler.bytes == 0


class Broken(Decoder):
    """Feeds ten tokens, then raises, or feeds a token that does not exist."""

    name = "broken"
    how = "raise"

    def plan(self, request: Request) -> Plan:
        lane = request.lane(8)
        yield from prefix(lane)
        for i in range(10):
            yield [Feed(lane, torch.tensor([3]), range(i, i + 1))]
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        yield [Feed(lane, torch.tensor([10**6]), range(10, 11))]
        raise AssertionError("not reached")


class Misfed(Broken):
    how = "feed"


@pytest.mark.parametrize(("decoder", "kind"), [(Broken(), ZeroDivisionError), (Misfed(), IndexError)])
def test_a_request_that_fails_leaves_the_others_unharmed(
    engine: Engine, decoder: Decoder, kind: type[Exception]
) -> None:
    scheduler = Scheduler(engine.family)
    good = scheduler.add(request(engine, "apple", 1), Serial())
    bad = scheduler.add(request(engine, "red", 2), decoder)
    other = scheduler.add(request(engine, "red pear", 2), MULO.resolve(engine.family))
    ends = {e.request: e for e in drain(scheduler) if e.kind in ("final", "failed")}
    assert ends[bad].kind == "failed" and isinstance(ends[bad].error, kind)
    for number, (prompt, seed, wanted) in ((good, JOBS[0]), (other, JOBS[1])):
        tokens = ends[number].tokens
        assert tokens is not None and torch.equal(tokens, alone(engine, prompt, seed, wanted))
    assert all(not any(cache.used) for cache in scheduler.caches.values())


def test_an_aborted_request_leaves_at_once(engine: Engine) -> None:
    scheduler = Scheduler(engine.family, SchedulerConfig(max_running=2))
    first, second, third = (scheduler.add(request(engine, "apple", s), Serial()) for s in (1, 2, 3))
    for _ in range(5):
        scheduler.step()
    assert scheduler.abort(first) and scheduler.abort(third) and not scheduler.abort(99)
    assert not scheduler.abort(first)
    ended = [e.request for e in drain(scheduler) if e.kind == "final"]
    assert ended == [second]
    assert all(not any(cache.used) for cache in scheduler.caches.values())


def test_admission_keeps_to_the_budget_and_refuses_what_can_never_fit(engine: Engine) -> None:
    need = Scheduler(engine.family).bytes_of(Serial(), 2)
    scheduler = Scheduler(engine.family, SchedulerConfig(kv_budget=2 * need))
    for seed in range(3):
        scheduler.add(request(engine, "apple", seed), Serial())
    scheduler.step()
    assert len(scheduler.running) == 2 and len(scheduler.waiting) == 1
    with pytest.raises(ValueError, match=r"needs .* MiB .* budget"):
        Scheduler(engine.family, SchedulerConfig(kv_budget=need - 1)).add(request(engine, "apple", 0), Serial())
    assert Scheduler(engine.family, SchedulerConfig(kv_budget=need - 1)).add(request(engine, "a", 0, 1.0), Serial())
    ended = [e for e in drain(scheduler) if e.kind == "final"]
    assert len(ended) == 3


def test_previews_come_before_the_end_and_fit_the_image(engine: Engine) -> None:
    scheduler = Scheduler(engine.family)
    decoder = MuloSD(scale=2, tau=0.03, radius=1, pool=1, rows_per_cycle=4)
    scheduler.add(request(engine, "apple", 1), decoder)
    events = list(drain(scheduler))
    assert [e.kind for e in events] == ["draft", "band", "draft", "band", "final"]
    bands = torch.cat([e.tokens for e in events if e.kind == "band" and e.tokens is not None])
    assert events[-1].tokens is not None and torch.equal(bands, events[-1].tokens)


def test_the_unconditional_prefix_is_computed_once(engine: Engine) -> None:
    scheduler = Scheduler(engine.family)
    for seed in range(3):
        scheduler.add(request(engine, "apple", seed), Serial(4))
    requests = list(scheduler.waiting.values())
    list(drain(scheduler))
    again = request(engine, "pear", 9)
    scheduler.add(again, Serial(4))
    list(drain(scheduler))
    assert again.recorder.forwards["prefill"] == 1
    assert sum(r.recorder.forwards["prefill"] for r in requests) > 3


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="max_running"):
        SchedulerConfig(max_running=0)
    with pytest.raises(ValueError, match="max_tokens"):
        SchedulerConfig(max_tokens=0)
    with pytest.raises(ValueError, match="whole number"):
        SchedulerConfig(max_running=float("nan"))  # type: ignore[arg-type]
