"""The engine for asyncio servers: the same verbs, awaited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import torch

from .arguments import whole
from .engine import Engine, EngineLoad
from .request import Update

ENDED = "the engine was closed while the request was under way"
# Previews that a reader may lag behind; of more, the newest are kept. Each holds an image.
PREVIEWS_KEPT = 4
# Steps in a row that may raise before the engine counts as dead.
FAILED_STEPS = 3


class EngineBusy(RuntimeError):
    """As many requests wait as may wait; try again when some are done."""


class EngineClosed(RuntimeError):
    """The engine was closed, or is being drained: it takes no requests any more."""


class EngineDead(RuntimeError):
    """The engine cannot compute any more: its thread ended, its device failed, or every step raises. Start another."""


class Submission:
    """A request that was added: an asynchronous iterator of its updates. `close` it, in whatever state it is.

    A reader that lags behind gets the newest `PREVIEWS_KEPT` previews, and always the last update.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.number = 0
        self._engine = engine
        self._previews: deque[Update] = deque(maxlen=PREVIEWS_KEPT)
        self._end: Update | None = None
        self._news = asyncio.Event()
        self._done = self._closed = False

    def put(self, update: Update) -> None:
        """Take an update; behind the last one, none."""
        if self._end is None:
            if update.kind in ("final", "failed"):
                self._end = update
            else:
                self._previews.append(update)
            self._news.set()

    def __aiter__(self) -> Submission:
        return self

    async def __anext__(self) -> Update:
        if self._done:
            raise StopAsyncIteration
        while not self._previews and self._end is None:
            self._news.clear()
            await self._news.wait()
        if self._previews:
            return self._previews.popleft()
        self._done = True
        update = self._end
        if update is None:
            raise RuntimeError("a submission that has ended holds its last update")
        if update.error is not None:
            raise update.error
        return update

    def close(self) -> None:
        """Abort what is not done, and make room for another request; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._engine._leave(self.number)


class AsyncEngine:
    """Runs an engine in a thread of its own; requests of any number of coroutines share its forwards.

    It serves one event loop at a time, and another one once that is closed or nothing is under way.

    Args:
        engine: the engine; other threads may use its `generate` and `stream` meanwhile, not its `step`.
        max_waiting: most requests under way at a time, running ones included; one more raises `EngineBusy`.
        on_step: called in the engine's thread behind every step with its seconds and the load behind it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 1024,
        on_step: Callable[[float, EngineLoad], None] | None = None,
    ) -> None:
        self.engine = engine
        self.max_waiting = whole("max_waiting", max_waiting)
        self.on_step = on_step
        # One thread, so that steps do not block the event loop and requests are taken in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mulosd")
        self._queues: dict[int, Submission] = {}
        self._count = 0  # requests under way, those that are being added included
        self._load = EngineLoad()
        self._idle: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._driver: asyncio.Task[None] | None = None
        self._closed = self._draining = False
        self._failed_steps = 0
        self._death: BaseException | None = None

    async def generate(self, prompt: str, **options: Any) -> Update:
        """The final update of one image; arguments are those of `Engine.add_request`. A failed request raises."""
        async with aclosing(self.stream(prompt, previews=False, **options)) as updates:
            async for update in updates:
                last = update
        return last

    async def stream(self, prompt: str, *, previews: bool | int = True, **options: Any) -> AsyncGenerator[Update, None]:
        """Updates of one image. Leaving the loop early, or being cancelled at any point, aborts the request.

        Raises:
            ValueError, EngineBusy, EngineClosed, EngineDead, RuntimeError: as `submit`; and what a request failed with.
        """
        submission = await self.submit(prompt, previews=previews, **options)
        try:
            async for update in submission:
                yield update
        finally:
            submission.close()

    async def submit(self, prompt: str, *, previews: bool | int = True, **options: Any) -> Submission:
        """Add a request, with the arguments of `Engine.add_request`; being cancelled meanwhile leaves nothing behind.

        Raises:
            ValueError: as `Engine.add_request`.
            EngineBusy: too many requests are under way.
            EngineClosed: the engine is closed or draining.
            EngineDead: it cannot compute any more.
            RuntimeError: it serves another event loop.
        """
        self._check()
        submission = Submission(self)

        def add() -> int:
            number = self.engine.add_request(prompt, previews=previews, **options)
            # In the thread that steps: no update can come before there is somebody for it.
            self._queues[number] = submission
            self._load = self.engine.load()
            return number

        self._count += 1
        try:
            submission.number = await self._added(self._submit(add))
            if self._closed:  # while it was being added
                self._drop(submission.number)
                raise EngineClosed(ENDED)
            if self._driver is None or self._driver.done():
                self._driver = asyncio.create_task(self._drive())
        except BaseException:
            self._uncount()
            raise
        return submission

    def snapshot(self) -> EngineLoad:
        """Requests waiting and running and the bytes of KV cache that they hold, behind the latest step; never waits
        for one that is under way."""
        return self._load

    @property
    def dead(self) -> BaseException | None:
        """Why the engine cannot compute any more; None while it can."""
        return self._death

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those under way.

        Args:
            timeout: seconds to wait at most; None is no limit.

        Returns:
            Whether none was left; `close` then fails those that were.
        """
        self._draining = True
        self._idle = asyncio.Event()
        if self._count and not self._closed:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except asyncio.TimeoutError:
                return False
        return True

    async def close(self) -> None:
        """Fail what waits, end the thread; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(EngineClosed(ENDED))
        if self._driver is not None and self._loop is asyncio.get_running_loop():
            await self._driver
        await asyncio.to_thread(self._thread.shutdown)
        self._load = self.engine.load()

    def _check(self) -> None:
        """RuntimeError when no request can be taken."""
        if self._closed:
            raise EngineClosed("this AsyncEngine is closed; make another one")
        if self._draining:
            raise EngineClosed("this AsyncEngine is being drained, it takes no more requests")
        if self._death is not None:
            raise EngineDead(f"this engine cannot compute any more ({describe(self._death)}); start another")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed() and self._count:
                raise RuntimeError("this AsyncEngine serves another event loop: give each loop one of its own")
            self._loop, self._driver, self._count = loop, None, 0
            for number in list(self._queues):  # left by a loop that was closed
                self._drop(number)
        if self._count >= self.max_waiting:
            raise EngineBusy(f"{self.max_waiting} requests are under way, which is max_waiting; try again later")

    def _submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Hand work to the thread; EngineDead when that has ended."""
        try:
            return self._thread.submit(work)
        except RuntimeError as error:
            self._die(error)
            raise EngineDead(f"the engine's thread has ended ({error}); start another") from error

    async def _added(self, adding: Future[int]) -> int:
        """The number of a request once it is added; one that is cancelled meanwhile leaves nothing behind."""
        try:
            return await asyncio.shield(asyncio.wrap_future(adding))
        except asyncio.CancelledError:
            adding.add_done_callback(lambda done: None if done.exception() else self._drop(done.result()))
            raise

    def _leave(self, number: int) -> None:
        """A submission is closed."""
        self._drop(number)
        self._uncount()

    def _uncount(self) -> None:
        self._count = max(0, self._count - 1)
        if not self._count and self._idle is not None:
            self._idle.set()

    def _drop(self, number: int) -> None:
        """Forget a request, whether it is done or not."""
        self._queues.pop(number, None)

        def abort() -> None:
            self.engine.abort(number)
            self._load = self.engine.load()

        try:
            self._thread.submit(abort)
        except RuntimeError:  # the thread has ended
            abort()

    def _fail_all(self, error: Exception) -> None:
        for number in list(self._queues):
            self._queues[number].put(Update(number, "failed", error=error))
            self._drop(number)

    def _die(self, cause: BaseException) -> None:
        """Note why nothing can be computed any more, and fail what waits."""
        if self._death is None:
            self._death = cause
        self._fail_all(EngineDead(f"the engine cannot compute any more ({describe(self._death)})"))

    def _step(self) -> list[Update]:
        """One step, in the thread. What no server can survive comes out as EngineDead: a BaseException would end the
        event loop that waits for it."""
        begun = time.perf_counter()
        try:
            updates = self.engine.step()
        except Exception:
            raise
        except BaseException as error:
            raise EngineDead(describe(error)) from error
        finally:
            self._load = self.engine.load()
        if self.on_step is not None:
            self.on_step(time.perf_counter() - begun, self._load)
        return updates

    async def _drive(self) -> None:
        """Step while there is work. A step that raises fails every request, rather than leaving them waiting."""
        while self._queues and not self._closed:
            try:
                updates = await asyncio.wrap_future(self._submit(self._step))
                self._failed_steps = 0
            except EngineDead as error:
                self._die(error.__cause__ or error)
                return
            except Exception as error:
                self._failed_steps += 1
                if self._failed_steps >= FAILED_STEPS or is_fatal(error):
                    self._die(error)
                    return
                updates = [Update(number, "failed", error=error) for number in list(self._queues)]
            for update in updates:
                queue = self._queues.get(update.request)
                if queue is not None:
                    queue.put(update)
                if update.kind == "failed":
                    # A reader may be slow to leave: what failed is not to be stepped again.
                    self._drop(update.request)
                if update.error is not None and is_fatal(update.error):
                    self._die(update.error)
                    return


def is_fatal(error: BaseException) -> bool:
    """Whether a device error leaves the process unable to use that device, as those of CUDA do."""
    return isinstance(error, torch.AcceleratorError)


def describe(error: BaseException) -> str:
    """An exception in words."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
