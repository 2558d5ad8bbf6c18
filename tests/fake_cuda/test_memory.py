"""Memory that runs out at a bad moment, and what caches and graphs hold of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from mulosd.engine import runner, scheduler
from mulosd.engine.batch import Feed, Result
from mulosd.engine.decoding import Decoder, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.graph_memory import decoding_bytes
from mulosd.engine.graphs import StaticStep
from mulosd.engine.request import Update
from mulosd.engine.scheduler import SchedulerConfig

from .device import FakeCuda
from .lanes import DECODERS, SAMPLING, text_family
from .log import Log

SERIAL = Serial()
MULO = MuloSD(2, tau=0.2, radius=1, pool=3, window=2, draft_window=2)


@pytest.fixture(scope="module")
def alone() -> Callable[[Decoder, int], torch.Tensor]:
    """Tokens of a seed on the CPU."""
    engine, kept = Engine(text_family()), {}

    def tokens(decoder: Decoder, seed: int) -> torch.Tensor:
        if (decoder, seed) not in kept:
            kept[decoder, seed] = engine.generate("apple", decoder=decoder, sampling=SAMPLING, seed=seed).tokens[0]
        return kept[decoder, seed]

    return tokens


@pytest.fixture
def log() -> Iterator[Log]:
    with FakeCuda() as log:
        yield log


def engine_for(requests: int, kv_budget: int | None = None) -> Engine:
    config = SchedulerConfig(max_running=requests, kv_budget=kv_budget)
    return Engine(text_family(), device="cuda", dtype="float32", config=config)


def ends(engine: Engine, decoder: Decoder, seeds: range) -> list[Update]:
    """How requests that are added together end, by seed."""
    numbers = [engine.add_request("apple", decoder=decoder, sampling=SAMPLING, seed=seed) for seed in seeds]
    found: dict[int, Update] = {}
    while engine.busy:
        found.update({u.request: u for u in engine.step() if u.kind in ("final", "failed")})
    return [found[number] for number in numbers]


def assert_drawn(updates: list[Update], decoder: Decoder, alone: Callable[[Decoder, int], torch.Tensor]) -> None:
    for seed, update in enumerate(updates):
        assert update.error is None and update.tokens is not None
        assert torch.equal(update.tokens, alone(decoder, seed))


def held_by(step: StaticStep) -> int:
    """Bytes of the buffers of a step and of what it returns."""
    tensors = (step.told, step.valid, step.block, step.features, step.logits, step.hidden)
    return sum(t.nbytes for t in (*tensors, step.every_slot if step.key.tree else None) if t is not None)


def held(engine: Engine) -> int:
    """Bytes of keys and values on the device, and of what steps hold beside them."""
    caches = engine.caches.values()
    steps = sum(held_by(step) for cache in caches for step in cache.steps.values())
    return steps + sum(t.nbytes for cache in caches for t in (*cache.k, *cache.v))


def test_a_cache_is_made_once_for_all_that_may_run(log: Log, alone: Callable[[Decoder, int], torch.Tensor]) -> None:
    """No growth, so no graph goes, and the memory of the tokens stays where it is."""
    engine = engine_for(4)
    assert_drawn(ends(engine, MULO, range(1)), MULO, alone)
    memory = [cache.tokens for cache in engine.caches.values()]
    assert [len(cache.used) for cache in engine.caches.values()] == [8, 8]
    assert_drawn(ends(engine, MULO, range(4)), MULO, alone)
    assert all(a is cache.tokens for a, cache in zip(memory, engine.caches.values(), strict=True))
    assert log.destroyed == 0 and log.sound()


def test_requests_wait_where_a_cache_cannot_grow(log: Log, alone: Callable[[Decoder, int], torch.Tensor]) -> None:
    """There is room for one only: four come one after the other, and afterwards there is room for all."""
    engine = engine_for(4)
    row = SERIAL.bytes_per_row(engine.family)
    taken = 0

    def refuse(count: int, where: str) -> bool:
        nonlocal taken
        taken += where.startswith("engine/cache.py")
        return where.startswith("engine/cache.py") and count > row // 2  # a layer's keys of more than two rows

    log.refuse = refuse
    assert_drawn(ends(engine, SERIAL, range(4)), SERIAL, alone)
    [cache] = engine.caches.values()
    assert taken > 4 and len(cache.used) == 2 == len(cache.k[0]) and not any(cache.used)
    log.refuse = None
    assert_drawn(ends(engine, SERIAL, range(4)), SERIAL, alone)
    assert len(cache.used) == len(cache.v[-1]) == 8 and log.sound()


def test_a_request_that_never_finds_memory_fails_alone(log: Log, alone: Callable[[Decoder, int], torch.Tensor]) -> None:
    engine = engine_for(2)
    log.refuse = lambda _, where: where.startswith("engine/cache.py")
    assert all(isinstance(u.error, torch.OutOfMemoryError) for u in ends(engine, MULO, range(2)))
    log.refuse = None
    assert_drawn(ends(engine, MULO, range(2)), MULO, alone)


def test_without_memory_for_a_graph_the_step_runs_anyway(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor]
) -> None:
    engine = engine_for(2)
    log.refuse = lambda count, _: log.capturing is not None
    assert_drawn(ends(engine, MULO, range(2)), MULO, alone)
    assert not log.captures and not log.replays
    steps = [step for cache in engine.caches.values() for step in cache.steps.values()]
    assert steps and all(step.bytes.working == 0 for step in steps), "what a step works in is no graph's"
    log.refuse = None
    assert_drawn(ends(engine, SERIAL, range(2)), SERIAL, alone)
    assert log.replays and log.sound()


@pytest.mark.parametrize("decoder", [SERIAL, MULO], ids=lambda d: d.name)
def test_memory_that_is_out_for_a_step_costs_nothing(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor], decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third step of several requests fails in the middle of a forward: each feed is then tried alone."""
    engine = engine_for(3)
    steps, armed, failed = 0, False, 0

    def run_armed(feeds: Sequence[Feed], static: bool | None) -> list[Result]:
        nonlocal steps, armed
        steps += len(feeds) > 1
        armed = len(feeds) > 1 and steps % 3 == 0
        return runner.run(feeds, static)

    def refuse(_: int, where: str) -> bool:
        nonlocal armed, failed
        now = armed and where.startswith("engine/models/layers.py")
        armed, failed = armed and not now, failed + now
        return now

    log.refuse = refuse
    monkeypatch.setattr(scheduler, "run", run_armed)
    assert_drawn(ends(engine, decoder, range(3)), decoder, alone)
    assert failed
    assert_drawn(ends(engine, decoder, range(3)), decoder, alone)
    assert log.sound()


@pytest.mark.parametrize("requests", [1, 3])
def test_the_budget_holds_what_is_really_held(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor], requests: int
) -> None:
    """Also when the caches of one decoder lie idle while another's are needed."""
    probe = engine_for(1)
    budget = requests * probe.scheduler.bytes_of(MULO, 2)
    engine = engine_for(16, budget)
    for decoder in (SERIAL, MULO, SERIAL):
        numbers = [engine.add_request("apple", decoder=decoder, sampling=SAMPLING, seed=seed) for seed in range(4)]
        updates = []
        while engine.busy:
            updates += [u for u in engine.step() if u.kind in ("final", "failed")]
            assert held(engine) <= budget
        made = {u.request: u for u in updates}
        assert_drawn([made[n] for n in numbers], decoder, alone)


@pytest.mark.parametrize("name", ["mulo, windows", "eagle"])
def test_a_step_is_charged_what_it_holds(log: Log, name: str) -> None:
    engine = engine_for(2)
    engine.generate("apple", decoder=DECODERS[name], sampling=SAMPLING)
    steps = [step for cache in engine.caches.values() for step in cache.steps.values()]
    assert steps and all(step.graph is not None for step in steps)
    assert [step.bytes.held for step in steps] == [held_by(step) for step in steps]
    assert all(step.bytes.working > 0 for step in steps)


@pytest.mark.parametrize("room", [False, True])
def test_graphs_are_captured_as_far_as_the_budget_goes(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor], room: bool
) -> None:
    """A budget for the keys of one request leaves nothing for graphs; with what they take beside, all steps are."""
    family = text_family()
    model = family.ar
    steps = decoding_bytes(model, model.config.cond_len + 64, 1)
    rows = engine_for(1).scheduler.bytes_of(SERIAL, 2)
    engine = engine_for(4, rows + (steps if room else 0))
    assert_drawn(ends(engine, SERIAL, range(2)), SERIAL, alone)
    assert held(engine) <= rows + steps
    assert (log.replays > 0) == room
    assert sum(step.graph is not None for cache in engine.caches.values() for step in cache.steps.values()) == room
    assert log.sound()


def test_without_memory_for_the_buffers_of_a_step_it_runs_anyway(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor]
) -> None:
    engine = engine_for(2)
    log.refuse = lambda _, where: where.startswith("engine/graphs.py") and where.endswith("__init__")
    assert_drawn(ends(engine, MULO, range(2)), MULO, alone)
    assert not any(cache.steps for cache in engine.caches.values())
    log.refuse = None
    assert_drawn(ends(engine, MULO, range(2)), MULO, alone)
    assert log.replays and log.sound()


@pytest.mark.parametrize("room", [0.1, 0.4])
def test_a_warm_up_takes_no_more_than_the_budget_and_says_so(
    log: Log, alone: Callable[[Decoder, int], torch.Tensor], room: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps of few tokens come first: those of verifications are what finds no room."""
    whole = engine_for(4)
    whole.warmup(MULO, SAMPLING)
    rows = sum(cache.bytes for cache in whole.caches.values())
    budget = rows + int(room * (held(whole) - rows))
    del whole
    engine = engine_for(4, budget)
    caplog.clear()
    engine.warmup(MULO, SAMPLING)
    [told] = [record for record in caplog.records if "no room for" in record.getMessage()]
    assert told.levelname == "WARNING"
    for cache in engine.caches.values():
        assert max(key.rows for key, step in cache.steps.items() if key.width == 1 and step.graph) == len(cache.used)
    assert held(engine) <= budget
    assert_drawn(ends(engine, MULO, range(4)), MULO, alone)
    assert held(engine) <= budget and log.sound()


def test_a_warm_up_takes_at_most_half_of_the_free_memory(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for(4)
    engine.generate("apple", decoder=SERIAL, sampling=SAMPLING)
    before = len(log.captures)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (64, 1 << 30))
    engine.warmup(SERIAL, SAMPLING)
    assert len(log.captures) == before
    monkeypatch.undo()
    engine.warmup(SERIAL, SAMPLING)
    assert len(log.captures) > before


def test_a_warm_up_without_memory_for_graphs_ends(log: Log, alone: Callable[[Decoder, int], torch.Tensor]) -> None:
    engine = engine_for(2)
    log.refuse = lambda count, _: log.capturing is not None
    engine.warmup(MULO, SAMPLING)
    assert not log.captures
    log.refuse = None
    assert_drawn(ends(engine, SERIAL, range(2)), SERIAL, alone)
    assert log.replays and log.sound()
