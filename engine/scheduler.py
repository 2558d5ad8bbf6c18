"""Requests in flight: they join and leave between steps, and a step is one forward for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .arguments import check_settings
from .batch import Feed
from .cache import KVCache
from .decoding.base import Decoder
from .family import Family
from .request import Request, Update
from .runner import run


@dataclass(frozen=True)
class SchedulerConfig:
    """How much runs at a time.

    Args:
        max_running: requests under way at a time.
        kv_budget: bytes of KV cache; None is no limit.
        max_tokens: tokens in one forward, of one branch; longer feeds are cut, the rest of the requests wait a step.
        static: run steps of fixed shapes where they serve, which CUDA graphs replay; None is on a GPU only. On a CPU
            they give the same tokens, a little slower.
        collapse_prefix: keep the condition in one slot of the KV cache, exactly, where a model's prefix keys are zero
            (LlamaGen): less memory, and nothing of the caption to read at each step.
    """

    max_running: int = 64
    kv_budget: int | None = None
    max_tokens: int = 1024
    static: bool | None = None
    collapse_prefix: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("max_running", "max_tokens", "kv_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")


class Scheduler:
    """Runs requests of one family. It owns the KV caches.

    Args:
        family: a loaded family.
        config: limits.
    """

    def __init__(self, family: Family, config: SchedulerConfig | None = None) -> None:
        self.family, self.config = family, config or SchedulerConfig()
        # By grid, and whether it is the feature drafter's.
        self.caches: dict[tuple[int, bool], KVCache] = {}
        self.waiting: dict[int, Request] = {}
        self.running: list[Request] = []
        # What `step` has not returned yet: it outlives a step that is interrupted.
        self.news: list[Update] = []
        self._number = 0

    @property
    def bytes(self) -> int:
        """Bytes of KV cache that the requests under way may hold."""
        return sum(request.bytes for request in self.running)

    def cache(self, grid: int) -> KVCache:
        """The KV cache of a grid."""
        if (grid, False) not in self.caches:
            collapse = self.config.collapse_prefix
            self.caches[grid, False] = KVCache(self.family.model(grid), grid, 2, collapse=collapse)
        return self.caches[grid, False]

    def drafter_cache(self, grid: int) -> KVCache:
        """The KV cache of the feature drafter of a grid."""
        if (grid, True) not in self.caches:
            self.caches[grid, True] = KVCache(self.family.eagle_drafter(grid), grid, 2)
        return self.caches[grid, True]

    def bytes_of(self, decoder: Decoder, branches: int) -> int:
        """Bytes of KV cache that a request of this decoder holds."""
        return branches * decoder.bytes_per_row(self.family, collapse=self.config.collapse_prefix)

    def check(self, decoder: Decoder, branches: int) -> int:
        """Bytes of KV cache that a request of this decoder holds; ValueError when it could never run within the
        budget."""
        need = self.bytes_of(decoder, branches)
        budget = self.config.kv_budget
        if budget is not None and need > budget:
            raise ValueError(
                f"one request of decoder {decoder.name!r} needs {need / 2**20:.1f} MiB of KV cache, the budget is "
                f"{budget / 2**20:.1f} MiB: raise kv_budget, or use a smaller grid or a narrower type"
            )
        return need

    def add(self, request: Request, decoder: Decoder) -> int:
        """Queue a request; returns its number.

        Raises:
            ValueError: as `check`.
        """
        need = self.check(decoder, len(request.features))
        self._number += 1
        request.number, request.bytes, request.plan = self._number, need, decoder.plan(request)
        request.cache, request.drafter_cache = self.cache, self.drafter_cache
        self.waiting[self._number] = request
        return self._number

    def abort(self, number: int) -> bool:
        """Drop a request, waiting or running; whether there was one."""
        if self.waiting.pop(number, None) is not None:
            return True
        for request in self.running:
            if request.number == number:
                self._leave(request)
                return True
        return False

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs, or has something to tell."""
        return bool(self.waiting or self.running or self.news)

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Admit what fits, run one forward for the requests under way, and say what happened: an update a preview, and
        one at each end, without images and with tokens where they were made.

        An interrupt fails the request whose plan it stops, if any; the others go on in the next step.
        """
        for request in [r for r in self.running if r.ready]:  # left by a step that was interrupted
            self._advance(request)
        self._admit()
        turn = self._choose()
        for (request, _), error in zip(turn, self._run(turn), strict=True):
            if error is not None:
                self._fail(request, error)
            elif request.ready:
                self._advance(request)
        news, self.news = self.news, []
        return news

    def _admit(self) -> None:
        budget = self.config.kv_budget
        while self.waiting and len(self.running) < self.config.max_running:
            first = next(iter(self.waiting.values()))
            if budget is not None and self.bytes + first.bytes > budget:
                break
            self.running.append(self.waiting.pop(first.number))
            first.recorder.admit()
            self._advance(self.running[-1])
        for request in self.running:
            request.recorder.stats.batch = max(request.recorder.stats.batch, len(self.running))

    def _choose(self) -> list[tuple[Request, Feed]]:
        """The feeds of this step: what fits the token budget, those first that waited longest."""
        left = self.config.max_tokens
        turn: list[tuple[Request, Feed]] = []
        for request in self.running:
            if request.ready:
                continue
            feed = request.next(self.config.max_tokens)
            if turn and feed.count > left:
                continue
            left -= feed.count
            turn.append((request, feed))
        chosen = {r.number for r, _ in turn}
        self.running.sort(key=lambda r: r.number in chosen)
        return turn

    def _run(self, turn: Sequence[tuple[Request, Feed]]) -> list[Exception | None]:
        """Run the feeds and hand out the results. When that fails, each is tried alone: none can harm the others."""
        if not turn:
            return []
        try:
            results = run([feed for _, feed in turn], self.config.static)
        except Exception as error:
            return [error] if len(turn) == 1 else [self._run([one])[0] for one in turn]
        for (request, feed), result in zip(turn, results, strict=True):
            request.take(feed, result)
        return [None] * len(turn)

    def _advance(self, request: Request) -> None:
        try:
            outcome = request.advance()
        except Exception as error:
            self._fail(request, error)
        except BaseException as error:
            self._fail(request, RuntimeError(f"stopped by {type(error).__name__}"))
            raise
        else:
            self._tell(request)
            if outcome is not None:
                self._leave(request)
                self.news.append(request.final(outcome))

    def _fail(self, request: Request, error: Exception) -> None:
        self._tell(request)
        self._leave(request)
        self.news.append(Update(request.number, "failed", error=error))

    def _tell(self, request: Request) -> None:
        self.news += request.updates
        request.updates.clear()

    def _leave(self, request: Request) -> None:
        request.close()
        self.running.remove(request)
