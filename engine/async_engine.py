"""The engine for asyncio servers: the same verbs, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .engine import Engine
from .request import Update


class AsyncEngine:
    """Runs an engine in a thread of its own; requests of any number of coroutines share its forwards.

    Args:
        engine: used by nobody else from then on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # One thread: the engine is not thread-safe, and its steps must not block the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mulosd")
        self._queues: dict[int, asyncio.Queue[Update]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, prompt: str, **options: Any) -> Update:
        """The final update of one image; arguments are those of `Engine.add_request`. A failed request raises."""
        async for update in self.stream(prompt, previews=False, **options):
            last = update
        return last

    async def stream(self, prompt: str, *, previews: bool = True, **options: Any) -> AsyncIterator[Update]:
        """Updates of one image. Leaving the loop early, or being cancelled, aborts the request."""
        number = await self._call(self.engine.add_request, prompt, previews=previews, **options)
        queue = self._queues[number] = asyncio.Queue()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._drive())
        try:
            while True:
                update = await queue.get()
                if update.error is not None:
                    raise update.error
                yield update
                if update.kind == "final":
                    return
        finally:
            del self._queues[number]
            await asyncio.shield(self._call(self.engine.abort, number))

    async def close(self) -> None:
        """Abort what is under way and end the thread."""
        await self._call(self.engine.clear)
        if self._loop is not None:
            await self._loop
        self._thread.shutdown()

    async def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **options))

    async def _drive(self) -> None:
        """Step while there is work. A step that raises fails every request, rather than leaving them waiting."""
        while self.engine.busy:
            try:
                updates = await self._call(self.engine.step)
            except Exception as error:
                await self._call(self.engine.clear)
                updates = [Update(number, "failed", error=error) for number in self._queues]
            for update in updates:
                queue = self._queues.get(update.request)
                if queue is not None:
                    queue.put_nowait(update)
