"""Images of one request: whenever it is cancelled or late, it ends, and nothing of it stays in the engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from mulosd.engine.async_engine import EngineBusy
from mulosd.serve.errors import ApiError
from mulosd.serve.jobs import Job


class Slow:
    """An engine that adds a request when it is told to, and never has news of it."""

    def __init__(self) -> None:
        self.told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.asked = asyncio.Event()
        self.added = self.closed = 0

    async def submit(self, prompt: str, **options: Any) -> Any:
        self.asked.set()
        error = await asyncio.shield(self.told)
        if error is not None:
            raise error
        self.added += 1
        return self

    async def __anext__(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        self.closed += 1


async def drawn(engine: Any, timeout: float = 60) -> None:
    async with aclosing(Job(engine, "apple", [1], timeout).updates()) as updates:
        async for _ in updates:
            pass


@pytest.mark.parametrize("turns", range(8))
def test_a_cancellation_at_any_turn_of_being_added_is_not_forgotten(turns: int) -> None:
    async def check() -> None:
        engine = Slow()
        job = asyncio.ensure_future(drawn(engine))
        await engine.asked.wait()
        engine.told.set_result(None)
        for _ in range(turns):  # of the event loop, behind which the news has come a step further
            await asyncio.sleep(0)
        job.cancel()
        done, _ = await asyncio.wait({job}, timeout=10)
        assert done, "it still waits for its images"
        assert job.cancelled()
        for _ in range(8):
            await asyncio.sleep(0)
        assert engine.closed == engine.added

    asyncio.run(check())


def test_what_is_added_too_late_is_closed() -> None:
    async def check() -> None:
        engine = Slow()
        with pytest.raises(ApiError, match="within its") as caught:
            await drawn(engine, timeout=0.02)
        assert caught.value.code == "deadline"
        engine.told.set_result(None)
        for _ in range(8):
            await asyncio.sleep(0)
        assert engine.closed == engine.added

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(ValueError("no such word"), 400, "invalid_value"), (EngineBusy("full"), 429, "queue_full")],
)
def test_why_it_was_not_added(error: Exception, status: int, code: str) -> None:
    async def check() -> None:
        engine = Slow()
        engine.told.set_result(error)
        with pytest.raises(ApiError) as caught:
            await drawn(engine)
        assert (caught.value.status_code, caught.value.code) == (status, code)

    asyncio.run(check())
