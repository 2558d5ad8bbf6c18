"""Requests in flight: they join and leave between steps, and a step is one forward for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .arguments import check_settings
from .batch import Feed
from .cache import KVCache, prefix_slots
from .decoding.base import Decoder
from .family import Family
from .graph_memory import decoding_bytes
from .graph_warmup import capture_all
from .graphs import graph_bytes
from .models.eagle import Model
from .request import Request, Update
from .runner import run, wants_static

# The grid of a KV cache, and whether it is the feature drafter's.
CacheKey = tuple[int, bool]


@dataclass(frozen=True)
class SchedulerConfig:
    """How much runs at a time.

    Args:
        max_running: requests under way at a time. On a GPU the caches are made for so many at once, as far as
            `kv_budget` and half of the free memory go.
        kv_budget: bytes of KV cache, used or not, and of the buffers and graphs of steps, which run kernel by kernel
            where it leaves no room; None is no limit.
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
        self.caches: dict[CacheKey, KVCache] = {}
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
        return self._cache((grid, False))

    def drafter_cache(self, grid: int) -> KVCache:
        """The KV cache of the feature drafter of a grid."""
        return self._cache((grid, True))

    def _cache(self, key: CacheKey, rows: int = 2) -> KVCache:
        """A cache, made with so many rows where it is not there yet."""
        if key not in self.caches:
            most = 2 * self.config.max_running
            model, collapse = self._model(key)
            self.caches[key] = KVCache(model, key[0], rows, collapse=collapse, most=most)
            if self.config.kv_budget is not None:
                self.caches[key].room = self._room
        return self.caches[key]

    def _room(self) -> int:
        """Bytes of the budget that neither caches nor their steps hold."""
        return (self.config.kv_budget or 0) - self._held({})

    def _model(self, key: CacheKey) -> tuple[Model, bool]:
        """The model of a cache, and whether its prefix is collapsed."""
        grid, drafter = key
        if drafter:
            return self.family.eagle_drafter(grid), False
        return self.family.model(grid), self.config.collapse_prefix

    def _bytes_per_row(self, key: CacheKey) -> int:
        model, collapse = self._model(key)
        return KVCache.bytes_per_row(model, key[0], collapse=collapse)

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
        request.holds = decoder.caches(self.family)
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

    def capture(self) -> None:
        """Capture the steps that requests like those before may need, as many at a time as may be under way."""
        if self.config.static is not False:
            on_gpu = [cache for cache in self.caches.values() if cache.device.type == "cuda"]
            capture_all(on_gpu, self.config.max_running, self.config.max_tokens)

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
            try:
                if not self._make_room(first):
                    break
            except torch.OutOfMemoryError as error:
                if self.running:
                    break  # those under way leave room when they are done
                del self.waiting[first.number]
                self.news.append(Update(first.number, "failed", error=error))
                continue
            self.running.append(self.waiting.pop(first.number))
            first.recorder.admit()
            self._advance(self.running[-1])
        for request in self.running:
            request.recorder.stats.batch = max(request.recorder.stats.batch, len(self.running))

    def _make_room(self, request: Request) -> bool:
        """Have the rows that a request takes, beside those under way; False: the budget allows them later.

        Raises:
            OutOfMemoryError: the device has no memory for them; nothing has changed.
        """
        budget = self.config.kv_budget
        needs = {key: self._rows(key, [*self.running, request]) for key in request.holds}
        lacking = {key: rows for key, rows in needs.items() if not self._has(key, rows)}
        if not lacking:
            return True
        if budget is not None:
            # Caches that nobody uses give way, if that helps; one that is needed itself is made again.
            idle = [key for key, cache in self.caches.items() if not any(cache.used)]
            again = {key: needs[key] for key in idle if key in needs}
            if self._held({**lacking, **again}, without=idle) > budget:
                return False
            while self._held(lacking) > budget:
                key = idle.pop()
                del self.caches[key]
                if key in again:
                    lacking[key] = again[key]
        for key in list(lacking):
            wanted = self._generous(key, lacking, request)
            try:
                self._cache(key, wanted).reserve(wanted)
            except torch.OutOfMemoryError:
                if wanted == lacking[key]:
                    raise
                torch.cuda.empty_cache()
                self._cache(key, lacking[key]).reserve(lacking[key])
        return True

    def _has(self, key: CacheKey, rows: int) -> bool:
        return key in self.caches and len(self.caches[key].used) >= rows

    def _rows(self, key: CacheKey, requests: Sequence[Request]) -> int:
        """Rows of a cache that requests take at most, whatever order they come and go in: pairs begin at even rows, so
        that beside them a single row may stand in the way of one."""
        each = [len(r.features) for r in requests if key in r.holds]
        return len(each) * max(each)

    def _held(self, rows: Mapping[CacheKey, int], without: Sequence[CacheKey] = ()) -> int:
        """Bytes of all caches but some, those named with so many rows at least, and of their steps: a cache that grows
        loses its own."""
        held = {key: len(cache.used) for key, cache in self.caches.items() if key not in without}
        steps = sum(graph_bytes(self.caches[key]) for key, n in held.items() if rows.get(key, 0) <= n)
        held.update({key: max(n, held.get(key, 0)) for key, n in rows.items()})
        return steps + sum(n * self._bytes_per_row(key) for key, n in held.items())

    def _generous(self, key: CacheKey, lacking: Mapping[CacheKey, int], request: Request) -> int:
        """Rows to make of a cache that needs `lacking[key]`: all that may ever be needed on a GPU, guided or not, where
        a cache that grows takes its graphs with it; elsewhere twice as many as before."""
        least, branches = lacking[key], len(request.features)
        before = len(self.caches[key].used) if key in self.caches else 0
        device = self._model(key)[0].device
        each, wanted = self._bytes_per_row(key), max(least, 2 * before)
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            wanted = max(wanted, min(2 * self.config.max_running, free // 2 // each))
        if self.config.kv_budget is not None:
            # A request takes rows of every cache that it holds: the room is shared out alike.
            left = max(0, self.config.kv_budget - self._held(lacking))
            if wants_static(device, self.config.static):
                left -= min(left // 4, self._steps())
            more = branches * (left // max(1, request.bytes))
            wanted = min(wanted, least + more)
        return max(least, wanted)

    def _steps(self) -> int:
        """Bytes that the steps of decoding take on all grids, for as many requests as may run."""
        each = ((self.family.model(grid), grid) for grid in self.family.grids)
        most, collapse = self.config.max_running, self.config.collapse_prefix
        return sum(decoding_bytes(model, prefix_slots(model, collapse) + grid * grid, most) for model, grid in each)

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
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
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
