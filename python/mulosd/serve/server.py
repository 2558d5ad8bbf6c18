"""The state of a server: families, requests under way, and whether it takes more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..engine.engine import Engine
from ..engine.scheduler import SchedulerConfig
from .errors import ApiError
from .jobs import Job
from .metrics import Metrics
from .record import logger
from .served import Served
from .settings import Settings
from .store import ImageStore

ABORTED = ApiError(503, "the server shut down before the request was done", code="shutdown", retry_after=5)


def load_engines(settings: Settings) -> list[Engine]:
    """The engines of a server's families; ValueError for a family that cannot be, or two of one name."""
    config = SchedulerConfig(max_running=settings.max_running, kv_budget=settings.kv_budget)
    engines = [
        Engine.from_pretrained(
            family, device=settings.device, dtype=settings.dtype, config=config, quantization=settings.quantization
        )
        for family in settings.families
    ]
    names = [engine.family.name for engine in engines]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two families are called {name!r}; a server tells them apart by name")
    return engines


class Server:
    """What the routes share.

    Args:
        settings: of the server.
        metrics: where it counts.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.families: dict[str, Served] = {}
        self.store = None if settings.image_store is None else ImageStore(settings.image_store)
        self.warm = self.draining = False
        self.warming: asyncio.Task[None] | None = None
        self._jobs: dict[str, Job] = {}

    def open(self, engines: Sequence[Engine]) -> None:
        """Take the engines; ValueError when one cannot draw what is drawn by default."""
        for engine in engines:
            self.families[engine.family.name] = Served(engine, self.settings, self.metrics.step)

    @property
    def names(self) -> Mapping[str, Served]:
        """Families by every name that they are served under, the first family's further ones included."""
        first = next(iter(self.families.values()), None)
        also = {} if first is None else dict.fromkeys(self.settings.served_names, first)
        return {**also, **self.families}

    def find(self, model: str | None) -> Served:
        """The family of a request; ApiError 404 lists the names."""
        names = self.names
        if model is None:
            return next(iter(self.families.values()))
        if model not in names:
            known = ", ".join(sorted(names))
            raise ApiError(
                404, f"there is no model {model!r}; this server has {known}", param="model", code="model_not_found"
            )
        return names[model]

    @property
    def dead(self) -> list[str]:
        """Families whose engine cannot compute any more."""
        return [name for name, served in self.families.items() if served.engine.dead is not None]

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.warm and not self.draining and not self.dead

    def check_open(self) -> None:
        """ApiError 503 unless requests are taken."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        if not self.warm:
            raise ApiError(503, "the server is starting", code="not_ready", retry_after=2)

    @contextmanager
    def listed(self, request: str, job: Job) -> Iterator[None]:
        """Let `stop` find a job while the block runs."""
        self._jobs[request] = job
        try:
            yield
        finally:
            del self._jobs[request]

    def stop(self, request: str) -> bool:
        """Cancel a request under way; whether there was one."""
        job = self._jobs.get(request)
        if job is not None:
            job.stop()
        return job is not None

    async def warm_up(self) -> None:
        """Draw one image of every family in its engine's thread, then take requests."""
        for served in self.families.values():
            if self.settings.warmup:
                await asyncio.to_thread(served.engine.engine.warmup, served.decoder)
        self.warm = True
        logger.info("ready: %s", ", ".join(self.families))

    @property
    def under_way(self) -> int:
        """Places taken, of all families."""
        return sum(served.admission.taken for served in self.families.values())

    async def drain(self) -> bool:
        """Take no more requests and let those under way end, within the time of the settings.

        Returns:
            Whether all of them did; the others were ended with an error.
        """
        self.draining = True
        await asyncio.sleep(self.settings.drain_delay)
        if await self._empty(self.settings.drain_timeout):
            return True
        logger.warning("%d images are not done within %g s", self.under_way, self.settings.drain_timeout)
        for job in list(self._jobs.values()):
            job.stop(ABORTED)
        await self._empty(5)
        return False

    async def _empty(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.under_way and loop.time() < end:
            await asyncio.sleep(0.02)
        return not self.under_way

    async def close(self) -> None:
        """End the engines and whatever they have under way."""
        self.draining = True
        for served in self.families.values():
            await served.engine.close()

    def measure(self) -> None:
        """Set the gauges to what they are now."""
        for name, served in self.families.items():
            admission, budget = served.admission, self.settings.kv_budget
            self.metrics.load(name, served.engine.snapshot(), admission.taken, admission.places, budget)
        self.metrics.ready.set(self.ready)

    def scrape(self) -> bytes:
        """The metrics, with the gauges as they are now."""
        self.measure()
        return self.metrics.text()
