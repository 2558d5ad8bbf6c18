"""Servers in threads of the test process, over tiny random families whose engines do as they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx

from mulosd.engine.engine import Engine, EngineLoad, Update
from mulosd.engine.family import Family
from mulosd.engine.family_config import Calibration
from mulosd.engine.random_family import random_family
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.serve import Settings, create_app
from mulosd.serve.run import GracefulServer, listen
from mulosd.serve.server import Server


def calibrated(grids: tuple[int, ...] = (2, 4, 8)) -> Family:
    """A random family that `mulo` works with: images of 2 px a token, scales 2 and 4."""
    made = random_family(grids)
    found = [Calibration(scale, "latent", pool=3, radius=1, tau=0.05) for scale in (2, 4)]
    made.config = replace(made.config, calibrations={c.key: c for c in found})
    return made


class Told(Engine):
    """An engine that can be held, slowed, or made to fail."""

    def __init__(self, **config: Any) -> None:
        super().__init__(calibrated(), config=SchedulerConfig(**{"max_running": 4, **config}))
        self.gate = threading.Event()
        self.gate.set()
        self.adding = threading.Event()
        self.adding.set()
        self.pause = 0.0
        self.fault: Callable[[], BaseException] | None = None
        self.steps = 0

    def add_request(self, *args: Any, **options: Any) -> int:
        self.adding.wait(30)
        return super().add_request(*args, **options)

    def step(self) -> list[Update]:
        self.gate.wait(30)
        self.steps += 1
        time.sleep(self.pause)
        if self.fault is not None and self.scheduler.busy:  # a step behind the last request has nobody to fail
            raise self.fault()
        return super().step()

    @property
    def empty(self) -> bool:
        """Whether nothing is left of any request."""
        held = any(any(cache.used) for cache in self.caches.values())
        return self.load() == EngineLoad() and not self._requests and not self._kept and not held


class Live:
    """A server that listens."""

    def __init__(self, engine: Told, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.app = create_app(settings, [engine])
        self.state: Server = self.app.state.server
        listener = listen(settings)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = GracefulServer(self.app)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        self.until(lambda: self.state.warm and self.server.started)
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something that must become true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not become so in time"
            time.sleep(0.01)

    def post(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/images/generations", json={"prompt": "apple", **body})

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where there is none."""
        return self.state.metrics.registry.get_sample_value(f"mulosd_{name}", labels) or 0.0

    def outcomes(self) -> dict[str, int]:
        return {o: int(self.metric("requests_total", status=o)) for o in ("finished", "aborted", "failed", "refused")}

    def at_rest(self) -> None:
        """Assert that nothing is left of any request: no place, no job, nothing in the engine."""
        self.until(lambda: not self.state.under_way and not self.state._jobs and self.engine.empty)
        served = self.state.find(None)
        assert not served.engine._queues and not served.engine._count

    def stop(self) -> None:
        self.engine.gate.set()
        self.engine.adding.set()
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
