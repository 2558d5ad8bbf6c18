"""Requests in flight: they join and leave between steps, and a step is one forward for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from .cache import KVCache
from .decoding.base import Decoder, Plan
from .events import Event, Failed, Finished, Preview
from .family import Family
from .feed import Feed, Result
from .request import Request
from .runner import run
from .sampling import Logits


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

    max_running: int = 8
    kv_budget: int | None = None
    max_tokens: int = 1024
    static: bool | None = None
    collapse_prefix: bool = False

    def __post_init__(self) -> None:
        for name in ("max_running", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class Active:
    """A request under way: its plan, the feeds that the plan waits for, and what is there of their results."""

    number: int
    request: Request
    plan: Plan
    bytes: int
    pending: list[Feed] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    parts: list[Logits] = field(default_factory=list)
    at: int = 0
    previews: list[Preview] = field(default_factory=list)

    def next(self, limit: int) -> Feed:
        """The next feed, or the next `limit` tokens of it."""
        feed = self.pending[len(self.results)]
        if feed.tokens is None or not isinstance(feed.positions, range) or not isinstance(feed.logits, str):
            return feed
        stop = min(feed.count, self.at + limit)
        if self.at == 0 and stop == feed.count:
            return feed
        last = stop == feed.count
        return replace(
            feed,
            tokens=feed.tokens[self.at : stop],
            positions=feed.positions[self.at : stop],
            logits=feed.logits if last or feed.logits == "all" else "none",
            draw=feed.draw if last else None,
        )

    def take(self, feed: Feed, result: Result) -> None:
        """Take the result of what `next` gave."""
        whole = self.pending[len(self.results)]
        self.request.recorder.forward(feed.role, feed.count)
        if result.logits is not None:
            self.parts.append(result.logits)
        self.at += feed.count
        if self.at >= whole.count:
            self.results.append(replace(result, logits=Logits.cat(self.parts) if self.parts else None))
            self.parts, self.at = [], 0

    @property
    def ready(self) -> bool:
        """Whether everything that the plan waits for is there."""
        return len(self.results) == len(self.pending)

    def advance(self, first: bool = False) -> None:
        """Send the results to the plan and take its next feeds; StopIteration when the plan is done."""
        results, self.results = self.results, []
        self.pending = next(self.plan) if first else self.plan.send(results)


class Scheduler:
    """Runs requests of one family. It owns the KV caches.

    Args:
        family: a loaded family.
        config: limits.
        caches: KV caches by grid and whether they are the feature drafter's, which several schedulers may share; None
            makes its own.
    """

    def __init__(
        self,
        family: Family,
        config: SchedulerConfig | None = None,
        caches: dict[tuple[int, bool], KVCache] | None = None,
    ) -> None:
        self.family, self.config = family, config or SchedulerConfig()
        self.caches = {} if caches is None else caches
        self.waiting: deque[Active] = deque()
        self.running: list[Active] = []
        self.bytes = 0
        self._number = 0

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

    def add(self, request: Request, decoder: Decoder) -> int:
        """Queue a request; returns its number.

        Raises:
            ValueError: it could never run within the budget.
        """
        need = self.bytes_of(decoder, len(request.features))
        budget = self.config.kv_budget
        if budget is not None and need > budget:
            raise ValueError(
                f"one request of decoder {decoder.name!r} needs {need / 2**20:.1f} MiB of KV cache, the budget is "
                f"{budget / 2**20:.1f} MiB: raise kv_budget, or use a smaller grid or a narrower type"
            )
        self._number += 1
        active = Active(self._number, request, decoder.plan(request), need)
        request.cache, request.drafter_cache = self.cache, self.drafter_cache
        request.emit = active.previews.append
        self.waiting.append(active)
        return self._number

    def abort(self, number: int) -> bool:
        """Drop a request, waiting or running; whether there was one."""
        for active in list(self.waiting):
            if active.number == number:
                self.waiting.remove(active)
                return True
        for active in self.running:
            if active.number == number:
                self._leave(active)
                return True
        return False

    def clear(self) -> None:
        """Drop every request."""
        for active in [*self.waiting, *self.running]:
            self.abort(active.number)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit what fits, run one forward for the requests under way, and say what happened."""
        events = self._admit()
        turn = self._choose()
        for (active, _), error in zip(turn, self._run(turn), strict=True):
            if error is not None:
                self._leave(active)
                events.append(Event(active.number, Failed(error)))
            elif active.ready:
                events += self._advance(active)
        return events

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self.waiting and len(self.running) < self.config.max_running:
            budget = self.config.kv_budget
            if budget is not None and self.bytes + self.waiting[0].bytes > budget:
                break
            active = self.waiting.popleft()
            self.bytes += active.bytes
            self.running.append(active)
            events += self._advance(active, first=True)
        return events

    def _choose(self) -> list[tuple[Active, Feed]]:
        """The feeds of this step: what fits the token budget, those first that waited longest."""
        left = self.config.max_tokens
        turn: list[tuple[Active, Feed]] = []
        for active in self.running:
            feed = active.next(self.config.max_tokens)
            if turn and feed.count > left:
                continue
            left -= feed.count
            turn.append((active, feed))
        chosen = {id(a) for a, _ in turn}
        self.running.sort(key=lambda a: id(a) in chosen)
        return turn

    def _run(self, turn: Sequence[tuple[Active, Feed]]) -> list[Exception | None]:
        """Run the feeds and hand out the results. When that fails, each is tried alone: none can harm the others."""
        if not turn:
            return []
        try:
            results = run([feed for _, feed in turn], self.config.static)
        except Exception as error:
            return [error] if len(turn) == 1 else [self._run([one])[0] for one in turn]
        for (active, feed), result in zip(turn, results, strict=True):
            active.take(feed, result)
        return [None] * len(turn)

    def _advance(self, active: Active, first: bool = False) -> list[Event]:
        events: list[Event] = []
        try:
            active.advance(first)
        except StopIteration as stop:
            self._leave(active)
            events.append(Event(active.number, Finished(stop.value)))
        except Exception as error:
            self._leave(active)
            events.append(Event(active.number, Failed(error)))
        previews = [Event(active.number, p) for p in active.previews]
        active.previews.clear()
        return previews + events

    def _leave(self, active: Active) -> None:
        active.plan.close()
        active.request.close()
        self.bytes -= active.bytes
        self.running.remove(active)
