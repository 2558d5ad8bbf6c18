"""One scheduler: `generate`, `stream` and added requests share its limits, and none loses what happens to another."""

from __future__ import annotations

import pytest
import torch

from mulosd.engine.decoding import Decoder, MuloSD, Serial
from mulosd.engine.decoding.base import Plan
from mulosd.engine.engine import Engine, Update
from mulosd.engine.random_family import random_family
from mulosd.engine.request import Request, prefix
from mulosd.engine.scheduler import Scheduler, SchedulerConfig

MULO = MuloSD(scale=2, tau=0.03, radius=1, pool=1, rows_per_cycle=4)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Requests under way, and rows of caches lent, in every step of any scheduler."""
    seen: list[tuple[int, int]] = []
    step = Scheduler.step

    def spied(scheduler: Scheduler) -> object:
        found = step(scheduler)
        rows = sum(sum(cache.used) for cache in scheduler.caches.values())
        seen.append((len(scheduler.running), rows))
        return found

    monkeypatch.setattr(Scheduler, "step", spied)
    return seen


class Broken(Decoder):
    """Raises after its prefix."""

    name = "broken"
    error: type[BaseException] = ZeroDivisionError

    def plan(self, request: Request) -> Plan:
        yield from prefix(request.lane(4))
        raise self.error("on purpose")


class Interrupted(Broken):
    error = KeyboardInterrupt


def finals(engine: Engine) -> dict[int, Update]:
    found = {}
    while engine.busy:
        found |= {update.request: update for update in engine.step() if update.kind in ("final", "failed")}
    return found


def alone(decoder: Decoder, seed: int) -> torch.Tensor:
    return Engine(random_family()).generate("apple", decoder=decoder, seed=seed).tokens[0]


def test_generate_beside_queued_requests_keeps_to_the_budget_and_changes_no_image(held: list[tuple[int, int]]) -> None:
    family = random_family()
    budget = 2 * Scheduler(family).bytes_of(Serial(), 1)
    engine = Engine(family, config=SchedulerConfig(kv_budget=budget))
    queued = {engine.add_request("apple", decoder=Serial(), seed=seed): seed for seed in (1, 2, 3)}
    engine.step()
    made = engine.generate(["apple"] * 3, decoder=Serial(), seed=[4, 5, 6], batch_size=8)
    assert max(rows for _, rows in held) == 2, "the budget is two rows"
    done = finals(engine)
    for number, seed in queued.items():
        update = done[number]
        assert update.tokens is not None and torch.equal(update.tokens, alone(Serial(), seed))
        assert update.image is not None and update.stats is not None and update.stats.seed == seed
    assert all(torch.equal(made.tokens[i], alone(Serial(), 4 + i)) for i in range(3))
    assert not any(any(cache.used) for cache in engine.caches.values())


@pytest.mark.parametrize(("most", "batch", "wanted"), [(2, 8, 2), (8, 3, 3)])
def test_the_smaller_of_batch_size_and_max_running_holds(
    held: list[tuple[int, int]], most: int, batch: int, wanted: int
) -> None:
    engine = Engine(random_family(), config=SchedulerConfig(max_running=most))
    result = engine.generate("apple", decoder=Serial(4), num_images=5, batch_size=batch)
    assert max(running for running, _ in held) == wanted
    assert max(stats.batch for stats in result.stats) == wanted
    assert result.seeds == [0, 1, 2, 3, 4] and len(result.images) == 5


def test_a_stream_keeps_the_updates_of_other_requests() -> None:
    engine = Engine(random_family())
    numbers = [engine.add_request("apple", decoder=Serial(4), seed=seed) for seed in range(3)]
    bad = engine.add_request("apple", decoder=Broken())
    first, second = engine.stream("apple", decoder=MULO, seed=7), engine.stream("apple", decoder=MULO, seed=8)
    mixed = []
    for update in first:
        mixed.append(update)
        mixed.append(next(second))
        mixed += engine.step() if len(mixed) == 2 else []
    rest = list(second)
    assert [u.kind for u in rest] == []
    own = [u for u in mixed if u.request not in (*numbers, bad)]
    assert [u.kind for u in own if u.request == own[0].request] == ["draft", "band", "draft", "band", "final"]
    assert len({u.request for u in own}) == 2
    done = {u.request: u for u in mixed if u.request in (*numbers, bad)} | finals(engine)
    assert sorted(done) == sorted([*numbers, bad]), "each is reported once"
    assert done[bad].kind == "failed" and all(done[n].kind == "final" for n in numbers)


def test_a_generate_that_fails_or_is_interrupted_drops_its_own_requests_alone() -> None:
    engine = Engine(random_family())
    queued = engine.add_request("apple", decoder=Serial(), seed=1)
    with pytest.raises(ZeroDivisionError):
        engine.generate(["apple", "apple"], decoder=Broken())
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["apple", "apple"], decoder=Interrupted())

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("apple", decoder=Serial(), progress=stop)
    assert len(engine.scheduler.running) + len(engine.scheduler.waiting) == 1
    done = finals(engine)
    assert list(done) == [queued]
    assert done[queued].tokens is not None and torch.equal(done[queued].tokens, alone(Serial(), 1))
    assert not engine._requests and not engine._claimed and not engine._kept
    assert not any(any(cache.used) for cache in engine.caches.values())


def test_an_interrupt_inside_a_plan_fails_that_request_and_no_other() -> None:
    engine = Engine(random_family())
    numbers = [engine.add_request("apple", decoder=d, seed=1) for d in (Serial(), Interrupted(), Serial(4))]
    done: dict[int, Update] = {}
    interrupts = 0
    while engine.busy:
        try:
            done |= {update.request: update for update in engine.step()}
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    assert [done[n].kind for n in numbers] == ["final", "failed", "final"]
    tokens = done[numbers[0]].tokens
    assert tokens is not None and torch.equal(tokens, alone(Serial(), 1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_image_that_cannot_be_decoded_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    engine = Engine(random_family())
    numbers = [engine.add_request("apple", decoder=Serial(4), seed=seed) for seed in range(3)]
    decode, calls = engine.to_images, 0

    def failing(tokens: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error("on purpose")
        return decode(tokens)

    monkeypatch.setattr(engine, "to_images", failing)
    done: dict[int, Update] = {}
    while engine.busy:
        try:
            done |= {update.request: update for update in engine.step()}
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
    kinds = [done[n].kind for n in numbers]
    assert kinds == (["final", "failed", "final"] if error is RuntimeError else ["final"] * 3)
    assert not engine._requests


def test_what_a_plan_ends_with_is_checked() -> None:
    class Endless(Decoder):
        name = "none"

        def plan(self, request: Request) -> Plan:
            yield from prefix(request.lane(4))
            return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match="Outcome"):
        Engine(random_family()).generate("apple", decoder=Endless())
