"""The engine as part of a serving stack: requests by number, streams, asyncio."""

from __future__ import annotations

import asyncio

import pytest
import torch

from mulosd.engine.async_engine import AsyncEngine
from mulosd.engine.decoding import Decoder, DraftOnly, Jacobi, MuloSD, Serial, ZipAR
from mulosd.engine.decoding.base import Plan
from mulosd.engine.engine import Engine, Update
from mulosd.engine.random_family import random_family
from mulosd.engine.request import Request, prefix
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import SchedulerConfig

MULO = MuloSD(scale=2, tau=0.03, radius=1, pool=1, rows_per_cycle=4)
SAMPLING = SamplingParams(cfg_scale=2.0)


@pytest.fixture
def engine() -> Engine:
    return Engine(random_family(), config=SchedulerConfig(max_running=3))


ROW_BY_ROW = (Serial(), ZipAR(2), ZipAR(2, zero_kv=True), Jacobi(window=8), Jacobi(window=8, coupled=False), Jacobi(64))


@pytest.mark.parametrize("decoder", ROW_BY_ROW, ids=str)
def test_rows_are_shown_as_they_are_decided(engine: Engine, decoder: Decoder) -> None:
    *bands, final = engine.stream("apple", decoder=decoder, seed=2, sampling=SAMPLING)
    assert {band.kind for band in bands} <= {"band"} and final.tokens is not None
    assert len(bands) == 7 or not isinstance(decoder, (Serial, ZipAR)), "every row but the last, which is the image's"
    row = 0
    for band in bands:
        assert band.tokens is not None and band.image is not None and band.row == row
        assert torch.equal(band.tokens, final.tokens[row : row + len(band.tokens)]), "what is shown does not change"
        assert band.image.size == (16, 2 * len(band.tokens))
        row += len(band.tokens)
    assert row < 8
    whole = engine.generate("apple", decoder=decoder, seed=2, sampling=SAMPLING)
    assert torch.equal(final.tokens, whole.tokens[0])


@pytest.mark.parametrize(("wanted", "rows"), [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (50, list(range(7)))])
def test_as_many_bands_as_wanted_share_the_image(engine: Engine, wanted: int, rows: list[int]) -> None:
    engine.add_request("apple", decoder=Serial(), previews=wanted)
    updates = []
    while engine.busy:
        updates += engine.step()
    assert [update.row for update in updates[:-1]] == rows and updates[-1].kind == "final"


class Failing(Decoder):
    name = "failing"

    def plan(self, request: Request) -> Plan:
        yield from prefix(request.lane(4))
        raise ZeroDivisionError("on purpose")


def test_added_requests_make_the_images_of_generate(engine: Engine) -> None:
    jobs: list[tuple[str, int, Decoder]] = [
        ("apple", 1, Serial()), ("red", 2, MULO), ("pear", 3, ZipAR(2)), ("blue", 4, MULO),
    ]  # fmt: skip
    numbers = {engine.add_request(p, decoder=d, seed=s, sampling=SAMPLING): (p, s, d) for p, s, d in jobs}
    done: dict[int, Update] = {}
    while engine.busy:
        for update in engine.step():
            assert update.kind == "final", "no previews unless asked for"
            done[update.request] = update
    for number, (prompt, seed, decoder) in numbers.items():
        update = done[number]
        whole = engine.generate(prompt, decoder=decoder, seed=seed, sampling=SAMPLING)
        assert update.tokens is not None and torch.equal(update.tokens, whole.tokens[0])
        assert update.image is not None and update.image.tobytes() == whole.images[0].tobytes()
        assert update.stats is not None and update.stats.forwards | {"prefill": 0} == (
            whole.stats[0].forwards | {"prefill": 0}
        )
        assert update.stats.seed == seed


def test_a_stream_shows_the_draft_the_bands_and_the_image(engine: Engine) -> None:
    updates = list(engine.stream("apple", decoder=MULO, seed=2, sampling=SAMPLING))
    assert [u.kind for u in updates] == ["draft", "band", "draft", "band", "final"]
    assert [u.row for u in updates] == [0, 0, 0, 4, 0]
    assert [u.image.size for u in updates if u.image is not None] == [(8, 4), (16, 8), (8, 8), (16, 8), (16, 16)]
    final, bands = updates[-1], [u.tokens for u in updates if u.kind == "band"]
    assert final.tokens is not None and torch.equal(torch.cat([b for b in bands if b is not None]), final.tokens)
    for update in engine.stream("apple", decoder=DraftOnly(scale=2), seed=2):
        assert update.kind == "final"
    half = engine.stream("apple", decoder=MULO)
    next(half)
    half.close()
    assert not engine.busy and not any(any(c.used) for c in engine.caches.values())


def test_aborted_and_failed_requests(engine: Engine) -> None:
    gone = engine.add_request("apple", decoder=Serial())
    stays = engine.add_request("red", decoder=Serial(4), seed=1)
    fails = engine.add_request("red", decoder=Failing())
    ends = {u.request: u for u in engine.step()}
    assert engine.abort(gone) and not engine.abort(gone)
    while engine.busy:
        ends.update({u.request: u for u in engine.step()})
    assert ends[stays].kind == "final" and gone not in ends
    assert ends[fails].kind == "failed" and isinstance(ends[fails].error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream("red", decoder=Failing()))
    with pytest.raises(ZeroDivisionError):
        engine.generate(["red", "blue"], decoder=Failing())
    assert not any(any(c.used) for c in engine.caches.values())
    with pytest.raises(ValueError, match="empty"):
        engine.add_request(" ")
    with pytest.raises(ValueError, match="budget"):
        Engine(random_family(), config=SchedulerConfig(kv_budget=1000)).add_request("red", decoder=Serial())


def test_warm_up_leaves_nothing_behind(engine: Engine) -> None:
    engine.warmup(Serial())
    assert not engine.busy and engine.caches


def test_coroutines_share_the_engine(engine: Engine) -> None:
    async def serve() -> list[object]:
        server = AsyncEngine(engine)
        jobs = [
            server.generate("apple", decoder=MULO, seed=1),
            server.generate("red pear", decoder=Serial(), seed=2),
            server.generate("red", decoder=Failing()),
            server.generate("blue", decoder=ZipAR(1), seed=3),
        ]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        kinds = [u.kind async for u in server.stream("pear", decoder=MULO, seed=4)]
        async for _ in server.stream("pear", decoder=MULO, seed=4):
            break
        task = asyncio.create_task(server.generate("apple", decoder=Serial()))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.close()
        return [*results, kinds]

    first, second, third, fourth, kinds = asyncio.run(serve())
    assert isinstance(first, Update) and isinstance(second, Update) and isinstance(fourth, Update)
    assert isinstance(third, ZeroDivisionError)
    assert kinds == ["draft", "band", "draft", "band", "final"]
    for update, prompt, decoder, seed in (
        (first, "apple", MULO, 1), (second, "red pear", Serial(), 2), (fourth, "blue", ZipAR(1), 3),
    ):  # fmt: skip
        alone = engine.generate(prompt, decoder=decoder, seed=seed)
        assert update.tokens is not None and torch.equal(update.tokens, alone.tokens[0])
    assert not any(any(c.used) for c in engine.caches.values())
