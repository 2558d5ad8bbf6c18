"""What a server needs of the asynchronous engine: slow readers, draining, loads, and engines that cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mulosd.engine.async_engine import PREVIEWS_KEPT, AsyncEngine, EngineClosed, EngineDead
from mulosd.engine.decoding import MuloSD, Serial
from mulosd.engine.engine import Engine, EngineLoad, Update
from mulosd.engine.random_family import random_family
from mulosd.engine.scheduler import SchedulerConfig

BANDS = MuloSD(scale=2, tau=0.03, radius=1, pool=1, rows_per_cycle=2)  # a draft and a band for each of four strips
MULO = MuloSD(scale=2, tau=0.03, radius=1, pool=1)


class Broken(Engine):
    """Raises what `fault` gives at each step, once there is one."""

    fault: Callable[[], BaseException] | None = None

    def step(self) -> list[Update]:
        if self.fault is not None:
            raise self.fault()
        return super().step()


@pytest.fixture
def engine() -> Broken:
    return Broken(random_family(), config=SchedulerConfig(max_running=2))


def empty(engine: Engine) -> bool:
    return (
        engine.load() == EngineLoad() and not engine._requests and not any(any(c.used) for c in engine.caches.values())
    )


def test_a_slow_reader_gets_the_newest_previews_and_the_end(engine: Broken) -> None:
    wanted = list(engine.stream("apple", decoder=BANDS))
    assert len(wanted) == 9

    async def go() -> list[Update]:
        server = AsyncEngine(engine)
        submission = await server.submit("apple", decoder=BANDS)
        while server.snapshot().running or server.snapshot().waiting:
            await asyncio.sleep(0.01)
        found = [update async for update in submission]
        assert [update async for update in submission] == []
        submission.close()
        await server.close()
        return found

    found = asyncio.run(go())
    assert [(u.kind, u.row) for u in found] == [(u.kind, u.row) for u in wanted[-PREVIEWS_KEPT - 1 :]]
    last, asked = found[-1].tokens, wanted[-1].tokens
    assert last is not None and asked is not None and torch.equal(last, asked)


@pytest.mark.parametrize(("previews", "kinds"), [(0, 0), (1, 1), (3, 3), (True, 8)])
def test_as_many_previews_as_are_asked_for(engine: Broken, previews: bool | int, kinds: int) -> None:
    decoded: list[Any] = []
    draw = engine.to_images
    engine.to_images = lambda tokens: decoded.append(tokens) or draw(tokens)  # type: ignore[method-assign,func-returns-value]
    engine.add_request("apple", decoder=BANDS, previews=previews)
    updates = []
    while engine.busy:
        updates += engine.step()
    assert len(updates) == kinds + 1 == len(decoded), "and no pixels are computed for what nobody sees"


def test_a_last_preview_that_is_the_image_is_decoded_once(engine: Broken) -> None:
    decoded: list[Any] = []
    draw = engine.to_images
    engine.to_images = lambda tokens: decoded.append(tokens) or draw(tokens)  # type: ignore[method-assign,func-returns-value]
    draft, band, final = engine.stream("apple", decoder=MULO)
    assert [draft.kind, band.kind, final.kind] == ["draft", "band", "final"] and len(decoded) == 2
    assert band.image is not None and final.image is not None and band.image.tobytes() == final.image.tobytes()
    assert final.tokens is not None and draw(final.tokens[None])[0].tobytes() == final.image.tobytes()


def test_what_was_rejected_is_part_of_what_was_resampled(engine: Broken) -> None:
    *_, final = engine.stream("apple", decoder=MULO)
    assert final.rejected is not None and final.resampled is not None and final.stats is not None
    assert final.rejected.shape == final.resampled.shape == (8, 8)
    assert bool((final.rejected <= final.resampled).all())
    assert float(final.rejected.float().mean()) == pytest.approx(final.stats.rejection)
    assert 0 < int(final.rejected.sum()) < int(final.resampled.sum()), "a radius of 1 redraws neighbours too"


def test_the_load_is_that_of_the_scheduler_and_nothing_in_the_end(engine: Broken) -> None:
    seen: list[EngineLoad] = []

    async def go() -> None:
        server = AsyncEngine(engine, on_step=lambda seconds, load: seen.append(load))
        assert server.snapshot() == EngineLoad()
        await asyncio.gather(*(server.generate("apple", seed=s, decoder=Serial()) for s in range(5)))
        await asyncio.sleep(0.1)
        assert server.snapshot() == EngineLoad()
        await server.close()

    asyncio.run(go())
    row = engine.scheduler.bytes_of(Serial().resolve(engine.family), 1)
    assert max(load.running for load in seen) == 2 and max(load.waiting for load in seen) == 3
    assert all(load.kv_bytes == load.running * row for load in seen)


def test_waiting_is_part_of_the_total(engine: Broken) -> None:
    async def go() -> list[Update]:
        server = AsyncEngine(engine)
        found = await asyncio.gather(*(server.generate("apple", seed=s, decoder=Serial()) for s in range(3)))
        await server.close()
        return found

    stats = [update.stats for update in asyncio.run(go()) if update.stats is not None]
    first, last = stats[0], stats[2]
    assert 0 <= first.waited < last.waited < last.seconds["total"]
    assert last.waited > 0.5 * first.seconds["serial"], "the third waits until one of the first two is done"


def test_draining_takes_no_more_and_waits_for_what_is_under_way(engine: Broken) -> None:
    async def go() -> None:
        server = AsyncEngine(engine)
        assert await AsyncEngine(engine).drain(), "nothing is under way"
        tasks = [asyncio.create_task(server.generate("apple", seed=s, decoder=Serial())) for s in range(3)]
        await asyncio.sleep(0.02)
        assert not await server.drain(0.001)
        with pytest.raises(EngineClosed, match="drained"):
            await server.generate("pear")
        assert await server.drain(60)
        assert [(await task).kind for task in tasks] == ["final"] * 3
        await server.close()

    asyncio.run(go())
    assert empty(engine)


def test_a_step_that_raises_fails_what_is_under_way_and_no_later_request(engine: Broken) -> None:
    wanted = engine.generate("apple", seed=5, decoder=MULO).tokens[0]

    async def go() -> None:
        server = AsyncEngine(engine)
        engine.fault = lambda: torch.OutOfMemoryError("on purpose")
        found = await asyncio.gather(
            *(server.generate("apple", decoder=Serial()) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(error, torch.OutOfMemoryError) for error in found)
        engine.fault = None
        update = await server.generate("apple", seed=5, decoder=MULO)
        assert update.tokens is not None and torch.equal(update.tokens, wanted) and server.dead is None
        await server.close()

    asyncio.run(go())
    assert empty(engine)


@pytest.mark.parametrize(
    "fault",
    [lambda: SystemExit("the worker ends"), lambda: torch.AcceleratorError("illegal memory access")],
    ids=["worker", "device"],
)
def test_an_engine_that_cannot_go_on_says_so_and_leaves_nobody_waiting(
    engine: Broken, fault: Callable[[], BaseException]
) -> None:
    async def go() -> None:
        server = AsyncEngine(engine)
        running = [asyncio.create_task(server.generate("apple", decoder=Serial())) for _ in range(4)]
        await asyncio.sleep(0.02)
        engine.fault = fault
        found = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 30)
        assert all(isinstance(error, EngineDead) for error in found), found
        assert type(server.dead) is type(fault())
        with pytest.raises(EngineDead, match="start another"):
            await server.generate("apple")
        await server.close()

    asyncio.run(go())
    assert empty(engine)


def test_an_engine_whose_every_step_raises_is_dead(engine: Broken) -> None:
    async def go() -> None:
        server = AsyncEngine(engine)
        engine.fault = lambda: ZeroDivisionError("always")
        kinds = []
        for _ in range(4):
            try:
                await server.generate("apple", decoder=Serial())
            except Exception as error:
                kinds.append(type(error).__name__)
        assert kinds == ["ZeroDivisionError", "ZeroDivisionError", "EngineDead", "EngineDead"]
        await server.close()

    asyncio.run(go())


def test_a_thread_that_has_ended_is_a_dead_engine(engine: Broken) -> None:
    async def go() -> None:
        server = AsyncEngine(engine)
        server._thread.shutdown()
        with pytest.raises(EngineDead, match="thread has ended"):
            await server.generate("apple")
        assert server.dead is not None
        await server.close()

    asyncio.run(go())
    assert empty(engine)
