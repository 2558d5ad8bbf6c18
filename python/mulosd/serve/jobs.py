"""The images of one request in the engine: their updates in one stream, a deadline, and a way to stop them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ..engine.async_engine import AsyncEngine, EngineBusy, EngineClosed, EngineDead, Submission
from ..engine.request import Update
from .errors import ApiError


class Job:
    """Images of one prompt.

    Args:
        engine: draws them.
        prompt: what to draw.
        seeds: one an image.
        timeout: seconds until `updates` raises.
        options: further arguments of `AsyncEngine.submit`.
    """

    def __init__(self, engine: AsyncEngine, prompt: str, seeds: Sequence[int], timeout: float, **options: Any) -> None:
        self.engine, self.prompt, self.seeds, self.timeout, self.options = engine, prompt, seeds, timeout, options
        self._end = time.monotonic() + timeout
        self._stopped = asyncio.Event()
        self._reason = ApiError(409, "the request was cancelled", code="cancelled", retry=False)

    def stop(self, reason: ApiError | None = None) -> None:
        """End it: `updates` raises the reason, a cancellation where there is none."""
        self._reason = reason or self._reason
        self._stopped.set()

    async def updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Updates with the number of their image, until each has its final one. Whatever ends it aborts the rest.

        Raises:
            ApiError: the deadline has passed, the job was stopped, the engine takes nothing, or an image failed.
            Exception: of an image that failed by a bug.
        """
        stop = asyncio.ensure_future(self._stopped.wait())
        submissions: list[Submission] = []
        tasks: dict[asyncio.Future[Update], int] = {}

        def wait_for(number: int) -> None:
            tasks[asyncio.ensure_future(submissions[number].__anext__())] = number

        try:
            for number, seed in enumerate(self.seeds):
                submissions.append(await self._submit(seed))
                wait_for(number)
            while tasks:
                left = max(0.0, self._end - time.monotonic())
                watched: list[asyncio.Future[Any]] = [*tasks, stop]
                done, _ = await asyncio.wait(watched, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if stop in done:
                    raise self._reason
                if not done:
                    raise self._late()
                for task in [task for task in tasks if task in done]:
                    number = tasks.pop(task)
                    update = task.result()
                    if update.kind != "final":
                        wait_for(number)
                    yield number, update
        except (EngineBusy, EngineClosed, EngineDead, MemoryError) as error:
            raise told(error) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise told(error) from error
        finally:
            stop.cancel()
            for waiting in tasks:
                waiting.cancel()
            for submission in submissions:
                submission.close()

    async def _submit(self, seed: int) -> Submission:
        adding = asyncio.ensure_future(self.engine.submit(self.prompt, seed=seed, **self.options))
        try:
            # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes as its future gets done.
            if not (await asyncio.wait({adding}, timeout=max(0.0, self._end - time.monotonic())))[0]:
                raise self._late()
        except BaseException:
            adding.cancel()
            adding.add_done_callback(forsake)
            raise
        try:
            return adding.result()
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt", code="invalid_value") from error

    def _late(self) -> ApiError:
        message = f"the request was not done within its {self.timeout:g} s"
        return ApiError(503, message, code="deadline", retry=False)


def forsake(adding: asyncio.Future[Submission]) -> None:
    """Close what was added for nobody; why it was not added, if it was not, is of no interest any more."""
    if not adding.cancelled() and adding.exception() is None:
        adding.result().close()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, which is known by then not to be for the neighbours: each was tried alone."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def told(error: Exception) -> ApiError:
    """What a client reads of an engine that cannot serve."""
    if isinstance(error, EngineBusy):
        return ApiError(429, "too many images are under way", code="queue_full", retry_after=1)
    if isinstance(error, EngineClosed):
        return ApiError(503, "the server is shutting down", code="draining", retry_after=5)
    if isinstance(error, EngineDead):
        return ApiError(503, "the engine cannot compute any more; the server must be restarted", code="engine_dead")
    message = "the image does not fit into the memory of the server, even alone; ask for a smaller size"
    return ApiError(503, message, code="out_of_memory", retry=False)
