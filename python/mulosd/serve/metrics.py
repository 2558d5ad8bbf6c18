"""Metrics for Prometheus, under `mulosd_`; every application has a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from .._version import __version__
from ..engine.engine import EngineLoad
from ..engine.stats import GenerationStats

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BYTES = (4096, 16384, 65536, 262144, 1048576, 4194304)
# What becomes of a request; each that was sent ends as exactly one of them.
OUTCOMES = ("finished", "aborted", "failed", "refused")


class Metrics:
    """The metrics of one server.

    Args:
        families: their names.
        device: where they compute.
    """

    def __init__(self, families: list[str], device: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"mulosd_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mulosd_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"mulosd_{name}", text, labels, registry=registry, buckets=buckets)

        self.running = gauge("num_requests_running", "Images that the engine computes", "family")
        self.waiting = gauge("num_requests_waiting", "Images that wait for the engine", "family")
        self.taken = gauge("places_taken", "Images under way by admission, waiting and running", "family")
        self.places = gauge("places", "Images that may be under way", "family")
        self.kv_bytes = gauge("kv_cache_bytes", "KV cache that running images may hold", "family")
        self.kv_ratio = gauge("kv_cache_usage_ratio", "The same as a share of the budget; 0 without one", "family")
        self.ready = gauge("ready", "Whether requests are taken")
        self.requests = counter("requests_total", "Requests for images by what became of them", "status")
        self.responses = counter("http_responses_total", "Answers by route and status", "route", "code")
        self.images = counter("images_total", "Finished images", "family", "decoder")
        self.tokens = counter("generation_tokens_total", "Tokens of finished images", "family")
        self.forwards = counter("forwards_total", "Forward passes that finished images took part in", "family", "role")
        self.fed = counter("fed_tokens_total", "Tokens fed for finished images", "family", "role")
        self.rejected = counter("rejected_tokens_total", "Tokens below tau", "family")
        self.resampled = counter("resampled_tokens_total", "Tokens drawn again", "family")
        self.steps = counter("engine_steps_total", "Steps of the engine", "family")
        self.latency = histogram("e2e_request_latency_seconds", "From request to answer", SECONDS, "family")
        self.queue = histogram("request_queue_time_seconds", "From adding an image to its start", SECONDS, "family")
        self.preview = histogram("time_to_first_preview_seconds", "From request to first preview", SECONDS, "family")
        self.stage = histogram("stage_seconds", "Seconds of an image by stage", SECONDS, "family", "stage")
        self.rejection = histogram("rejection_ratio", "Share of tokens below tau", SHARES, "family", "decoder")
        self.step_seconds = histogram("step_seconds", "One step of the engine", SECONDS, "family")
        self.step_requests = histogram("step_requests", "Images running behind a step", COUNTS, "family")
        self.image_bytes = histogram("image_bytes", "Size of an encoded image", BYTES, "family")
        info = Info("mulosd_build", "Versions", registry=registry)
        info.info({"version": __version__, "torch": torch.__version__, "device": device})
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for family in families:
            self.steps.labels(family)

    def step(self, family: str, seconds: float, load: EngineLoad) -> None:
        """One step of an engine; called in its thread."""
        self.steps.labels(family).inc()
        self.step_seconds.labels(family).observe(seconds)
        self.step_requests.labels(family).observe(load.running)

    def load(self, family: str, load: EngineLoad, taken: int, places: int, budget: int | None) -> None:
        """What a family has under way."""
        values: Mapping[Gauge, float] = {
            self.running: load.running,
            self.waiting: load.waiting,
            self.kv_bytes: load.kv_bytes,
            self.kv_ratio: load.kv_bytes / budget if budget else 0,
            self.taken: taken,
            self.places: places,
        }
        for metric, value in values.items():
            metric.labels(family).set(value)

    def image(self, family: str, stats: GenerationStats, tokens: int, size: int) -> None:
        """A finished image of so many tokens and encoded bytes."""
        self.images.labels(family, stats.decoder).inc()
        self.tokens.labels(family).inc(tokens)
        self.queue.labels(family).observe(stats.waited)
        self.image_bytes.labels(family).observe(size)
        for role, count in stats.forwards.items():
            self.forwards.labels(family, role).inc(count)
        for role, count in stats.fed.items():
            self.fed.labels(family, role).inc(count)
        for stage, seconds in stats.seconds.items():
            if stage != "total":
                self.stage.labels(family, stage).observe(seconds)
        if stats.rejection is not None and stats.coverage is not None:
            self.rejection.labels(family, stats.decoder).observe(stats.rejection)
            self.rejected.labels(family).inc(round(stats.rejection * tokens))
            self.resampled.labels(family).inc(round(stats.coverage * tokens))

    def text(self) -> bytes:
        """What Prometheus scrapes."""
        return bytes(generate_latest(self.registry))
