"""The metrics of a replica as metrics of Ray, which collects those of its own kind alone."""

from __future__ import annotations

import asyncio

from ray.util.metrics import Counter, Gauge

from ..serve.server import Server

# How often; Ray sends them on every few seconds.
SECONDS = 5.0


class Mirror:
    """Copies samples of a server to Ray, whose names are those of `/metrics` behind `ray_`.

    A histogram arrives as what Prometheus makes of it: counters `_bucket` by `le`, `_sum`, `_count`.

    Args:
        server: `app.state.server` of an application.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._metrics: dict[str, Counter | Gauge] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def copy(self) -> None:
        """Tell Ray of everything that has changed."""
        self.server.measure()
        for family in self.server.metrics.registry.collect():
            if not family.name.startswith("mulosd_") or family.type == "info":
                continue
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._sample(sample.name, family.type, family.documentation, sample.labels, sample.value)

    def _sample(self, name: str, kind: str, text: str, labels: dict[str, str], value: float) -> None:
        metric = self._metrics.get(name)
        if metric is None:
            make = Gauge if kind == "gauge" else Counter
            metric = self._metrics[name] = make(name, description=text, tag_keys=tuple(labels))
        if isinstance(metric, Gauge):
            metric.set(value, tags=labels)
            return
        key = (name, tuple(sorted(labels.items())))
        more = value - self._last.get(key, 0.0)
        if more > 0:
            metric.inc(more, tags=labels)
            self._last[key] = value

    async def run(self) -> None:
        """Copy again and again."""
        while True:
            self.copy()
            await asyncio.sleep(SECONDS)
