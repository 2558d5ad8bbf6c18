"""The engine for asyncio servers: the same verbs, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .arguments import whole
from .engine import Engine
from .request import Update

ENDED = "the engine was closed while the request was under way"


class EngineBusy(RuntimeError):
    """As many requests wait as may wait; try again when some are done."""


class AsyncEngine:
    """Runs an engine in a thread of its own; requests of any number of coroutines share its forwards.

    It serves one event loop at a time, and another one once that is closed or nothing is under way.

    Args:
        engine: the engine; other threads may use its `generate` and `stream` meanwhile, not its `step`.
        max_waiting: most requests under way at a time, running ones included; one more raises `EngineBusy`.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 1024) -> None:
        self.engine = engine
        self.max_waiting = whole("max_waiting", max_waiting)
        # One thread, so that steps do not block the event loop and requests are taken in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mulosd")
        self._queues: dict[int, asyncio.Queue[Update]] = {}
        self._count = 0  # requests under way, those that are being added included
        self._loop: asyncio.AbstractEventLoop | None = None
        self._driver: asyncio.Task[None] | None = None
        self._closed = False

    async def generate(self, prompt: str, **options: Any) -> Update:
        """The final update of one image; arguments are those of `Engine.add_request`. A failed request raises."""
        async for update in self.stream(prompt, previews=False, **options):
            last = update
        return last

    async def stream(self, prompt: str, *, previews: bool = True, **options: Any) -> AsyncIterator[Update]:
        """Updates of one image. Leaving the loop early, or being cancelled at any point, aborts the request.

        Raises:
            ValueError: as `Engine.add_request`.
            EngineBusy: too many requests are under way.
            RuntimeError: the engine is closed, or serves another event loop; and what a request failed with.
        """
        self._check()
        queue: asyncio.Queue[Update] = asyncio.Queue()

        def add() -> int:
            number = self.engine.add_request(prompt, previews=previews, **options)
            # In the thread that steps: no update can come before there is a queue for it.
            self._queues[number] = queue
            return number

        self._count += 1
        try:
            number = await self._added(self._thread.submit(add))
            if self._driver is None or self._driver.done():
                self._driver = asyncio.create_task(self._drive())
            try:
                while True:
                    if self._closed and queue.empty():
                        raise RuntimeError(ENDED)
                    update = await queue.get()
                    if update.error is not None:
                        raise update.error
                    yield update
                    if update.kind == "final":
                        return
            finally:
                self._drop(number)
        finally:
            self._count -= 1

    async def close(self) -> None:
        """Fail what waits, end the thread; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        ended = RuntimeError(ENDED)
        for number in list(self._queues):
            self._queues[number].put_nowait(Update(number, "failed", error=ended))
            self._drop(number)
        if self._driver is not None and self._loop is asyncio.get_running_loop():
            await self._driver
        await asyncio.to_thread(self._thread.shutdown)

    def _check(self) -> None:
        """RuntimeError when no request can be taken."""
        if self._closed:
            raise RuntimeError("this AsyncEngine is closed; make another one")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed() and self._count:
                raise RuntimeError("this AsyncEngine serves another event loop: give each loop one of its own")
            self._loop, self._driver, self._count = loop, None, 0
            for number in list(self._queues):  # left by a loop that was closed
                self._drop(number)
        if self._count >= self.max_waiting:
            raise EngineBusy(f"{self.max_waiting} requests are under way, which is max_waiting; try again later")

    async def _added(self, adding: Future[int]) -> int:
        """The number of a request once it is added; one that is cancelled meanwhile leaves nothing behind."""
        try:
            return await asyncio.shield(asyncio.wrap_future(adding))
        except asyncio.CancelledError:
            adding.add_done_callback(lambda done: None if done.exception() else self._drop(done.result()))
            raise

    def _drop(self, number: int) -> None:
        """Forget a request, whether it is done or not."""
        self._queues.pop(number, None)
        try:
            self._thread.submit(self.engine.abort, number)
        except RuntimeError:  # the thread has ended
            self.engine.abort(number)

    async def _drive(self) -> None:
        """Step while there is work. A step that raises fails every request, rather than leaving them waiting."""
        while self._queues and not self._closed:
            try:
                updates = await asyncio.wrap_future(self._thread.submit(self.engine.step))
            except Exception as error:
                updates = [Update(number, "failed", error=error) for number in list(self._queues)]
            for update in updates:
                queue = self._queues.get(update.request)
                if queue is not None:
                    queue.put_nowait(update)
